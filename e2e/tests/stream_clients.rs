//! The shapes of client that there are: SPDY, WebSocket in binary and in base64,
//! and SPDY inside a WebSocket; and that one stream's end is its own.

use anyhow::{Context, ensure};
use e2e::{
    Pod, Result, Spdy, Story, WebSocket,
    spdy::{Event, Pair},
    streams::{attach_of, echo_pod, exec_of},
    websocket::{STDERR, STDIN, STDOUT},
};
use serde_json::Value;

const PORT: u16 = 7;

#[tokio::test]
async fn exec_over_spdy() -> Result {
    let story = Story::begin().await?;
    let (_, id) = story.sleeper("spdy").await?;
    let script = "read line; echo out $line; echo err >&2; cat; exit 3";
    let url = story.client.exec_url(exec_of(&id, &["sh", "-c", script])).await?;
    let mut spdy = Spdy::connect(&url, "v4.channel.k8s.io").await?;
    let [error, stdin, stdout, stderr] = spdy.open(["error", "stdin", "stdout", "stderr"]).await?;
    spdy.send.data(stdin, b"hello\nthe rest").await?;
    spdy.send.end(stdin).await?;
    let said = spdy.receive.finish().await?;
    assert_eq!(said[&stdout], b"out hello\nthe rest");
    assert_eq!(said[&stderr], b"err\n");
    let status: Value = serde_json::from_slice(&said[&error])?;
    assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
    assert_eq!(status["details"]["causes"][0]["message"], "3", "{status}");
    story.finish().await
}

#[tokio::test]
async fn attach_over_spdy() -> Result {
    let story = Story::begin().await?;
    let pod = story.client.run_pod("attach").await?;
    let mut config = story.script("c", "cat; echo end");
    (config.stdin, config.stdin_once) = (true, true);
    let id = story.client.run(&pod, config).await?;
    let url = story.client.attach_url(attach_of(&id, false)).await?;
    let mut spdy = Spdy::connect(&url, "v4.channel.k8s.io").await?;
    let [error, stdin, stdout, _] = spdy.open(["error", "stdin", "stdout", "stderr"]).await?;
    spdy.send.data(stdin, b"hello\n").await?;
    spdy.send.end(stdin).await?;
    let said = spdy.receive.finish().await?;
    assert_eq!(String::from_utf8_lossy(&said[&stdout]), "hello\nend\n");
    let status: Value = serde_json::from_slice(&said[&error])?;
    assert_eq!(status["status"], "Success", "{status}");
    story.finish().await
}

/// Bytes that are no text pass as well.
#[tokio::test]
async fn exec_over_base64() -> Result {
    let story = Story::begin().await?;
    let (_, id) = story.sleeper("base64").await?;
    let bytes: Vec<u8> = (0..=255).collect();
    for protocol in ["v4.base64.channel.k8s.io", "base64.channel.k8s.io"] {
        let command = ["sh", "-c", "head -c 256; echo err >&2"];
        let url = story.client.exec_url(exec_of(&id, &command)).await?;
        let mut socket = WebSocket::connect(&url, protocol).await?;
        socket.send.data(STDIN, &bytes).await?;
        let session = socket.receive.finish().await?;
        assert_eq!(session.stdout, bytes, "{protocol}");
        assert_eq!(session.stderr, b"err\n", "{protocol}");
        // The first version says failures only.
        let wanted = if protocol.starts_with("v4") { "Success" } else { "" };
        let said = session.status["status"].as_str().unwrap_or_default();
        assert_eq!(said, wanted, "{protocol}");
    }
    story.finish().await
}

#[tokio::test]
async fn ports_over_base64() -> Result {
    let story = Story::begin().await?;
    let (pod, _) = echo_pod(&story, "base64").await?;
    let url = story.client.forward_url(&pod, &[PORT]).await?;
    let mut socket = WebSocket::connect(&url, "v4.base64.channel.k8s.io").await?;
    let bytes: Vec<u8> = (0..=255).collect();
    socket.send.data(0, &bytes).await?;
    // Each channel begins with its port.
    let wanted = [&PORT.to_le_bytes()[..], &bytes].concat();
    let mut got = Vec::new();
    while got.len() < wanted.len() {
        let (channel, data) = socket.receive.message().await?.context("closed")?;
        if channel == 0 {
            got.extend(data);
        } else {
            assert_eq!(data, PORT.to_le_bytes());
        }
    }
    assert_eq!(got, wanted);
    story.finish().await
}

#[tokio::test]
async fn ports_over_spdy() -> Result {
    let story = Story::begin().await?;
    let (pod, _) = echo_pod(&story, "spdy").await?;
    let url = story.client.forward_url(&pod, &[]).await?;
    connections_end_apart(Spdy::connect(&url, "portforward.k8s.io").await?).await?;
    story.finish().await
}

#[tokio::test]
async fn ports_over_spdy_in_a_websocket() -> Result {
    let story = Story::begin().await?;
    let (pod, _) = echo_pod(&story, "tunnel").await?;
    let url = story.client.forward_url(&pod, &[]).await?;
    connections_end_apart(Spdy::tunnel(&url).await?).await?;
    story.finish().await
}

