//! Shims outlive the berthd that started them, so a berthd must understand those of an
//! earlier one, and be understood. The frames of one conversation of each version of the
//! protocol are kept as bytes, `frames_N.txt`: what berthd asks must be byte for byte what
//! that shim was asked, and what it answered must still be read as it was meant.
//!
//! A change that breaks this is one of the protocol: keep the file, and have berthd speak
//! both. `BERTH_RECORD_FRAMES=FILE cargo test --test shim frames` writes the conversation
//! with the shim of today.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
};

use berth::{
    kind::{HasKind, Kind},
    proto::{
        containerd::v1::types::Status,
        plan::{LaunchPlan, Resources},
        task::CreateTaskRequest,
    },
    runtime::{ExecIo, Shim},
    shim::{SOCKET, ttrpc},
};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use super::{
    can_run,
    fixture::{Fixture, process},
};

const VERSION_1: &str = include_str!("frames_1.txt");
const HEADER: usize = 10;
const EXEC: &str = "e1";

/// Everything that berthd asks a shim, with the answers' meanings.
async fn talk(shim: &Shim, plan: &LaunchPlan, dir: &Path) {
    let early = shim.state().await.unwrap_err();
    assert_eq!(early.kind(), Kind::NotFound, "{early}");
    let pid = shim.create(plan, dir).await.unwrap();
    assert!(pid > 1);
    let state = shim.state().await.unwrap();
    assert_eq!((state.status(), state.pid), (Status::Created, pid));
    assert_eq!(shim.start().await.unwrap(), pid);
    assert_eq!(shim.state().await.unwrap().status(), Status::Running);
    assert!(shim.pids().await.unwrap().contains(&pid));
    shim.pause().await.unwrap();
    assert_eq!(shim.state().await.unwrap().status(), Status::Paused);
    shim.resume().await.unwrap();
    let limits = Resources {
        cpu_shares: Some(512),
        ..Resources::default()
    };
    shim.update(&limits).await.unwrap();
    shim.reopen_log().await.unwrap();
    shim.close_stdin().await.unwrap();
    let error = shim.resize(80, 24).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    let nothing = ExecIo::Pipes {
        stdin: None,
        stdout: None,
        stderr: None,
    };
    let command = process(&["/bin/sh", "-c", "exit 7"]);
    let exec = shim.exec(EXEC, &command, nothing).await.unwrap();
    assert!(exec.pid() > 1);
    assert_eq!(exec.wait().await.unwrap(), 7);
    shim.kill(9, true).await.unwrap();
    let ended = shim.wait().await.unwrap();
    assert!(ended.told);
    assert_eq!(ended.record.code, 137);
    assert!(ended.record.finished_at > 0);
    shim.delete().await.unwrap();
}

async fn read_frame(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<Vec<u8>> {
    let mut frame = vec![0; HEADER];
    stream.read_exact(&mut frame).await.ok()?;
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    frame.resize(HEADER + length, 0);
    stream.read_exact(&mut frame[HEADER..]).await.ok()?;
    Some(frame)
}

fn stream_of(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[4..8].try_into().unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = (0..hex.len()).step_by(2);
    digits
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

/// Stands between berthd and a shim of today, and writes down what they say: a line for
/// each call, "METHOD REQUEST ANSWER".
async fn record(file: &str) {
    let fixture = Fixture::new("sleep 100000 & wait");
    let _shim = fixture.spawn().await;
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
    let shim = UnixStream::connect(fixture.dir.join(SOCKET)).await.unwrap();
    let lines = Arc::new(Mutex::new(String::new()));
    let written = lines.clone();
    let proxy = tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_shim, mut to_shim) = shim.into_split();
        let asked = Arc::new(Mutex::new(HashMap::new()));
        let asking = asked.clone();
        let requests = tokio::spawn(async move {
            while let Some(frame) = read_frame(&mut from_client).await {
                asking.lock().unwrap().insert(stream_of(&frame), frame.clone());
                to_shim.write_all(&frame).await.unwrap();
            }
        });
        while let Some(frame) = read_frame(&mut from_shim).await {
            let request = asked.lock().unwrap().remove(&stream_of(&frame)).unwrap();
            let method = ttrpc::Request::decode(&request[HEADER..]).unwrap().method;
            *written.lock().unwrap() += &format!("{method} {} {}\n", hex(&request), hex(&frame));
            let _ = to_client.write_all(&frame).await;
        }
        requests.abort();
    });
    let through = Shim::connect(&fixture.id, folder.path()).await.unwrap();
    talk(&through, &fixture.plan, &fixture.dir).await;
    proxy.await.unwrap();
    std::fs::write(file, lines.lock().unwrap().as_bytes()).unwrap();
    fixture.assert_gone().await;
}

/// A shim that answers as one of an earlier version did. What it is asked must be what
/// that one was asked.
async fn answer(listener: UnixListener, recorded: &'static str) {
    let mut answers: HashMap<u32, (&str, Vec<u8>, Vec<u8>)> = HashMap::new();
    for line in recorded.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let request = bytes(words[1]);
        answers.insert(stream_of(&request), (words[0], request, bytes(words[2])));
    }
    let (mut client, _) = listener.accept().await.unwrap();
    // After the container's end it leaves by itself.
    while !answers.is_empty()
        && let Some(frame) = read_frame(&mut client).await
    {
        let (method, request, answer) = answers.remove(&stream_of(&frame)).expect("one call more");
        assert_eq!(hex(&frame), hex(&request), "{method} is asked otherwise");
        client.write_all(&answer).await.unwrap();
    }
    let left: Vec<_> = answers.values().map(|(method, ..)| method).collect();
    assert!(left.is_empty(), "not asked any more: {left:?}");
}

#[tokio::test]
async fn shims_of_version_1_are_understood() {
    if let Ok(file) = std::env::var("BERTH_RECORD_FRAMES") {
        if can_run() {
            record(&file).await;
        }
        return;
    }
    // The create call has all that the conversation was about.
    let create = VERSION_1
        .lines()
        .find(|line| line.starts_with("Create "))
        .unwrap();
    let frame = bytes(create.split(' ').nth(1).unwrap());
    let request = ttrpc::Request::decode(&frame[HEADER..]).unwrap();
    let request = CreateTaskRequest::decode(&request.payload[..]).unwrap();
    let plan = LaunchPlan::decode(&request.options.unwrap().value[..]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
    let server = tokio::spawn(answer(listener, VERSION_1));
    let shim = Shim::connect(&request.id, folder.path()).await.unwrap();
    let talked = tokio::spawn(async move {
        talk(&shim, &plan, Path::new(&request.bundle)).await;
    });
    // Whatever broke the conversation is what the shim's side says.
    let (server, talked) = tokio::join!(server, talked);
    server.unwrap();
    talked.unwrap();
}
