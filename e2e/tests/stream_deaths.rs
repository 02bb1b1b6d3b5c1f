//! Clients that are gone half-way: nothing stays of them, and all else goes on.

use std::time::Duration;

use anyhow::Context;
use e2e::{
    Pod, Result, Spdy, Story, WebSocket, cri, kernel,
    spdy::Event,
    streams::{Footprint, attach_of, echo_pod, exec_of, until},
    websocket::STDIN,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

const V4: &str = "v4.channel.k8s.io";
const V5: &str = "v5.channel.k8s.io";
const STREAMS: [&str; 4] = ["error", "stdin", "stdout", "stderr"];

#[tokio::test]
async fn a_command_ends_with_its_client() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: a peer lets the process run on");
        return story.finish().await;
    }
    let client = &story.client;
    let (_, id) = story.sleeper("vanish").await?;
    client.sh(&id, "true").await?;
    let before = Footprint::take(&story, &id)?;
    // One that ends with its input, and one that does not care.
    let mark = 700_000 + std::process::id();
    let deaf = format!("trap '' HUP TERM; sleep {mark} & wait; sleep {mark}");
    let mut sockets = Vec::new();
    for (command, tty) in [
        (&["cat"][..], false),
        (&["sh", "-c", &deaf], false),
        (&["sh", "-c", &deaf], true),
    ] {
        let request = cri::ExecRequest {
            stderr: !tty,
            tty,
            ..exec_of(&id, command)
        };
        let url = client.exec_url(request).await?;
        sockets.push(WebSocket::connect(&url, V4).await?);
    }
    let running = || {
        let found = kernel::output("pgrep", &["-fx", &format!("sleep {mark}")]);
        found.lines().count()
    };
    until("the commands to run", || running() == 2).await?;
    drop(sockets);
    until("their end", || running() == 0).await?;
    before.is_back(&story, &id).await?;
    assert_eq!(client.sh(&id, "echo here").await?, "here");
    story.finish().await
}

/// Wherever a client's connection breaks off, no descriptor, process or cgroup is left.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_clients_that_were_killed() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: berthd's descriptors are counted");
        return story.finish().await;
    }
    let client = &story.client;
    let (pod, id) = echo_pod(&story, "killed").await?;
    let mut config = story.script("reader", "while read line; do echo $line; done");
    config.stdin = true;
    let reader = client.run(&pod, config).await?;
    client.sh(&id, "true").await?;
    client.sh(&reader, "true").await?;
    let before = Footprint::take(&story, &id)?;
    let mut before_reader = Footprint::take(&story, &reader)?;
    // The epoll that a shim makes for the first client that attaches, and keeps.
    before_reader.of_shim += 1;
    for _ in 0..3 {
        before_the_streams_are_open(&story, &pod, &id).await?;
        in_the_midst_of_input(&story, &id).await?;
        in_the_midst_of_output(&story, &id).await?;
        while_attached(&story, &reader).await?;
        with_forwarded_connections(&story, &pod).await?;
    }
    before.is_back(&story, &id).await?;
    before_reader.is_back(&story, &reader).await?;
    // The container that was attached to takes its input from the next as before.
    let url = client.attach_url(attach_of(&reader, false)).await?;
    let mut socket = WebSocket::connect(&url, V5).await?;
    socket.send.data(STDIN, b"\nstill here\n").await?;
    socket.receive.until("still here").await?;
    drop(socket);
    before_reader.is_back(&story, &reader).await?;
    story.finish().await
}

