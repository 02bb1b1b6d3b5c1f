//! Further processes in a container.

use std::{
    fs::File,
    io::{Read, Write},
    time::{Duration, Instant},
};

use berth::{
    kind::{HasKind, Kind},
    runtime::{Error, ExecIo, Shim},
};

use super::{
    can_run,
    fixture::{Fixture, process, processes, shell, until},
};

async fn sleeper() -> (Fixture, Shim) {
    let fixture = Fixture::new("sleep 100000 & wait");
    let shim = fixture.start().await;
    while shim.pids().await.unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (fixture, shim)
}

#[tokio::test]
async fn output_and_code_come_back() {
    if !can_run() {
        return;
    }
    let (fixture, shim) = sleeper().await;
    let output = shim
        .exec_sync(&shell("echo out; echo err >&2; exit 42"), None, 1 << 20)
        .await
        .unwrap();
    assert_eq!(
        (
            output.stdout.as_slice(),
            output.stderr.as_slice(),
            output.code,
            output.dropped > 0
        ),
        (&b"out\n"[..], &b"err\n"[..], 42, false)
    );
    let output = shim.exec_sync(&shell("seq 1 100000"), None, 1000).await.unwrap();
    assert_eq!(
        (output.stdout.len(), output.code, output.dropped > 0),
        (1000, 0, true)
    );
    let output = shim.exec_sync(&shell("kill -9 $$"), None, 1000).await.unwrap();
    assert_eq!(output.code, 137);
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
}

#[tokio::test]
async fn many_at_a_time() {
    if !can_run() {
        return;
    }
    let (fixture, shim) = sleeper().await;
    let began = Instant::now();
    let tasks: Vec<_> = (0..40)
        .map(|number| {
            let shim = shim.clone();
            tokio::spawn(async move { shim.exec_sync(&shell(&format!("echo {number}")), None, 100).await })
        })
        .collect();
    for (task, number) in tasks.into_iter().zip(0..) {
        let output = task.await.unwrap().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{number}\n"));
    }
    println!("40 execs side by side in {:?}", began.elapsed());
    let began = Instant::now();
    for _ in 0..20 {
        shim.exec_sync(&process(&["/bin/true"]), None, 100).await.unwrap();
    }
    println!("an exec of true takes {:?}", began.elapsed() / 20);
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
}

#[tokio::test]
async fn a_timeout_kills_every_descendant() {
    if !can_run() {
        return;
    }
    let (fixture, shim) = sleeper().await;
    let before = shim.pids().await.unwrap().len();
    // One that is double-forked into a session of its own, one that ignores signals.
    let script = "(setsid sleep 54321 &); (trap '' TERM HUP; sleep 54321 & wait) & sleep 54321";
    let mine = |pid| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x0054321\0")
            && std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok() == init_namespace(&fixture)
    };
    let error = shim
        .exec_sync(&shell(script), Some(Duration::from_millis(300)), 1000)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::ExecTimeout { .. }), "{error}");
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(processes(mine), [0; 0]);
    assert_eq!(shim.pids().await.unwrap().len(), before);
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
}

fn init_namespace(fixture: &Fixture) -> Option<std::path::PathBuf> {
    let procs = fixture.cgroups().first()?.join("cgroup.procs");
    let pids = std::fs::read_to_string(procs).ok()?;
    std::fs::read_link(format!("/proc/{}/ns/pid", pids.lines().next()?)).ok()
}

#[tokio::test]
async fn a_child_in_the_background_does_not_hold_the_answer() {
    if !can_run() {
        return;
    }
    let (fixture, shim) = sleeper().await;
    let began = Instant::now();
    let output = shim
        .exec_sync(&shell("echo before; sleep 1000 & exit 1"), None, 1000)
        .await
        .unwrap();
    assert_eq!((output.stdout.as_slice(), output.code), (&b"before\n"[..], 1));
    assert!(began.elapsed() < Duration::from_secs(3));
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
}

#[tokio::test]
async fn a_missing_command_says_so() {
    if !can_run() {
        return;
    }
    let (fixture, shim) = sleeper().await;
    let error = shim
        .exec_sync(&process(&["/no/such"]), None, 100)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Start { code: 127, .. }), "{error:?}");
    assert!(error.to_string().contains("/no/such"), "{error}");
    let twice = shim
        .exec("same", &process(&["/bin/sleep", "100"]), null())
        .await
        .unwrap();
    let error = shim
        .exec("same", &process(&["/bin/sleep", "100"]), null())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyExists);
    twice.kill(9).await.unwrap();
    assert_eq!(twice.wait().await.unwrap(), 137);
    let error = shim
        .exec("../evil", &process(&["/bin/true"]), null())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
}

