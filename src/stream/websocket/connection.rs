//! A WebSocket connection: a reader and a writer task, and its fixed channels.

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, watch},
    time::timeout,
};
use tracing::debug;

use super::{
    channel::{Codec, Decoder, Event},
    frame::{self, Error, Opcode, put_head},
};
use crate::stream::{
    link::{Activity, CHUNK, Feed, Gone, Inbound, Item, Link, Out, Outbound, inbound},
    spdy::window::Window,
};

const READ: usize = 64 * 1024;
/// Bytes that are gathered for one write.
const BATCH: usize = 128 * 1024;
/// Replies that wait for the socket.
const URGENT: usize = 256;
/// How long a client that broke the protocol may take to read that it did.
const FAREWELL: Duration = Duration::from_secs(1);
/// Close codes of RFC 6455, section 7.4.1.
const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;

/// A channel of the connection.
#[derive(Debug)]
pub(in crate::stream) struct Channel {
    /// None for a channel that the client does not send on.
    pub(in crate::stream) inbound: Option<Inbound>,
    pub(in crate::stream) outbound: Outbound,
}

/// What goes out before any data that waits.
#[derive(Debug)]
enum Urgent {
    Pong(Bytes),
    Close(u16),
}

/// Serves `io` with one channel for each of `reads`, which says whether the client
/// may send on it. `read` is what was read of `io` already, `socket` the socket
/// beneath it.
pub(in crate::stream) fn serve<I>(
    io: I,
    read: BytesMut,
    socket: Option<OwnedFd>,
    codec: Codec,
    reads: &[bool],
) -> (Link, Vec<Channel>)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (input, output) = tokio::io::split(io);
    let activity = Activity::new();
    let (mut link, outs, gone) = Link::new(activity.clone());
    let (urgent, urgents) = mpsc::channel(URGENT);
    let mut senders = HashMap::new();
    let mut channels = Vec::new();
    for (number, reads) in (0..=u8::MAX).zip(reads) {
        let inbound = reads.then(|| {
            let (sender, inbound) = inbound();
            senders.insert(number, sender);
            inbound
        });
        let outbound = Outbound::new(u32::from(number), link.queue(), Window::unlimited());
        channels.push(Channel { inbound, outbound });
    }
    let reader = Reader {
        input,
        buffer: read,
        activity: activity.clone(),
        feed: Feed::new(socket),
        urgent,
        channels: senders,
        decoder: Decoder::new(codec),
        fragmented: false,
        last_ping: Bytes::new(),
    };
    link.spawn(reader.run(gone));
    link.spawn(write(output, urgents, outs, activity, codec));
    (link, channels)
}

/// Why reading ends.
enum End {
    Gone,
    Protocol(Error),
}

impl From<Gone> for End {
    fn from(_: Gone) -> End {
        End::Gone
    }
}

impl From<Error> for End {
    fn from(error: Error) -> End {
        End::Protocol(error)
    }
}