async fn before_the_streams_are_open(story: &Story, pod: &Pod, id: &str) -> Result {
    let client = &story.client;
    // Nothing but a connection, and half a request.
    let url = client.exec_url(exec_of(id, &["cat"])).await?;
    let host = url.split('/').nth(2).context("a URL without a host")?;
    drop(TcpStream::connect(host).await?);
    let mut half = TcpStream::connect(host).await?;
    half.write_all(b"GET /exec/").await?;
    drop(half);
    // Upgraded, and no stream, or some of those that are needed.
    drop(Spdy::connect(&url, V4).await?);
    let url = client.exec_url(exec_of(id, &["cat"])).await?;
    let mut spdy = Spdy::connect(&url, V4).await?;
    spdy.open(["error", "stdin"]).await?;
    drop(spdy);
    let url = client.exec_url(exec_of(id, &["cat"])).await?;
    drop(WebSocket::connect(&url, V5).await?);
    let url = client.forward_url(pod, &[]).await?;
    drop(Spdy::connect(&url, "portforward.k8s.io").await?);
    let url = client.forward_url(pod, &[]).await?;
    drop(Spdy::tunnel(&url).await?);
    Ok(())
}

/// The command reads nothing, so what is sent is stuck all the way.
async fn in_the_midst_of_input(story: &Story, id: &str) -> Result {
    let block = vec![b'x'; 60_000];
    let url = story.client.exec_url(exec_of(id, &["sleep", "1000"])).await?;
    let mut spdy = Spdy::connect(&url, V4).await?;
    let [_, stdin, ..] = spdy.open(STREAMS).await?;
    let full = async { while spdy.send.data(stdin, &block).await.is_ok() {} };
    let _stuck = tokio::time::timeout(Duration::from_millis(500), full).await;
    drop(spdy);
    let url = story.client.exec_url(exec_of(id, &["sleep", "1000"])).await?;
    let mut socket = WebSocket::connect(&url, V5).await?;
    let full = async { while socket.send.data(STDIN, &block).await.is_ok() {} };
    let _stuck = tokio::time::timeout(Duration::from_millis(500), full).await;
    Ok(())
}

/// The command never stops talking.
async fn in_the_midst_of_output(story: &Story, id: &str) -> Result {
    let url = story.client.exec_url(exec_of(id, &["yes"])).await?;
    let mut spdy = Spdy::connect(&url, V4).await?;
    spdy.open(STREAMS).await?;
    for _ in 0..20 {
        assert!(matches!(spdy.receive.event().await?, Event::Data(..)));
    }
    drop(spdy);
    let url = story.client.exec_url(exec_of(id, &["yes"])).await?;
    let mut socket = WebSocket::connect(&url, V5).await?;
    socket.receive.until("y\n").await?;
    drop(socket);
    // One that leaves in order all the same leaves the command behind.
    let url = story.client.exec_url(exec_of(id, &["yes"])).await?;
    let mut socket = WebSocket::connect(&url, V5).await?;
    socket.receive.until("y\n").await?;
    socket.send.goodbye().await?;
    Ok(())
}

async fn while_attached(story: &Story, id: &str) -> Result {
    for over_spdy in [true, false] {
        let url = story.client.attach_url(attach_of(id, false)).await?;
        if over_spdy {
            let mut spdy = Spdy::connect(&url, V4).await?;
            let [_, stdin, ..] = spdy.open(STREAMS).await?;
            spdy.send.data(stdin, b"half a li").await?;
        } else {
            let mut socket = WebSocket::connect(&url, V5).await?;
            socket.send.data(STDIN, b"ne\n").await?;
            socket.receive.until("ne").await?;
        }
    }
    Ok(())
}

/// Two that are open, one of which is stuck, for the pod's end reads no echo.
async fn with_forwarded_connections(story: &Story, pod: &Pod) -> Result {
    let block = vec![b'x'; 60_000];
    for tunnel in [false, true] {
        let url = story.client.forward_url(pod, &[]).await?;
        let mut spdy = match tunnel {
            true => Spdy::tunnel(&url).await?,
            false => Spdy::connect(&url, "portforward.k8s.io").await?,
        };
        spdy.forward(7, 0).await?;
        let pair = spdy.forward(7, 1).await?;
        let full = async { while spdy.send.data(pair.data, &block).await.is_ok() {} };
        let _stuck = tokio::time::timeout(Duration::from_millis(500), full).await;
    }
    Ok(())
}