/// Of several connections one is reset, one ends in order, one goes to a port where
/// nobody listens; the others go on as if nothing had been.
async fn connections_end_apart(mut spdy: Spdy) -> Result {
    let mut pairs = Vec::new();
    for request in 0..5 {
        let pair = spdy.forward(PORT, request).await?;
        echoes(&mut spdy, pair, b"first").await?;
        pairs.push(pair);
    }
    spdy.send.reset(pairs[1].data).await?;
    spdy.send.end(pairs[2].data).await?;
    assert_eq!(spdy.receive.stream(pairs[2].data).await?, b"");
    let refused = spdy.forward(1, 9).await?;
    let said = spdy.receive.stream(refused.error).await?;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("port 1 "), "{said}");
    for pair in [pairs[0], pairs[3], pairs[4]] {
        echoes(&mut spdy, pair, b"still here").await?;
    }
    // New ones can be opened too.
    let pair = spdy.forward(PORT, 10).await?;
    echoes(&mut spdy, pair, b"late").await?;
    for pair in [pairs[0], pairs[3], pairs[4], pair] {
        spdy.send.end(pair.data).await?;
        assert_eq!(spdy.receive.stream(pair.data).await?, b"");
    }
    Ok(())
}

async fn echoes(spdy: &mut Spdy, pair: Pair, bytes: &[u8]) -> Result {
    spdy.send.data(pair.data, bytes).await?;
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        match spdy.receive.event().await? {
            Event::Data(id, data) if id == pair.data => got.extend(data),
            Event::Data(id, data) if id == pair.error => {
                anyhow::bail!("error: {}", String::from_utf8_lossy(&data))
            }
            Event::Reset(id) | Event::End(id) if id == pair.data => {
                anyhow::bail!("stream {id} ended after {got:?}")
            }
            Event::Closed => anyhow::bail!("closed after {got:?}"),
            _ => {}
        }
    }
    ensure!(got == bytes, "{got:?} came back for {bytes:?}");
    Ok(())
}

/// Of an exec's streams one output is reset; the other and the status come whole.
#[tokio::test]
async fn an_output_that_is_reset_leaves_the_other() -> Result {
    let story = Story::begin().await?;
    let (_, id) = story.sleeper("reset").await?;
    let script = "read line; yes | head -c 1000000; echo err >&2; read line; exit 4";
    let url = story.client.exec_url(exec_of(&id, &["sh", "-c", script])).await?;
    let mut spdy = Spdy::connect(&url, "v4.channel.k8s.io").await?;
    let [error, stdin, stdout, stderr] = spdy.open(["error", "stdin", "stdout", "stderr"]).await?;
    spdy.send.reset(stdout).await?;
    spdy.send.data(stdin, b"\n").await?;
    assert_eq!(next_of(&mut spdy, stderr).await?, b"err\n");
    spdy.send.data(stdin, b"\n").await?;
    let said = spdy.receive.finish().await?;
    let status: Value = serde_json::from_slice(&said[&error])?;
    // yes | head do not see the reset: their output is thrown away.
    assert_eq!(status["details"]["causes"][0]["message"], "4", "{status}");
    // Over WebSocket the streams are channels of one connection: v5 closes one.
    let url = story.client.exec_url(exec_of(&id, &["sh", "-c", script])).await?;
    let mut socket = WebSocket::connect(&url, "v5.channel.k8s.io").await?;
    for channel in [STDOUT, STDERR] {
        socket.send.close(channel).await?;
    }
    socket.send.data(STDIN, b"\n\n").await?;
    let session = socket.receive.finish().await?;
    let code = &session.status["details"]["causes"][0]["message"];
    assert_eq!(code, "4", "{}", session.status);
    story.finish().await
}

async fn next_of(spdy: &mut Spdy, stream: u32) -> Result<Vec<u8>> {
    loop {
        match spdy.receive.event().await? {
            Event::Data(id, data) if id == stream => return Ok(data),
            Event::Closed => anyhow::bail!("closed before stream {stream} said anything"),
            _ => {}
        }
    }
}

/// Several clients of one pod at the same time, each with connections of its own.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_one_pod_are_apart() -> Result {
    let story = Story::begin().await?;
    let (pod, _) = echo_pod(&story, "many").await?;
    let work: Vec<_> = (0..20_u32)
        .map(|number| {
            let (client, pod): (_, Pod) = (story.client.clone(), pod.clone());
            tokio::spawn(async move {
                let url = client.forward_url(&pod, &[]).await?;
                let mut spdy = match number % 2 {
                    0 => Spdy::connect(&url, "portforward.k8s.io").await?,
                    _ => Spdy::tunnel(&url).await?,
                };
                for request in 0..5 {
                    let pair = spdy.forward(PORT, request).await?;
                    let text = format!("client {number} request {request}");
                    echoes(&mut spdy, pair, text.as_bytes()).await?;
                }
                // A client that leaves without a word takes no other with it.
                Ok::<_, anyhow::Error>(())
            })
        })
        .collect();
    for client in work {
        client.await??;
    }
    story.finish().await
}
