//! A WebSocket client.

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
};

use super::spdy_client::request;
use crate::stream::websocket::frame::mask;

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

pub struct WebSocketClient {
    pub write: WebSocketWriter,
    pub read: WebSocketReader,
}

pub struct WebSocketWriter(WriteHalf<TcpStream>);
pub struct WebSocketReader(ReadHalf<TcpStream>);

impl WebSocketClient {
    /// Connects, upgrades, and expects to be served what it asks for.
    pub async fn connect(url: &str, protocol: &str) -> WebSocketClient {
        let mut headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            .to_owned();
        if !protocol.is_empty() {
            headers.push_str(&format!("Sec-WebSocket-Protocol: {protocol}\r\n"));
        }
        let (status, answer, stream) = request(url, &headers).await;
        assert_eq!(status, 101, "{answer}");
        assert!(answer.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
        let (read, write) = tokio::io::split(stream);
        WebSocketClient {
            write: WebSocketWriter(write),
            read: WebSocketReader(read),
        }
    }
}

impl WebSocketWriter {
    /// Sends one frame.
    pub async fn frame(&mut self, fin: bool, opcode: u8, payload: &[u8]) {
        let mut bytes = BytesMut::new();
        bytes.put_u8(u8::from(fin) << 7 | opcode);
        match payload.len() {
            short @ ..126 => bytes.put_u8(0x80 | u8::try_from(short).unwrap()),
            medium @ 126..65536 => {
                bytes.put_u8(0x80 | 126);
                bytes.put_u16(u16::try_from(medium).unwrap());
            }
            long => {
                bytes.put_u8(0x80 | 127);
                bytes.put_u64(u64::try_from(long).unwrap());
            }
        }
        let key = [1, 2, 3, 4];
        bytes.put_slice(&key);
        let start = bytes.len();
        bytes.put_slice(payload);
        mask(&mut bytes[start..], key, 0);
        self.0.write_all(&bytes).await.unwrap();
    }

    /// Sends data on a channel of a binary protocol.
    pub async fn data(&mut self, channel: u8, data: &[u8]) {
        let mut payload = vec![channel];
        payload.extend_from_slice(data);
        self.frame(true, BINARY, &payload).await;
    }
}

impl WebSocketReader {
    /// The next frame, its opcode and payload; None at the end.
    pub async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = self.0.read_u8().await.ok()?;
        assert_eq!(first & 0xf0, 0x80, "fragmented");
        let length = match self.0.read_u8().await.unwrap() {
            126 => u64::from(self.0.read_u16().await.unwrap()),
            127 => self.0.read_u64().await.unwrap(),
            short => u64::from(short),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut payload).await.unwrap();
        Some((first & 0x0f, payload))
    }

    /// Reads messages of a binary protocol until the server says goodbye: the data
    /// of each of the five channels.
    pub async fn all(&mut self) -> [Vec<u8>; 5] {
        let mut channels: [Vec<u8>; 5] = Default::default();
        loop {
            match self.frame().await.expect("closed without a close frame") {
                (BINARY, payload) => {
                    let (channel, data) = payload.split_first().unwrap();
                    channels[usize::from(*channel)].extend_from_slice(data);
                }
                (CLOSE, code) => {
                    assert_eq!(code, 1000_u16.to_be_bytes());
                    return channels;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
