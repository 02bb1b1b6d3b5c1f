//! Clients at the init's stdio.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use berth::runtime::{AttachIo, Attachment, Error, Shim};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe::{Receiver, Sender},
};

use super::{
    can_run,
    fixture::{Fixture, until},
};

/// A client's ends.
struct Client {
    stdin: Sender,
    stdout: Receiver,
    stderr: Option<Receiver>,
    attachment: Attachment,
}

fn input() -> (Sender, OwnedFd) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (Sender::from_owned_fd(write).unwrap(), read)
}

fn output() -> (Receiver, OwnedFd) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (Receiver::from_owned_fd(read).unwrap(), write)
}

async fn attach(shim: &Shim, terminal: bool) -> Client {
    let ((stdin, stdin_end), (stdout, stdout_end), (stderr, stderr_end)) = (input(), output(), output());
    let io = AttachIo {
        stdin: Some(stdin_end),
        stdout: Some(stdout_end),
        stderr: (!terminal).then_some(stderr_end),
    };
    Client {
        stdin,
        stdout,
        stderr: (!terminal).then_some(stderr),
        attachment: shim.attach(terminal, io).await.unwrap(),
    }
}

/// A container that reads its input.
fn reader(script: &str, once: bool) -> Fixture {
    let mut fixture = Fixture::new(script);
    fixture.plan.stdin = true;
    fixture.plan.stdin_once = once;
    fixture
}

