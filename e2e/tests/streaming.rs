//! Exec and attach through the streaming server.

use std::time::Duration;

use anyhow::Context;
use e2e::{
    Client, Result, Story, WebSocket, cri, kernel,
    streams::{Footprint, attach_of, exec_of},
    websocket::STDIN,
};
use tonic::Code;

const V4: &str = "v4.channel.k8s.io";
const V5: &str = "v5.channel.k8s.io";

async fn exec(client: &Client, request: cri::ExecRequest, protocol: &str) -> Result<WebSocket> {
    let url = client.exec_url(request).await?;
    WebSocket::connect(&url, protocol).await
}

async fn attach(client: &Client, request: cri::AttachRequest) -> Result<WebSocket> {
    let url = client.attach_url(request).await?;
    WebSocket::connect(&url, V5).await
}

#[tokio::test]
async fn exec_brings_output_and_code() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (_, id) = story.sleeper("exec").await?;
    for protocol in [V4, V5] {
        let script = "echo out; echo err >&2; exit 3";
        let mut socket = exec(client, exec_of(&id, &["sh", "-c", script]), protocol).await?;
        let session = socket.receive.finish().await?;
        assert_eq!(session.stdout, b"out\n");
        assert_eq!(session.stderr, b"err\n");
        assert_eq!(
            session.status["details"]["causes"][0]["message"], "3",
            "{session:?}"
        );
    }
    // Half-close: the end of input reaches the process, and its output the client.
    let mut socket = exec(client, exec_of(&id, &["wc", "-c"]), V5).await?;
    socket.send.data(STDIN, b"12345").await?;
    socket.send.close(STDIN).await?;
    let session = socket.receive.finish().await?;
    assert!(session.succeeded(), "{session:?}");
    assert_eq!(session.stdout().trim(), "5");
    // What cannot be executed is said by name.
    let mut socket = exec(client, exec_of(&id, &["/no/such/program"]), V5).await?;
    let session = socket.receive.finish().await?;
    assert!(
        session.status.to_string().contains("/no/such/program"),
        "{session:?}"
    );
    story.finish().await
}

#[tokio::test]
async fn exec_with_a_terminal() -> Result {
    let story = Story::begin().await?;
    let (_, id) = story.sleeper("tty").await?;
    let request = cri::ExecRequest {
        stderr: false,
        tty: true,
        ..exec_of(&id, &["sh"])
    };
    let mut socket = exec(&story.client, request, V5).await?;
    socket.send.resize(132, 43).await?;
    socket
        .send
        .data(
            STDIN,
            b"while [ \"$(stty size)\" != '43 132' ]; do sleep 0.1; done; echo si''ze\n",
        )
        .await?;
    socket.receive.until("size").await?;
    socket.send.data(STDIN, b"test -t 0 && exit 7\n").await?;
    let session = socket.receive.finish().await?;
    assert_eq!(
        session.status["details"]["causes"][0]["message"], "7",
        "{session:?}"
    );
    story.finish().await
}

/// A container that echoes what it reads.
async fn echo(story: &Story, name: &str, once: bool, tty: bool) -> Result<String> {
    let pod = story.client.run_pod(name).await?;
    let script = "while read line; do echo out $line; done; echo end";
    let mut config = story.script("c", script);
    config.stdin = true;
    config.stdin_once = once;
    config.tty = tty;
    Ok(story.client.run(&pod, config).await?)
}

#[tokio::test]
async fn attach_by_several_and_after_a_restart() -> Result {
    let mut story = Story::begin().await?;
    let id = echo(&story, "attach", false, false).await?;
    let mut one = attach(&story.client, attach_of(&id, false)).await?;
    let mut two = attach(&story.client, attach_of(&id, false)).await?;
    // The answer to an upgrade comes before the container's streams are joined.
    tokio::time::sleep(Duration::from_millis(300)).await;
    one.send.data(STDIN, b"1\n").await?;
    one.receive.until("out 1\n").await?;
    two.receive.until("out 1\n").await?;
    // Without stdin_once the end of a client's input is its own.
    one.send.close(STDIN).await?;
    assert!(one.receive.finish().await?.succeeded());
    two.send.data(STDIN, b"2\n").await?;
    two.receive.until("out 2\n").await?;
    if !story.node.is_peer() {
        story.node.kill()?;
        story.node.launch().await?;
        story.client = story.node.client().await?;
        let mut three = attach(&story.client, attach_of(&id, false)).await?;
        three.send.data(STDIN, b"3\n").await?;
        three.receive.until("out 3\n").await?;
        assert_eq!(
            story.client.status(&id).await?.state(),
            cri::ContainerState::ContainerRunning
        );
    }
    story.finish().await
}

#[tokio::test]
async fn with_stdin_once_the_input_ends_and_all_output_comes() -> Result {
    let story = Story::begin().await?;
    let id = echo(&story, "once", true, false).await?;
    let mut socket = attach(&story.client, attach_of(&id, false)).await?;
    socket.send.data(STDIN, b"a\nb\n").await?;
    socket.send.close(STDIN).await?;
    let session = socket.receive.finish().await?;
    assert!(session.succeeded(), "{session:?}");
    assert_eq!(session.stdout(), "out a\nout b\nend\n");
    assert_eq!(story.client.wait_exit(&id).await?.exit_code, 0);
    story.finish().await
}

