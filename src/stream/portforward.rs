//! Port-forward: many connections to ports of one sandbox over one connection of a
//! client. What goes wrong with one of them is told on its own error stream and
//! ends nothing else.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tracing::debug;

use super::{
    Backend, Duplex,
    link::{CHUNK, Gone, Inbound, Item, Limits, Link, Outbound, flagged},
    spdy,
    websocket::Channel,
};

/// How long what a client sent before its reset may take to reach the pod.
const AFTER_RESET: Duration = Duration::from_secs(1);
/// Most pairs that wait for their second stream.
const MAX_WAITING: usize = 256;

/// One forwarded connection, on the client's side.
struct Pair {
    port: u16,
    from: Inbound,
    to: Outbound,
    error: Outbound,
    /// The client can be told that the pod has closed its half.
    half_close: bool,
}

/// Serves a SPDY connection.
pub(super) async fn spdy<B: Backend>(
    connection: spdy::Connection,
    backend: Arc<B>,
    sandbox: Arc<str>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    let spdy::Connection { link, mut incoming } = connection;
    let mut waiting = Waiting::default();
    // Dropping it ends the connections to the pod.
    let mut running = JoinSet::new();
    let mut open = true;
    while open || !running.is_empty() || !waiting.halves.is_empty() {
        tokio::select! {
            stream = incoming.recv(), if open => match stream {
                Some(stream) => match waiting.add(stream, limits.creation).await {
                    Ok(Some(pair)) => {
                        running.spawn(forward(backend.clone(), sandbox.clone(), pair));
                    }
                    Ok(None) => {}
                    Err(Gone) => return,
                },
                None => open = false,
            },
            Some(_) = running.join_next() => {}
            () = waiting.expire() => {}
            () = link.gone() => return debug!("port-forward client is gone"),
            () = link.idle(limits.idle) => return debug!("port-forward connection was idle too long"),
            () = flagged(&mut stop) => break,
        }
    }
    drop(running);
    link.close(limits.idle).await;
}

/// Streams that wait for the other one of their pair.
#[derive(Default)]
struct Waiting {
    halves: HashMap<String, Half>,
}

struct Half {
    data: Option<(Inbound, Outbound)>,
    error: Option<Outbound>,
    until: Instant,
}

impl Waiting {
    /// Takes a stream; gives the pair that it completes.
    async fn add(&mut self, stream: spdy::Stream, creation: Duration) -> Result<Option<Pair>, Gone> {
        let port = stream
            .headers
            .get("port")
            .and_then(|port| port.parse::<u16>().ok());
        let is_data = match stream.headers.get("streamtype") {
            Some("data") => Some(true),
            Some("error") => Some(false),
            _ => None,
        };
        let (Some(port), Some(is_data)) = (port.filter(|port| *port > 0), is_data) else {
            stream.refuse().await;
            return Ok(None);
        };
        let id = match stream.headers.get("requestid") {
            Some(id) => id.to_owned(),
            // Clients from before request ids open the error stream first and the
            // data stream right after it.
            None if is_data => format!("stream {}", stream.id.saturating_sub(2)),
            None => format!("stream {}", stream.id),
        };
        if !self.halves.contains_key(&id) && self.halves.len() >= MAX_WAITING {
            stream.refuse().await;
            return Ok(None);
        }
        let until = Instant::now() + creation;
        let half = self.halves.entry(id.clone()).or_insert(Half {
            data: None,
            error: None,
            until,
        });
        if if is_data {
            half.data.is_some()
        } else {
            half.error.is_some()
        } {
            stream.refuse().await;
            return Ok(None);
        }
        let (inbound, outbound) = stream.accept().await?;
        if is_data {
            half.data = Some((inbound, outbound));
        } else {
            half.error = Some(outbound);
        }
        if half.data.is_none() || half.error.is_none() {
            return Ok(None);
        }
        let Some(Half {
            data: Some((from, to)),
            error: Some(error),
            ..
        }) = self.halves.remove(&id)
        else {
            return Ok(None);
        };
        Ok(Some(Pair {
            port,
            from,
            to,
            error,
            half_close: true,
        }))
    }

    /// Waits until a stream has waited too long for its other one, and ends it.
    async fn expire(&mut self) {
        let Some(until) = self.halves.values().map(|half| half.until).min() else {
            return std::future::pending().await;
        };
        sleep_until(until).await;
        let now = Instant::now();
        let late: Vec<Half> = self
            .halves
            .extract_if(|_, half| half.until <= now)
            .map(|(_, half)| half)
            .collect();
        for half in late {
            if let Some(mut error) = half.error {
                let message = Bytes::from_static(b"timed out waiting for the data stream of this connection");
                let _ = error.write(message).await;
                error.finish().await;
            }
            if let Some((_, mut data)) = half.data {
                data.reset().await;
            }
        }
    }
}

/// Connects a pair to its port and copies both ways until both are done.
async fn forward<B: Backend>(backend: Arc<B>, sandbox: Arc<str>, mut pair: Pair) {
    match backend.port_forward(&sandbox, pair.port).await {
        Ok(pod) => copy(&mut pair, pod).await,
        Err(error) => {
            let message = format!("error forwarding port {} to pod {sandbox}: {error}", pair.port);
            debug!(%sandbox, port = pair.port, %error, "port-forward failed");
            let _ = pair.error.write(Bytes::from(message)).await;
            pair.to.reset().await;
        }
    }
    // The client waits for this before it forgets the connection. Nothing is written
    // for a connection that broke later: clients end all of them at any message.
    pair.error.finish().await;
}