async fn read(from: &mut Receiver, count: usize) -> String {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

async fn rest(mut from: Receiver) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn every_client_sees_the_output_and_the_container_goes_on_without_them() {
    if !can_run() {
        return;
    }
    let fixture = reader(
        "while read line; do echo out $line; echo err $line >&2; done; echo end",
        false,
    );
    let shim = fixture.start().await;
    let (mut one, mut two) = (attach(&shim, false).await, attach(&shim, false).await);
    one.stdin.write_all(b"1\n").await.unwrap();
    for client in [&mut one, &mut two] {
        assert_eq!(read(&mut client.stdout, 6).await, "out 1\n");
        assert_eq!(read(client.stderr.as_mut().unwrap(), 6).await, "err 1\n");
    }
    // Whoever leaves, its input is not the container's.
    drop(one);
    two.stdin.write_all(b"2\n").await.unwrap();
    assert_eq!(read(&mut two.stdout, 6).await, "out 2\n");
    // All of it, or the next client sees what comes after it has attached.
    assert_eq!(read(two.stderr.as_mut().unwrap(), 6).await, "err 2\n");
    drop(two);

    // As after berthd was started anew.
    let again = Shim::connect(&fixture.id, &fixture.dir).await.unwrap();
    drop(shim);
    let mut three = attach(&again, false).await;
    three.stdin.write_all(b"3\n").await.unwrap();
    assert_eq!(read(&mut three.stdout, 6).await, "out 3\n");
    again.close_stdin().await.unwrap();
    assert_eq!(rest(three.stdout).await, "end\n");
    assert_eq!(rest(three.stderr.unwrap()).await, "err 3\n");
    three.attachment.ended().await.unwrap();
    assert_eq!(again.wait().await.unwrap().record.code, 0);
    fixture.assert_gone().await;
    let log = fixture.lines();
    assert_eq!(
        log.iter()
            .filter(|line| line.starts_with("stdout F out "))
            .count(),
        3,
        "{log:?}"
    );
}

#[tokio::test]
async fn with_stdin_once_the_end_of_the_first_input_is_the_containers() {
    if !can_run() {
        return;
    }
    let fixture = reader("cat; echo end", true);
    let shim = fixture.start().await;
    let mut client = attach(&shim, false).await;
    client.stdin.write_all(b"hello\n").await.unwrap();
    drop(client.stdin);
    assert_eq!(rest(client.stdout).await, "hello\nend\n");
    client.attachment.ended().await.unwrap();
    assert_eq!(shim.wait().await.unwrap().record.code, 0);
    fixture.assert_gone().await;
}

#[tokio::test]
async fn a_created_container_can_be_attached_to_and_no_byte_is_missed() {
    if !can_run() {
        return;
    }
    let fixture = reader("echo first; seq 1 200000", false);
    let shim = fixture.create().await;
    let client = attach(&shim, false).await;
    shim.start().await.unwrap();
    let wanted: String = std::iter::once("first\n".to_owned())
        .chain((1..=200_000).map(|number| format!("{number}\n")))
        .collect();
    assert!(rest(client.stdout).await == wanted, "output differs");
    assert_eq!(shim.wait().await.unwrap().record.code, 0);
    assert_eq!(fixture.lines().len(), 200_001);
    fixture.assert_gone().await;
}

/// Many pipes full, both ways at once, by a container that copies.
#[tokio::test]
async fn a_copy_of_much_comes_back_byte_for_byte() {
    if !can_run() {
        return;
    }
    const COUNT: usize = 64 << 20;
    let mut fixture = reader("exec cat", true);
    fixture.plan.log = None;
    let shim = fixture.start().await;
    let mut client = attach(&shim, false).await;
    let begin = Instant::now();
    let byte = |at: usize| u8::try_from(at * 31 % 251).unwrap();
    let pattern: Vec<u8> = (0..251 * 1024).map(byte).collect();
    let write = async {
        let mut left = COUNT;
        while left > 0 {
            let count = left.min(pattern.len());
            client.stdin.write_all(&pattern[..count]).await.unwrap();
            left -= count;
        }
        drop(client.stdin);
    };
    let read = async {
        let mut buffer = vec![0; 1 << 16];
        let mut at = 0;
        loop {
            let count = client.stdout.read(&mut buffer).await.unwrap();
            if count == 0 {
                return at;
            }
            for got in &buffer[..count] {
                assert_eq!(*got, byte(at % (251 * 1024)), "at {at}");
                at += 1;
            }
        }
    };
    let ((), count) = tokio::join!(write, read);
    assert_eq!(count, COUNT);
    println!("64 MiB through cat in {:?}", begin.elapsed());
    assert_eq!(shim.wait().await.unwrap().record.code, 0);
    fixture.assert_gone().await;
}

#[tokio::test]
async fn who_does_not_read_is_dropped_and_holds_nobody_up_for_long() {
    if !can_run() {
        return;
    }
    let fixture = reader("seq 1 200000; echo done; sleep 100000 & wait", false);
    let shim = fixture.create().await;
    let (asleep, awake) = (attach(&shim, false).await, attach(&shim, false).await);
    let reading = tokio::spawn(rest(awake.stdout));
    let begin = Instant::now();
    shim.start().await.unwrap();
    fixture.await_log("done").await;
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    let error = asleep.attachment.ended().await.unwrap_err();
    assert!(matches!(error, Error::Remote { .. }), "{error}");
    assert!(error.to_string().contains("took no output"), "{error}");
    // What it has not taken is still there, then comes the end.
    assert!(rest(asleep.stdout).await.starts_with("1\n2\n"));
    shim.delete().await.unwrap();
    assert!(reading.await.unwrap().ends_with("200000\ndone\n"));
    assert_eq!(fixture.lines().len(), 200_001);
    fixture.assert_gone().await;
}

#[tokio::test]
async fn input_that_nobody_reads_waits_in_the_clients_pipe() {
    if !can_run() {
        return;
    }
    let fixture = reader("sleep 1; head -c 400000 | cat >/dev/null; echo took", false);
    let shim = fixture.start().await;
    let mut client = attach(&shim, false).await;
    let begin = Instant::now();
    client.stdin.write_all(&vec![b'x'; 400_000]).await.unwrap();
    assert!(
        begin.elapsed() > Duration::from_millis(500),
        "nothing held it back"
    );
    assert_eq!(read(&mut client.stdout, 5).await, "took\n");
    drop(client);
    assert_eq!(shim.wait().await.unwrap().record.code, 0);
    fixture.assert_gone().await;
}

#[tokio::test]
async fn a_terminal_is_shared_and_resized() {
    if !can_run() {
        return;
    }
    let mut fixture = reader(
        "stty -echo; echo ready; while read line; do stty size; done",
        false,
    );
    fixture.plan.process.as_mut().unwrap().terminal = true;
    let shim = fixture.create().await;
    let (mut one, mut two) = (attach(&shim, true).await, attach(&shim, true).await);
    shim.start().await.unwrap();
    for client in [&mut one, &mut two] {
        assert_eq!(read(&mut client.stdout, 7).await, "ready\r\n");
    }
    shim.resize(132, 43).await.unwrap();
    two.stdin.write_all(b"\n").await.unwrap();
    for client in [&mut one, &mut two] {
        assert_eq!(read(&mut client.stdout, 8).await, "43 132\r\n");
    }
    drop(one);
    // The end of input is typed.
    two.stdin.write_all(&[4]).await.unwrap();
    assert_eq!(rest(two.stdout).await, "");
    assert_eq!(shim.wait().await.unwrap().record.code, 0);
    fixture.assert_gone().await;
}

#[tokio::test]
async fn clients_that_come_and_go_leave_nothing() {
    if !can_run() {
        return;
    }
    let fixture = reader("sleep 100000 & wait", false);
    let shim = fixture.start().await;
    let process = super::fixture::shims(&fixture.id);
    let descriptors = || {
        let folder = format!("/proc/{}/fd", process[0]);
        std::fs::read_dir(folder).unwrap().count()
    };
    drop(attach(&shim, false).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = descriptors();
    for _ in 0..100 {
        let client = attach(&shim, false).await;
        drop(client);
    }
    until("the shim to close its ends", || descriptors() == before).await;
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
}