#[tokio::test]
async fn attach_to_a_terminal() -> Result {
    let story = Story::begin().await?;
    let pod = story.client.run_pod("tty").await?;
    let mut config = story.script("c", "while read line; do stty size; done");
    (config.stdin, config.tty) = (true, true);
    let id = story.client.run(&pod, config).await?;
    let mut socket = attach(&story.client, attach_of(&id, true)).await?;
    socket.send.resize(99, 33).await?;
    let mut seen = String::new();
    for _ in 0..50 {
        socket.send.data(STDIN, b"\n").await?;
        seen = socket.receive.until("\r\n").await?;
        if seen.contains("33 99") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(seen.contains("33 99"), "{seen:?}");
    drop(socket);
    assert_eq!(
        story.client.status(&id).await?.state(),
        cri::ContainerState::ContainerRunning
    );
    story.finish().await
}

#[tokio::test]
async fn what_is_refused() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut runtime = client.runtime.clone();
    let (pod, id) = story.sleeper("refused").await?;
    let both = cri::ExecRequest {
        tty: true,
        ..exec_of(&id, &["sh"])
    };
    assert_eq!(
        runtime.exec(both).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let none = cri::AttachRequest {
        stdin: false,
        stdout: false,
        stderr: false,
        ..attach_of(&id, false)
    };
    assert_eq!(
        runtime.attach(none).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let error = runtime.exec(exec_of("missing", &["sh"])).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    // A URL is good once.
    let url = runtime.exec(exec_of(&id, &["true"])).await?.into_inner().url;
    WebSocket::connect(&url, V5).await?.receive.finish().await?;
    WebSocket::connect(&url, V5).await.unwrap_err();
    client.stop(&id, 0).await?;
    if !story.node.is_peer() {
        for error in [
            runtime.exec(exec_of(&id, &["sh"])).await.unwrap_err(),
            runtime.attach(attach_of(&id, false)).await.unwrap_err(),
        ] {
            assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
            assert!(error.message().contains(&id), "{error}");
        }
        client.stop_pod(&pod.id).await?;
        let request = cri::PortForwardRequest {
            pod_sandbox_id: pod.id.clone(),
            port: Vec::new(),
        };
        let error = runtime.port_forward(request).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    }
    story.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sessions_at_once() -> Result {
    let story = Story::begin().await?;
    let pod = story.client.run_pod("many").await?;
    let mut ids = Vec::new();
    // A container takes 128 at a time.
    for name in ["a", "b"] {
        ids.push(
            story
                .client
                .run(&pod, story.script(name, "exec sleep 1000"))
                .await?,
        );
    }
    let mut before = Vec::new();
    if !story.node.is_peer() {
        for id in &ids {
            story.client.sh(id, "true").await?;
            before.push(Footprint::take(&story, id)?);
        }
    }
    let sessions: Vec<_> = (0..200)
        .map(|number| {
            let (client, id) = (story.client.clone(), ids[number % 2].clone());
            tokio::spawn(async move {
                let command = format!("read line; echo $line {number}");
                let mut socket = exec(&client, exec_of(&id, &["sh", "-c", &command]), V5).await?;
                socket.send.data(STDIN, b"hello\n").await?;
                socket.receive.finish().await
            })
        })
        .collect();
    for (number, session) in sessions.into_iter().enumerate() {
        let session = session.await??;
        assert_eq!(session.stdout(), format!("hello {number}\n"), "{session:?}");
    }
    for (before, id) in before.iter().zip(&ids) {
        before.is_back(&story, id).await?;
    }
    story.finish().await
}

#[tokio::test]
async fn exec_sync_keeps_16_mib_and_says_what_it_dropped() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: the metadata is Berth's own");
        return story.finish().await;
    }
    let (_, id) = story.sleeper("cap").await?;
    let mut runtime = story.client.runtime.clone().max_decoding_message_size(16 << 20);
    let script = "head -c 20971520 /dev/zero; echo end >&2; exit 5";
    let request = cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).into(),
        timeout: 0,
    };
    let answer = runtime.exec_sync(request).await?;
    let dropped = answer.metadata().get("berth-output-dropped");
    let dropped: usize = dropped.context("nothing said")?.to_str()?.parse()?;
    let answer = answer.into_inner();
    assert_eq!(answer.exit_code, 5);
    assert_eq!(
        answer.stdout.len() + answer.stderr.len() + dropped,
        (20 << 20) + 4
    );
    assert!(answer.stdout.len() > 15 << 20, "{}", answer.stdout.len());
    story.finish().await
}

/// SPDY, as crictl speaks it.
#[tokio::test]
async fn crictl_over_spdy() -> Result {
    let story = Story::begin().await?;
    if kernel::output("crictl", &["--version"]).is_empty() {
        eprintln!("skipped: crictl is not on the PATH");
        return story.finish().await;
    }
    let (_, id) = story.sleeper("crictl").await?;
    let address = story.node.address();
    let output = tokio::process::Command::new("crictl")
        .args(["--config", "/dev/null", "-r", &address, "-i", &address])
        .args([
            "exec",
            "--transport",
            "spdy",
            &id,
            "sh",
            "-c",
            "echo out; echo err >&2; exit 9",
        ])
        .output()
        .await?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n", "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("err\n"),
        "{output:?}"
    );
    assert!(!output.status.success(), "{output:?}");
    story.finish().await
}