/// The reader task's state.
struct Reader<R> {
    input: R,
    buffer: BytesMut,
    activity: Arc<Activity>,
    feed: Feed,
    urgent: mpsc::Sender<Urgent>,
    channels: HashMap<u8, mpsc::Sender<Item>>,
    decoder: Decoder,
    /// Fragments of a message have come, its last one has not.
    fragmented: bool,
    last_ping: Bytes,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self, gone: watch::Sender<bool>) {
        let end = loop {
            if let Err(end) = self.frame().await {
                break end;
            }
        };
        if let End::Protocol(error) = end {
            debug!(%error, "streaming connection ended");
            if self.urgent.try_send(Urgent::Close(PROTOCOL_ERROR)).is_ok() {
                let _ = timeout(FAREWELL, self.urgent.closed()).await;
            }
        }
        let _ = gone.send(true);
    }

    async fn fill(&mut self) -> Result<(), Gone> {
        self.buffer.reserve(READ);
        match self.input.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => Err(Gone),
            Ok(_) => {
                self.activity.touch();
                Ok(())
            }
        }
    }

    async fn frame(&mut self) -> Result<(), End> {
        let head = loop {
            match frame::head(&self.buffer)? {
                Some(head) => break head,
                None => self.fill().await?,
            }
        };
        let _ = self.buffer.split_to(head.size);
        if head.opcode.is_control() {
            return self.control(head).await;
        }
        if (head.opcode == Opcode::Continuation) != self.fragmented {
            return Err(End::Protocol(Error::Fragment));
        }
        self.fragmented = !head.fin;
        let mut offset = 0;
        loop {
            let left = head.length - offset;
            if left > 0 && self.buffer.is_empty() {
                self.fill().await?;
            }
            let size = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(self.buffer.len())
                .min(CHUNK);
            let mut piece = self.buffer.split_to(size);
            frame::mask(&mut piece, head.mask, offset);
            offset += u64::try_from(size).map_err(|_| Error::Length)?;
            let last = offset == head.length;
            if let Some(event) = self.decoder.push(piece.freeze(), last && head.fin)? {
                self.event(event).await?;
            }
            if last {
                return Ok(());
            }
        }
    }

    async fn event(&mut self, event: Event) -> Result<(), Gone> {
        let (urgent, ping) = (&self.urgent, &self.last_ping);
        // The client's pings wait behind what we cannot take yet; a pong now and
        // then tells it that we are alive (RFC 6455, section 5.5.3, allows it).
        let held = || {
            let _ = urgent.try_send(Urgent::Pong(ping.clone()));
        };
        match event {
            Event::Data { channel, bytes } => match self.channels.get(&channel) {
                Some(to) => self.feed.data(to, bytes, held).await,
                // As the peers do: what nobody reads is dropped.
                None => Ok(()),
            },
            Event::Closed { channel } => match self.channels.remove(&channel) {
                Some(to) => self.feed.end(to, Item::End, held).await,
                None => Ok(()),
            },
        }
    }

    async fn control(&mut self, head: frame::Head) -> Result<(), End> {
        let length = usize::try_from(head.length).map_err(|_| Error::Control)?;
        while self.buffer.len() < length {
            self.fill().await?;
        }
        let mut payload = self.buffer.split_to(length);
        frame::mask(&mut payload, head.mask, 0);
        match head.opcode {
            Opcode::Ping => {
                self.last_ping = Bytes::copy_from_slice(&payload);
                match self.urgent.try_send(Urgent::Pong(self.last_ping.clone())) {
                    Err(mpsc::error::TrySendError::Full(_)) => Err(End::Protocol(Error::Flood)),
                    // Without a writer there is only the goodbye to wait for.
                    _ => Ok(()),
                }
            }
            Opcode::Close => {
                // Answered, unless we have said goodbye first.
                if self.urgent.try_send(Urgent::Close(NORMAL)).is_ok() {
                    let _ = timeout(FAREWELL, self.urgent.closed()).await;
                }
                Err(End::Gone)
            }
            _ => Ok(()),
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(
    mut output: W,
    mut urgents: mpsc::Receiver<Urgent>,
    mut outs: mpsc::Receiver<Out>,
    activity: Arc<Activity>,
    codec: Codec,
) {
    let mut frames = Frames {
        buffer: BytesMut::with_capacity(BATCH),
        codec,
        open: true,
    };
    while frames.open {
        tokio::select! {
            biased;
            Some(urgent) = urgents.recv() => frames.urgent(&urgent),
            Some(out) = outs.recv() => frames.out(&out),
            else => break,
        }
        while frames.open && frames.buffer.len() < BATCH {
            if let Ok(urgent) = urgents.try_recv() {
                frames.urgent(&urgent);
            } else if let Ok(out) = outs.try_recv() {
                frames.out(&out);
            } else {
                break;
            }
        }
        if output.write_all(&frames.buffer).await.is_err() || output.flush().await.is_err() {
            return;
        }
        frames.buffer.clear();
        activity.touch();
    }
    let _ = output.shutdown().await;
}

/// Frames that wait for their write.
struct Frames {
    buffer: BytesMut,
    codec: Codec,
    open: bool,
}

impl Frames {
    fn urgent(&mut self, urgent: &Urgent) {
        match urgent {
            Urgent::Pong(payload) => {
                put_head(&mut self.buffer, Opcode::Pong, payload.len());
                self.buffer.extend_from_slice(payload);
            }
            Urgent::Close(code) => self.close(*code),
        }
    }

    fn out(&mut self, out: &Out) {
        match out {
            Out::Data { channel, bytes } => self.codec.put(&mut self.buffer, *channel, bytes),
            // Servers have no close signal: the end of the connection is the end of
            // its channels.
            Out::Finish { .. } | Out::Reset { .. } => {}
            Out::Close => self.close(NORMAL),
        }
    }

    fn close(&mut self, code: u16) {
        put_head(&mut self.buffer, Opcode::Close, 2);
        self.buffer.extend_from_slice(&code.to_be_bytes());
        self.open = false;
    }
}
