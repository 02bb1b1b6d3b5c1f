//! Much through each verb in both directions at once: every byte comes back, in order.
//!
//! 256 MiB each, or as many MiB as E2E_STREAM_MIB says; 1024 take a minute.

use std::time::Instant;

use anyhow::{Context, ensure};
use e2e::{
    Result, Spdy, Story, WebSocket,
    spdy::{self, Event},
    streams::{Footprint, attach_of, echo_pod, exec_of},
    websocket::{self, STDIN, STDOUT},
};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

/// How much passes through each of them.
fn mebibytes() -> Result<u64> {
    match std::env::var("E2E_STREAM_MIB") {
        Ok(text) => text.parse().context("E2E_STREAM_MIB is no number"),
        Err(_) => Ok(256),
    }
}

/// A MiB that no other is equal to, in pieces of odd sizes.
fn pieces(number: u64) -> Vec<Vec<u8>> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(1 << 20);
    while bytes.len() < 1 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_ne_bytes());
    }
    bytes.chunks(65_521).map(<[u8]>::to_vec).collect()
}

/// Where what is sent goes.
enum To {
    Spdy(spdy::Sender, u32),
    WebSocket(websocket::Sender),
}

/// Sends, ends the input, and gives what was sent as count and digest. The
/// connection is kept, for one that is closed is a client that has gone.
fn send(mut to: To, mebibytes: u64) -> JoinHandle<Result<(u64, Vec<u8>, To)>> {
    tokio::spawn(async move {
        let (mut count, mut digest) = (0, Sha256::new());
        for number in 0..mebibytes {
            for piece in pieces(number) {
                digest.update(&piece);
                count += u64::try_from(piece.len())?;
                match &mut to {
                    To::Spdy(sender, id) => sender.data(*id, &piece).await?,
                    To::WebSocket(sender) => sender.data(STDIN, &piece).await?,
                }
            }
        }
        match &mut to {
            To::Spdy(sender, id) => sender.end(*id).await?,
            To::WebSocket(sender) => sender.close(STDIN).await?,
        }
        Ok((count, digest.finalize().to_vec(), to))
    })
}

/// Input and output of one SPDY connection, which may be the same stream.
async fn through_spdy(what: &str, spdy: Spdy, input: u32, output: u32) -> Result {
    let (begin, amount) = (Instant::now(), mebibytes()?);
    let Spdy {
        send: sender,
        mut receive,
    } = spdy;
    let sending = send(To::Spdy(sender, input), amount);
    let (mut count, mut digest) = (0, Sha256::new());
    loop {
        match receive.event().await? {
            Event::Data(id, bytes) if id == output => {
                count += u64::try_from(bytes.len())?;
                digest.update(&bytes);
            }
            Event::End(id) if id == output => break,
            Event::Reset(id) if id == output => anyhow::bail!("{what}: reset after {count} bytes"),
            Event::Closed => anyhow::bail!("{what}: closed after {count} bytes"),
            _ => {}
        }
    }
    same(what, begin, sending, (count, digest)).await
}

async fn through_websocket(what: &str, socket: WebSocket) -> Result {
    let (begin, amount) = (Instant::now(), mebibytes()?);
    let WebSocket {
        send: sender,
        mut receive,
    } = socket;
    let sending = send(To::WebSocket(sender), amount);
    let (mut count, mut digest) = (0, Sha256::new());
    while let Some((channel, bytes)) = receive.message().await? {
        if channel == STDOUT {
            count += u64::try_from(bytes.len())?;
            digest.update(&bytes);
        }
    }
    same(what, begin, sending, (count, digest)).await
}

async fn same(
    what: &str,
    begin: Instant,
    sending: JoinHandle<Result<(u64, Vec<u8>, To)>>,
    (count, digest): (u64, Sha256),
) -> Result {
    let (sent, of_sent, _connection) = sending.await??;
    ensure!(count == sent, "{what}: {sent} bytes went and {count} came back");
    ensure!(digest.finalize()[..] == of_sent[..], "{what}: the bytes differ");
    let seconds = begin.elapsed().as_secs_f64();
    eprintln!(
        "{what}: {} MiB each way in {seconds:.1} s, digests are equal",
        sent >> 20
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_passes_both_ways() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (pod, echo) = echo_pod(&story, "volume").await?;
    // What is opened once and kept is no leftover.
    client.sh(&echo, "true").await?;
    let before = match story.node.is_peer() {
        true => None,
        false => Some(Footprint::take(&story, &echo)?),
    };

    let url = client.exec_url(exec_of(&echo, &["cat"])).await?;
    let mut spdy = Spdy::connect(&url, "v4.channel.k8s.io").await?;
    let [_, stdin, stdout, _] = spdy.open(["error", "stdin", "stdout", "stderr"]).await?;
    through_spdy("exec over SPDY", spdy, stdin, stdout).await?;

    let url = client.exec_url(exec_of(&echo, &["cat"])).await?;
    let socket = WebSocket::connect(&url, "v5.channel.k8s.io").await?;
    through_websocket("exec over WebSocket", socket).await?;

    let mut config = story.script("attached", "exec cat");
    (config.stdin, config.stdin_once) = (true, true);
    // Its log holds as much as what passes; it goes with the story's folder.
    let attached = client.run(&pod, config).await?;
    let url = client.attach_url(attach_of(&attached, false)).await?;
    let socket = WebSocket::connect(&url, "v5.channel.k8s.io").await?;
    through_websocket("attach over WebSocket", socket).await?;
    assert_eq!(client.wait_exit(&attached).await?.exit_code, 0);
    client.remove(&attached).await?;

    let url = client.forward_url(&pod, &[]).await?;
    let mut spdy = Spdy::connect(&url, "portforward.k8s.io").await?;
    let pair = spdy.forward(7, 0).await?;
    through_spdy("port-forward over SPDY", spdy, pair.data, pair.data).await?;

    let url = client.forward_url(&pod, &[]).await?;
    let mut spdy = Spdy::tunnel(&url).await?;
    let pair = spdy.forward(7, 0).await?;
    through_spdy("port-forward in a WebSocket", spdy, pair.data, pair.data).await?;

    if let Some(before) = before {
        before.is_back(&story, &echo).await?;
    }
    story.finish().await
}