/// How a direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// With its end of file.
    Whole,
    /// Nothing of the connection is of use any more.
    Broken,
}

async fn copy(pair: &mut Pair, pod: Box<dyn Duplex>) {
    let (read, write) = tokio::io::split(pod);
    let reset = pair.to.was_reset();
    let half_close = pair.half_close;
    let both = async {
        let (up, down) = (upload(&mut pair.from, write), download(read, &mut pair.to));
        tokio::pin!(up, down);
        tokio::select! {
            ended = &mut up => if ended == Ended::Whole {
                down.await;
            },
            ended = &mut down => if ended == Ended::Whole && half_close {
                up.await;
            },
        }
    };
    tokio::select! {
        () = both => {}
        // The reset itself may be stuck behind data that the pod does not take.
        () = async { reset.await; sleep(AFTER_RESET).await } => {}
    }
}

/// From the client to the pod.
async fn upload(from: &mut Inbound, write: WriteHalf<Box<dyn Duplex>>) -> Ended {
    let mut write = Some(write);
    loop {
        match (from.next().await, &mut write) {
            (Some(Item::Data(chunk)), Some(to)) => {
                if let Err(error) = to.write_all(&chunk.bytes).await {
                    debug!(%error, "the pod reads no more of a forwarded connection");
                    write = None;
                }
            }
            // What the pod still says is of use: the client may go on talking.
            (Some(Item::Data(_)), None) => {}
            (Some(Item::End), to) => {
                if let Some(to) = to {
                    // An error is a pod that has closed already.
                    let _ = to.shutdown().await;
                }
                return Ended::Whole;
            }
            (Some(Item::Reset) | None, _) => return Ended::Broken,
        }
    }
}

/// From the pod to the client.
async fn download(mut read: ReadHalf<Box<dyn Duplex>>, to: &mut Outbound) -> Ended {
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < CHUNK / 4 {
            buffer.reserve(CHUNK);
        }
        match read.read_buf(&mut buffer).await {
            Ok(0) => {
                to.finish().await;
                return Ended::Whole;
            }
            Ok(_) => {}
            Err(error) => {
                debug!(%error, "forwarded connection broke");
                to.reset().await;
                return Ended::Broken;
            }
        }
        if to.write(buffer.split().freeze()).await.is_err() {
            return Ended::Broken;
        }
    }
}

/// Serves a WebSocket connection that has a data and an error channel for each port;
/// the port, as 16 bits little endian, is the first message of both.
pub(super) async fn websocket<B: Backend>(
    link: Link,
    channels: Vec<Channel>,
    ports: Vec<u16>,
    backend: Arc<B>,
    sandbox: Arc<str>,
    (limits, mut stop): (Limits, watch::Receiver<bool>),
) {
    let mut running = JoinSet::new();
    let mut channels = channels.into_iter();
    for port in ports {
        let (Some(data), Some(error)) = (channels.next(), channels.next()) else {
            return;
        };
        let Some(from) = data.inbound else { return };
        for to in [&data.outbound, &error.outbound] {
            if to
                .write(Bytes::copy_from_slice(&port.to_le_bytes()))
                .await
                .is_err()
            {
                return;
            }
        }
        let pair = Pair {
            port,
            from,
            to: data.outbound,
            error: error.outbound,
            half_close: false,
        };
        running.spawn(forward(backend.clone(), sandbox.clone(), pair));
    }
    tokio::select! {
        () = async { while running.join_next().await.is_some() {} } => {}
        () = link.gone() => return debug!("port-forward client is gone"),
        () = link.idle(limits.idle) => return debug!("port-forward connection was idle too long"),
        () = flagged(&mut stop) => {}
    }
    drop(running);
    link.close(limits.idle).await;
}

/// Serves a WebSocket connection whose one channel carries a SPDY connection.
pub(super) async fn tunnel<B: Backend>(
    link: Link,
    channel: Channel,
    backend: Arc<B>,
    sandbox: Arc<str>,
    (limits, stop): (Limits, watch::Receiver<bool>),
) {
    let Some(from) = channel.inbound else { return };
    let (inner, outer) = duplex(2 * CHUNK);
    let connection = spdy::Connection::serve(inner, BytesMut::new(), None);
    let served = spdy(connection, backend, sandbox, limits, stop);
    let carried = carry(link, from, channel.outbound, outer, limits);
    tokio::join!(served, carried);
}

/// Copies between the tunnel's messages and the SPDY connection inside it.
async fn carry(link: Link, mut from: Inbound, to: Outbound, outer: DuplexStream, limits: Limits) {
    let (mut read, mut write) = tokio::io::split(outer);
    let inward = async {
        while let Some(Item::Data(chunk)) = from.next().await {
            if write.write_all(&chunk.bytes).await.is_err() {
                break;
            }
        }
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            if buffer.capacity() < CHUNK / 4 {
                buffer.reserve(CHUNK);
            }
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) if to.write(buffer.split().freeze()).await.is_err() => break,
                Ok(_) => {}
            }
        }
    };
    let said = async {
        tokio::join!(outward, async {
            inward.await;
        })
    };
    tokio::select! {
        () = link.gone() => return,
        _ = said => {}
    }
    link.close(limits.idle).await;
}
