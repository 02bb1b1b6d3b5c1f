//! A SPDY client that keeps no windows, as the real ones.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
};

use crate::stream::spdy::{
    frame::{self, Control, FIN, Head, ResetStatus},
    headers::{Decoder, Encoder, Headers},
};

/// Splits a URL into its host with port and its path.
pub fn split(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").unwrap().1;
    let slash = rest.find('/').unwrap();
    rest.split_at(slash)
}

/// Sends a request and reads the head of the answer: its status and its text.
pub async fn request(url: &str, headers: &str) -> (u16, String, TcpStream) {
    let (host, path) = split(url);
    let mut stream = TcpStream::connect(host).await.unwrap();
    let text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.to_lowercase(), stream)
}

/// What the server does.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Reply(u32),
    Data(u32, Bytes),
    Fin(u32),
    Reset(u32),
    Ping(u32),
    GoAway,
    /// The connection is closed.
    Closed,
}

/// The sending half of a client.
pub struct SpdyWriter<W = WriteHalf<TcpStream>> {
    output: W,
    encoder: Encoder,
    next: u32,
}

/// The receiving half of a client.
pub struct SpdyReader<R = ReadHalf<TcpStream>> {
    input: R,
    decoder: Decoder,
}

pub struct SpdyClient {
    pub write: SpdyWriter,
    pub read: SpdyReader,
}

impl SpdyClient {
    /// Connects and upgrades.
    pub async fn connect(url: &str, versions: &str) -> SpdyClient {
        let headers =
            format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {versions}\r\n");
        let (status, answer, stream) = request(url, &headers).await;
        assert_eq!(status, 101, "{answer}");
        assert!(
            answer.contains("connection: upgrade\r\n") && answer.contains("upgrade: spdy/3.1\r\n"),
            "{answer}"
        );
        assert!(!answer.contains("connection: close"), "{answer}");
        let (input, output) = tokio::io::split(stream);
        SpdyClient {
            write: SpdyWriter {
                output,
                encoder: Encoder::new().unwrap(),
                next: 1,
            },
            read: SpdyReader {
                input,
                decoder: Decoder::default(),
            },
        }
    }

    /// Opens a stream of a remote command for each type and waits for the replies.
    pub async fn open(&mut self, types: &[&str]) -> HashMap<String, u32> {
        let mut ids = HashMap::new();
        for kind in types {
            ids.insert(
                kind.to_string(),
                self.write.open([("streamtype", *kind)].into()).await,
            );
        }
        for _ in types {
            assert!(matches!(self.read.event().await, Event::Reply(_)));
        }
        ids
    }

    /// Opens the two streams of a forwarded connection: error, then data.
    pub async fn open_pair(&mut self, port: u16, request: &str) -> (u32, u32) {
        let port = port.to_string();
        let ids = self.write.open_pair(&port, request).await;
        for _ in 0..2 {
            assert!(matches!(self.read.event().await, Event::Reply(_)));
        }
        ids
    }
}

impl SpdyWriter {
    pub async fn raw(&mut self, bytes: &[u8]) {
        self.output.write_all(bytes).await.unwrap();
    }

    pub async fn open(&mut self, headers: Headers) -> u32 {
        let block = self.encoder.encode(&headers).unwrap();
        let id = self.next;
        self.next += 2;
        let mut frame = BytesMut::new();
        frame::put_syn_stream(&mut frame, id, 0, &block);
        self.raw(&frame).await;
        id
    }

    /// Opens the error and the data stream of a pair, and does not wait for replies.
    pub async fn open_pair(&mut self, port: &str, request: &str) -> (u32, u32) {
        let mut ids = [0; 2];
        for (id, kind) in ids.iter_mut().zip(["error", "data"]) {
            *id = self
                .open([("streamtype", kind), ("port", port), ("requestid", request)].into())
                .await;
        }
        self.fin(ids[0]).await;
        (ids[0], ids[1])
    }

    pub async fn data(&mut self, id: u32, bytes: &[u8]) {
        let mut frame = BytesMut::new();
        frame::put_data_head(&mut frame, id, false, bytes.len());
        frame.extend_from_slice(bytes);
        self.raw(&frame).await;
    }

    pub async fn fin(&mut self, id: u32) {
        let mut frame = BytesMut::new();
        frame::put_data_head(&mut frame, id, true, 0);
        self.raw(&frame).await;
    }

    pub async fn reset(&mut self, id: u32) {
        let mut frame = BytesMut::new();
        frame::put_reset(&mut frame, id, ResetStatus::Cancel);
        self.raw(&frame).await;
    }

    pub async fn ping(&mut self, id: u32) {
        let mut frame = BytesMut::new();
        frame::put_ping(&mut frame, id);
        self.raw(&frame).await;
    }

    pub async fn goaway(&mut self) {
        let mut frame = BytesMut::new();
        frame::put_goaway(&mut frame, 0, false);
        self.raw(&frame).await;
    }
}

impl SpdyReader {
    /// The next event; announcements of windows are ignored as the clients do.
    pub async fn event(&mut self) -> Event {
        loop {
            let mut bytes = [0; frame::HEAD];
            if self.input.read_exact(&mut bytes).await.is_err() {
                return Event::Closed;
            }
            let head = frame::head(bytes);
            let (Head::Control { length, .. } | Head::Data { length, .. }) = head;
            let mut body = vec![0; length];
            self.input.read_exact(&mut body).await.unwrap();
            let (kind, flags) = match head {
                Head::Data { id, fin: true, .. } if body.is_empty() => return Event::Fin(id),
                Head::Data { id, fin, .. } => {
                    assert!(!fin);
                    return Event::Data(id, body.into());
                }
                Head::Control { kind, flags, .. } => (kind, flags),
            };
            assert_eq!(flags & FIN, 0);
            match frame::control(kind, flags, body.into()).unwrap() {
                Control::Headers { id, block, .. } => {
                    assert_eq!(self.decoder.decode(&block).unwrap(), Headers::default());
                    return Event::Reply(id);
                }
                Control::RstStream { id } => return Event::Reset(id),
                Control::Ping { id } => return Event::Ping(id),
                Control::GoAway => return Event::GoAway,
                Control::Settings { .. } | Control::WindowUpdate { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads to the end: what came on each stream, in the order of first bytes; the
    /// streams must have been ended and the connection with a GOAWAY.
    pub async fn all(&mut self) -> HashMap<u32, Vec<u8>> {
        let mut data: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut said_goodbye = false;
        loop {
            match self.event().await {
                Event::Data(id, bytes) => data.entry(id).or_default().extend_from_slice(&bytes),
                Event::GoAway => said_goodbye = true,
                Event::Closed => break,
                Event::Reply(_) | Event::Fin(_) | Event::Reset(_) | Event::Ping(_) => {}
            }
        }
        assert!(said_goodbye, "closed without GOAWAY");
        data
    }
}
