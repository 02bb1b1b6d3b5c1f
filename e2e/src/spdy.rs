//! A small SPDY/3.1 client for the streaming server, as crictl and the kubelet speak
//! it: no flow control windows, one zlib stream of headers for a connection.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use berth::stream::spdy::{
    frame::{self, Control, FIN, Head, ResetStatus},
    headers::{Decoder, Encoder, Headers},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, duplex, split};

use crate::{
    Result, WebSocket,
    upgrade::{Bytes, upgrade},
};

/// What the server does.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Reply(u32),
    Data(u32, Vec<u8>),
    /// The server's half of a stream ends.
    End(u32),
    Reset(u32),
    GoAway,
    Closed,
}

/// A connection; its halves can be used by two tasks.
#[derive(Debug)]
pub struct Spdy {
    pub send: Sender,
    pub receive: Receiver,
}

pub struct Sender {
    output: WriteHalf<Box<dyn Bytes>>,
    encoder: Encoder,
    next: u32,
}

pub struct Receiver {
    input: ReadHalf<Box<dyn Bytes>>,
    decoder: Decoder,
}

/// The streams of a forwarded connection.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub data: u32,
    pub error: u32,
}

impl Spdy {
    /// Connects and upgrades; `version` as in "v4.channel.k8s.io".
    pub async fn connect(url: &str, version: &str) -> Result<Spdy> {
        let headers = format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {version}\r\n");
        Spdy::over(upgrade(url, &headers).await?)
    }

    /// Port-forward inside a WebSocket, as newer clients do it. The connection lives
    /// as long as the value.
    pub async fn tunnel(url: &str) -> Result<Spdy> {
        let WebSocket {
            mut send,
            mut receive,
        } = WebSocket::connect(url, "SPDY/3.1+portforward.k8s.io").await?;
        let (near, far) = duplex(64 << 10);
        let (mut input, mut output) = split(far);
        // When either direction ends both do, which closes the socket.
        tokio::spawn(async move {
            let outward = async {
                let mut buffer = vec![0; 32 << 10];
                while let Ok(count @ 1..) = input.read(&mut buffer).await {
                    if send.message(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            };
            let inward = async {
                while let Ok(Some(bytes)) = receive.whole_message().await {
                    if output.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = outward => {}
                () = inward => {}
            }
        });
        Spdy::over(Box::new(near))
    }

    fn over(bytes: Box<dyn Bytes>) -> Result<Spdy> {
        let (input, output) = split(bytes);
        Ok(Spdy {
            send: Sender {
                output,
                encoder: Encoder::new()?,
                next: 1,
            },
            receive: Receiver {
                input,
                decoder: Decoder::default(),
            },
        })
    }

    /// Opens a stream of a remote command for each type and waits for the replies.
    pub async fn open<const N: usize>(&mut self, types: [&str; N]) -> Result<[u32; N]> {
        let mut ids = [0; N];
        for (id, kind) in ids.iter_mut().zip(types) {
            *id = self.send.open([("streamtype", kind)].into()).await?;
        }
        self.replies(N).await?;
        Ok(ids)
    }

    /// Opens the streams of a forwarded connection, error first, as the clients do.
    pub async fn forward(&mut self, port: u16, request: u32) -> Result<Pair> {
        let (port, request) = (port.to_string(), request.to_string());
        let mut ids = [0; 2];
        for (id, kind) in ids.iter_mut().zip(["error", "data"]) {
            let headers = [("streamtype", kind), ("port", &*port), ("requestid", &*request)];
            *id = self.send.open(headers.into()).await?;
        }
        let [error, data] = ids;
        self.send.end(error).await?;
        self.replies(2).await?;
        Ok(Pair { data, error })
    }

    /// Streams that were open before may end meanwhile.
    async fn replies(&mut self, mut count: usize) -> Result {
        while count > 0 {
            match self.receive.event().await? {
                Event::Reply(_) => count -= 1,
                Event::End(_) | Event::Reset(_) => {}
                other => bail!("no reply but {other:?}"),
            }
        }
        Ok(())
    }
}

impl Sender {
    async fn open(&mut self, headers: Headers) -> Result<u32> {
        let (id, block) = (self.next, self.encoder.encode(&headers)?);
        self.next += 2;
        self.frame(|frame| frame::put_syn_stream(frame, id, 0, &block))
            .await?;
        Ok(id)
    }

    pub async fn data(&mut self, id: u32, bytes: &[u8]) -> Result {
        self.frame(|frame| {
            frame::put_data_head(frame, id, false, bytes.len());
            frame.extend_from_slice(bytes);
        })
        .await
    }

    /// Ends our half of a stream.
    pub async fn end(&mut self, id: u32) -> Result {
        self.frame(|frame| frame::put_data_head(frame, id, true, 0)).await
    }

    pub async fn reset(&mut self, id: u32) -> Result {
        self.frame(|frame| frame::put_reset(frame, id, ResetStatus::Cancel))
            .await
    }

    async fn frame(&mut self, put: impl FnOnce(&mut bytes::BytesMut)) -> Result {
        let mut frame = bytes::BytesMut::new();
        put(&mut frame);
        Ok(self.output.write_all(&frame).await?)
    }
}

impl Receiver {
    /// The next event. Announcements of windows are ignored, as the clients do.
    pub async fn event(&mut self) -> Result<Event> {
        loop {
            let mut head = [0; frame::HEAD];
            if self.input.read_exact(&mut head).await.is_err() {
                return Ok(Event::Closed);
            }
            let head = frame::head(head);
            let (Head::Control { length, .. } | Head::Data { length, .. }) = head;
            let mut body = vec![0; length];
            self.input
                .read_exact(&mut body)
                .await
                .context("closed in a frame")?;
            let (kind, flags) = match head {
                Head::Data { id, fin: true, .. } if body.is_empty() => return Ok(Event::End(id)),
                Head::Data { id, fin: false, .. } => return Ok(Event::Data(id, body)),
                Head::Data { .. } => bail!("data in the frame that ends a stream"),
                Head::Control { kind, flags, .. } => (kind, flags),
            };
            ensure!(flags & FIN == 0, "a control frame that ends a stream");
            match frame::control(kind, flags, body.into())? {
                Control::Headers { id, block, .. } => {
                    self.decoder.decode(&block)?;
                    return Ok(Event::Reply(id));
                }
                Control::RstStream { id } => return Ok(Event::Reset(id)),
                Control::GoAway => return Ok(Event::GoAway),
                _ => {}
            }
        }
    }

    /// Reads until the server closes: what came on each stream.
    pub async fn finish(&mut self) -> Result<BTreeMap<u32, Vec<u8>>> {
        let mut all: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        loop {
            match self.event().await? {
                Event::Data(id, bytes) => all.entry(id).or_default().extend_from_slice(&bytes),
                Event::Closed => return Ok(all),
                _ => {}
            }
        }
    }

    /// Reads one stream until the server ends its half; the other streams' events
    /// are thrown away. A reset is an error.
    pub async fn stream(&mut self, id: u32) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        loop {
            match self.event().await? {
                Event::Data(of, bytes) if of == id => data.extend_from_slice(&bytes),
                Event::End(of) if of == id => return Ok(data),
                Event::Reset(of) if of == id => bail!("stream {id} is reset"),
                Event::Closed => bail!("closed before the end of stream {id}"),
                _ => {}
            }
        }
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}