fn null() -> ExecIo {
    ExecIo::Pipes {
        stdin: None,
        stdout: None,
        stderr: None,
    }
}

#[tokio::test]
async fn a_terminal_is_handed_over() {
    if !can_run() {
        return;
    }
    let (fixture, shim) = sleeper().await;
    let mut command = shell("stty size; read line; stty size; echo got $line");
    command.terminal = true;
    (command.console_width, command.console_height) = (80, 24);
    let mut exec = shim.exec("tty", &command, ExecIo::Terminal).await.unwrap();
    let mut console = File::from(exec.take_console().unwrap());
    let (mut seen, mut byte) = (String::new(), [0]);
    while !seen.contains("24 80\r\n") {
        assert_eq!(console.read(&mut byte).unwrap(), 1, "{seen:?}");
        seen.push(char::from(byte[0]));
    }
    exec.resize(100, 30).await.unwrap();
    let mut writer = console.try_clone().unwrap();
    writer.write_all(b"hi\n").unwrap();
    let mut rest = String::new();
    let _ = console.read_to_string(&mut rest);
    assert!(rest.contains("30 100\r\ngot hi\r\n"), "{rest:?}");
    assert_eq!(exec.wait().await.unwrap(), 0);

    // A shell whose client hangs up goes away.
    let mut command = shell("while :; do sleep 1; done");
    command.terminal = true;
    let mut exec = shim.exec("hangup", &command, ExecIo::Terminal).await.unwrap();
    drop(exec.take_console());
    exec.hang_up().await.unwrap();
    assert_eq!(exec.wait().await.unwrap(), 128 + 1);
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
}

#[tokio::test]
async fn an_exec_ends_with_its_container() {
    if !can_run() {
        return;
    }
    let (fixture, shim) = sleeper().await;
    let exec = shim
        .exec("e", &process(&["/bin/sleep", "1000"]), null())
        .await
        .unwrap();
    shim.kill(9, false).await.unwrap();
    assert_eq!(exec.wait().await.unwrap(), 137);
    assert_eq!(shim.wait().await.unwrap().record.code, 137);
    fixture.assert_gone().await;
}

#[tokio::test]
async fn forgotten_execs_leave_no_cgroup_behind() {
    if !can_run() {
        return;
    }
    let (fixture, shim) = sleeper().await;
    for _ in 0..5 {
        shim.exec_sync(&shell("sleep 0.05 >/dev/null 2>&1 &"), None, 100)
            .await
            .unwrap();
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
    // Two of which the second is cancelled: it is killed and forgotten.
    shim.exec_sync(&process(&["/bin/true"]), None, 100).await.unwrap();
    let endless = process(&["/bin/sleep", "1000"]);
    let call = shim.exec_sync(&endless, None, 100);
    assert!(
        tokio::time::timeout(Duration::from_millis(50), call)
            .await
            .is_err()
    );
    let folders = || {
        let below =
            |folder: &std::path::PathBuf| std::fs::read_dir(folder).unwrap().flatten().collect::<Vec<_>>();
        let all = fixture.cgroups().iter().flat_map(below).collect::<Vec<_>>();
        all.iter()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("exec-"))
            .count()
    };
    until("no cgroup of an exec", || folders() == 0).await;
    assert_eq!(shim.pids().await.unwrap().len(), 2);
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
}

/// The last descendant may die between two looks of the shim at the same exec; its end is
/// told all the same, without another event to wake the shim.
#[tokio::test]
async fn the_end_of_every_killed_exec_is_told() {
    if !can_run() {
        return;
    }
    let (fixture, shim) = sleeper().await;
    for round in 0..300 {
        let stdio = ExecIo::Pipes {
            stdin: None,
            stdout: None,
            stderr: None,
        };
        // The children are nobody's after the kill but the kernel's: no SIGCHLD comes of them.
        let family = shell("for i in 1 2 3 4; do setsid sleep 1000 & done; sleep 1000");
        let exec = shim
            .exec(&format!("family-{round}"), &family, stdio)
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        exec.kill_all().await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(60), exec.wait()).await;
        let code = ended.unwrap_or_else(|_| panic!("round {round}: killed, and no end was told"));
        assert_eq!(code.unwrap(), 137);
    }
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
}
