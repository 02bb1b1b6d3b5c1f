//! A small WebSocket client for the streaming server, as `kubectl` speaks it:
//! binary messages whose first byte names a channel.

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::Result;

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const STATUS: u8 = 3;
pub const RESIZE: u8 = 4;

/// In v5, closes the channel named by the byte after it.
const CLOSE_SIGNAL: u8 = 255;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;

/// A connection; its halves can be used by two tasks.
#[derive(Debug)]
pub struct WebSocket {
    pub send: Sender,
    pub receive: Receiver,
}

#[derive(Debug)]
pub struct Sender(OwnedWriteHalf);

#[derive(Debug)]
pub struct Receiver(BufReader<OwnedReadHalf>);

/// What a session brought to its end.
#[derive(Debug, Default)]
pub struct Session {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The Status object; null: none came.
    pub status: Value,
}

impl Session {
    pub fn succeeded(&self) -> bool {
        self.status["status"] == "Success"
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl WebSocket {
    /// Connects to the URL of an answer, in `protocol`, such as "v5.channel.k8s.io".
    pub async fn connect(url: &str, protocol: &str) -> Result<WebSocket> {
        let rest = url.strip_prefix("http://").context("not an http URL")?;
        let (host, path) = rest.split_once('/').context("a URL without a path")?;
        let mut stream = TcpStream::connect(host).await?;
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let (receive, send) = stream.into_split();
        let mut receive = BufReader::new(receive);
        let mut status = String::new();
        receive.read_line(&mut status).await?;
        let mut line = String::new();
        while receive.read_line(&mut line).await? > 2 {
            line.clear();
        }
        ensure!(status.starts_with("HTTP/1.1 101"), "answer: {status}");
        Ok(WebSocket {
            send: Sender(send),
            receive: Receiver(receive),
        })
    }
}

impl Sender {
    /// Sends data on a channel.
    pub async fn data(&mut self, channel: u8, data: &[u8]) -> Result {
        let mut payload = vec![channel];
        payload.extend_from_slice(data);
        self.frame(BINARY, &payload).await
    }

    /// Ends a channel, as v5 can.
    pub async fn close(&mut self, channel: u8) -> Result {
        self.frame(BINARY, &[CLOSE_SIGNAL, channel]).await
    }

    pub async fn resize(&mut self, width: u16, height: u16) -> Result {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}");
        self.data(RESIZE, size.as_bytes()).await
    }

    /// The mask is zero: it is there against proxies, of which there are none.
    async fn frame(&mut self, opcode: u8, payload: &[u8]) -> Result {
        let mut head = vec![0x80 | opcode, 0x80 | 127];
        head.extend_from_slice(&u64::try_from(payload.len())?.to_be_bytes());
        head.extend_from_slice(&[0; 4]);
        head.extend_from_slice(payload);
        Ok(self.0.write_all(&head).await?)
    }
}

impl Receiver {
    /// The next message, its channel and data; None once the server has closed.
    pub async fn message(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            let Ok(first) = self.0.read_u8().await else {
                return Ok(None);
            };
            let length = match self.0.read_u8().await? {
                126 => u64::from(self.0.read_u16().await?),
                127 => self.0.read_u64().await?,
                short => u64::from(short),
            };
            let mut payload = vec![0; usize::try_from(length)?];
            self.0.read_exact(&mut payload).await?;
            match first & 0x0f {
                BINARY if payload.first() == Some(&CLOSE_SIGNAL) => {}
                BINARY if payload.is_empty() => bail!("a message without a channel"),
                BINARY => {
                    let channel = payload.remove(0);
                    return Ok(Some((channel, payload)));
                }
                CLOSE => return Ok(None),
                _ => {}
            }
        }
    }

    /// Reads until the server closes.
    pub async fn finish(&mut self) -> Result<Session> {
        let mut session = Session::default();
        let mut status = Vec::new();
        while let Some((channel, data)) = self.message().await? {
            match channel {
                STDOUT => session.stdout.extend_from_slice(&data),
                STDERR => session.stderr.extend_from_slice(&data),
                STATUS => status.extend_from_slice(&data),
                other => bail!("data on channel {other}"),
            }
        }
        if !status.is_empty() {
            session.status = serde_json::from_slice(&status)?;
        }
        Ok(session)
    }

    /// Reads standard output until it holds `text`.
    pub async fn until(&mut self, text: &str) -> Result<String> {
        let mut seen = String::new();
        while !seen.contains(text) {
            let message = self.message().await?;
            let (channel, data) = message.with_context(|| format!("closed before {text:?}: {seen:?}"))?;
            if channel == STDOUT {
                seen.push_str(&String::from_utf8_lossy(&data));
            }
        }
        Ok(seen)
    }
}
