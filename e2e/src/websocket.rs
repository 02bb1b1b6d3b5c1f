//! A small WebSocket client for the streaming server, as `kubectl` speaks it:
//! messages whose first byte names a channel. In the base64 protocols the channel
//! is a digit and the rest of the message is base64, all of it text.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf, split};

use crate::{
    Result,
    upgrade::{Bytes, upgrade_trusting},
};

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const STATUS: u8 = 3;
pub const RESIZE: u8 = 4;

/// In v5, closes the channel named by the byte after it.
const CLOSE_SIGNAL: u8 = 255;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;

/// A connection; its halves can be used by two tasks.
#[derive(Debug)]
pub struct WebSocket {
    pub send: Sender,
    pub receive: Receiver,
}

pub struct Sender {
    output: WriteHalf<Box<dyn Bytes>>,
    base64: bool,
}

pub struct Receiver {
    input: BufReader<ReadHalf<Box<dyn Bytes>>>,
    base64: bool,
}

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
        WebSocket::connect_trusting(url, protocol, None).await
    }

    /// The same, over TLS when the URL says so.
    pub async fn connect_trusting(url: &str, protocol: &str, trusted: Option<&Path>) -> Result<WebSocket> {
        let headers = format!(
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
        );
        let (input, output) = split(upgrade_trusting(url, &headers, trusted).await?);
        let base64 = protocol.contains("base64");
        Ok(WebSocket {
            send: Sender { output, base64 },
            receive: Receiver {
                input: BufReader::new(input),
                base64,
            },
        })
    }
}

impl Sender {
    /// Sends data on a channel.
    pub async fn data(&mut self, channel: u8, data: &[u8]) -> Result {
        if self.base64 {
            let text = format!("{channel}{}", STANDARD.encode(data));
            return self.frame(TEXT, text.as_bytes()).await;
        }
        let mut payload = vec![channel];
        payload.extend_from_slice(data);
        self.frame(BINARY, &payload).await
    }

    /// Sends bytes without a channel, as a tunnel does.
    pub async fn message(&mut self, bytes: &[u8]) -> Result {
        self.frame(BINARY, bytes).await
    }

    /// Says that no more will come, as a client that leaves in order does.
    pub async fn goodbye(&mut self) -> Result {
        self.frame(CLOSE, &1000_u16.to_be_bytes()).await
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
        Ok(self.output.write_all(&head).await?)
    }
}

impl Receiver {
    /// The next message, its channel and data; None once the server has closed.
    pub async fn message(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            let Some(mut payload) = self.whole_message().await? else {
                return Ok(None);
            };
            match payload.first() {
                None => bail!("a message without a channel"),
                Some(&CLOSE_SIGNAL) => {}
                Some(digit) if self.base64 => {
                    let channel = digit.checked_sub(b'0').context("no digit")?;
                    return Ok(Some((channel, STANDARD.decode(&payload[1..])?)));
                }
                Some(_) => {
                    let channel = payload.remove(0);
                    return Ok(Some((channel, payload)));
                }
            }
        }
    }

    /// The next message as it came; None once the server has closed.
    pub async fn whole_message(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let Ok(first) = self.input.read_u8().await else {
                return Ok(None);
            };
            let length = match self.input.read_u8().await? {
                126 => u64::from(self.input.read_u16().await?),
                127 => self.input.read_u64().await?,
                short => u64::from(short),
            };
            let mut payload = vec![0; usize::try_from(length)?];
            self.input.read_exact(&mut payload).await?;
            let wanted = if self.base64 { TEXT } else { BINARY };
            match first & 0x0f {
                CLOSE => return Ok(None),
                kind @ (TEXT | BINARY) => {
                    ensure!(kind == wanted, "a message of kind {kind}, not {wanted}");
                    return Ok(Some(payload));
                }
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

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}
