//! The reading half of a SPDY connection: frames in, streams and replies out.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{mpsc, watch},
    time::timeout,
};
use tracing::debug;

use super::{
    Stream,
    frame::{self, Control, Head, ResetStatus},
    headers::{Decoder, Headers},
    window::{DEFAULT, Shared, Window},
    writer::{Urgent, WINDOW},
};
use crate::stream::link::{Activity, CHUNK, Feed, Gone, Item, Out, Outbound, inbound};

/// Most streams that are open at the same time; a forwarded connection has two.
pub(super) const MAX_STREAMS: usize = 2048;
const READ: usize = 64 * 1024;
/// How long a client that broke the protocol may take to read that it did.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why reading ends.
#[derive(Debug)]
enum End {
    Gone,
    Protocol(frame::Error),
}

impl From<Gone> for End {
    fn from(_: Gone) -> End {
        End::Gone
    }
}

impl From<frame::Error> for End {
    fn from(error: frame::Error) -> End {
        End::Protocol(error)
    }
}

/// Where bytes come from.
#[derive(Debug)]
pub(super) struct Input<R> {
    pub(super) io: R,
    pub(super) buffer: BytesMut,
    pub(super) activity: Arc<Activity>,
    pub(super) feed: Feed,
}

impl<R: AsyncRead + Unpin> Input<R> {
    /// Reads until `length` bytes are in the buffer.
    async fn fill(&mut self, length: usize) -> Result<(), Gone> {
        while self.buffer.len() < length {
            self.buffer.reserve(READ.max(length));
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return Err(Gone),
                Ok(_) => self.activity.touch(),
            }
        }
        Ok(())
    }
}

/// Where what follows from frames goes.
#[derive(Debug)]
pub(super) struct Replies {
    pub(super) urgent: mpsc::Sender<Urgent>,
    /// None after the client's GOAWAY.
    pub(super) incoming: Option<mpsc::Sender<Stream>>,
    /// The writer's queue, for the streams' own halves.
    pub(super) queue: mpsc::Sender<Out>,
}

impl Replies {
    /// The reader does not wait for the writer.
    fn send(&self, urgent: Urgent) -> Result<(), End> {
        match self.urgent.try_send(urgent) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(End::Protocol(frame::Error::Flood)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(End::Gone),
        }
    }

    fn reset(&self, id: u32, status: ResetStatus) -> Result<(), End> {
        self.send(Urgent::Reset { id, status })
    }
}

/// Sends a frame that says nothing now and then while the connection is not read.
/// The end of a killed client waits behind the bytes that we do not take; but its
/// kernel answers what is sent to it with a reset. A PING would not do: the client's
/// answer can be stuck behind its own data, and then its reading is too.
fn probe(urgent: &mpsc::Sender<Urgent>, id: u32) -> impl FnMut() {
    let mut seconds = 0_u32;
    move || {
        if seconds.is_multiple_of(5) {
            // Replies that wait are a probe too.
            let _ = urgent.try_send(Urgent::Probe { id });
        }
        seconds = seconds.wrapping_add(1);
    }
}

/// A stream, as long as the client may send on it or be sent to.
#[derive(Debug)]
struct Entry {
    /// None after the client's end.
    inbound: Option<mpsc::Sender<Item>>,
    window: Weak<Window>,
    /// Bytes since the last WINDOW_UPDATE.
    received: u32,
}

impl Entry {
    fn is_over(&self) -> bool {
        self.inbound.as_ref().is_none_or(|to| to.is_closed()) && self.window.strong_count() == 0
    }
}

/// The reader task's state.
#[derive(Debug)]
pub(super) struct Reader<R> {
    input: Input<R>,
    replies: Replies,
    decoder: Decoder,
    streams: HashMap<u32, Entry>,
    windows: Arc<Shared>,
    /// The window of new streams.
    initial: u32,
    /// The highest stream id so far.
    last: Arc<AtomicU32>,
    /// Bytes since the last WINDOW_UPDATE of the connection.
    received: u32,
    /// Number of entries at which those that are over are looked for.
    sweep_at: usize,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(input: Input<R>, replies: Replies, last: Arc<AtomicU32>) -> Reader<R> {
        Reader {
            input,
            replies,
            decoder: Decoder::default(),
            streams: HashMap::new(),
            windows: Shared::new(),
            initial: DEFAULT,
            last,
            received: 0,
            sweep_at: 64,
        }
    }

    /// Reads until the client is gone or breaks the protocol.
    pub(super) async fn run(mut self, gone: watch::Sender<bool>) {
        let end = loop {
            if let Err(end) = self.frame().await {
                break end;
            }
        };
        if let End::Protocol(error) = end {
            debug!(%error, "streaming connection ended");
            if self.replies.urgent.try_send(Urgent::ProtocolError).is_ok() {
                let _ = timeout(FAREWELL, self.replies.urgent.closed()).await;
            }
        }
        let _ = gone.send(true);
    }

    async fn frame(&mut self) -> Result<(), End> {
        self.input.fill(frame::HEAD).await?;
        let mut bytes = [0; frame::HEAD];
        bytes.copy_from_slice(&self.input.buffer.split_to(frame::HEAD));
        match frame::head(bytes) {
            Head::Data { id, fin, length } => self.data(id, fin, length).await,
            Head::Control {
                version,
                kind,
                flags,
                length,
            } => {
                frame::check(version, length)?;
                self.input.fill(length).await?;
                let body = self.input.buffer.split_to(length).freeze();
                self.control(frame::control(kind, flags, body)?).await
            }
        }
    }

    /// Passes a data frame on piece by piece, whatever length it claims.
    async fn data(&mut self, id: u32, fin: bool, length: usize) -> Result<(), End> {
        let to = self.streams.get(&id).and_then(|entry| entry.inbound.clone());
        if to.is_none() && (id.is_multiple_of(2) || id > self.last.load(Ordering::Relaxed)) {
            self.replies.reset(id, ResetStatus::InvalidStream)?;
        }
        let mut left = length;
        while left > 0 {
            self.input.fill(1).await?;
            let size = left.min(self.input.buffer.len()).min(CHUNK);
            let bytes = self.input.buffer.split_to(size).freeze();
            if let Some(to) = &to {
                self.input
                    .feed
                    .data(to, bytes, probe(&self.replies.urgent, id))
                    .await?;
            }
            left -= size;
        }
        self.replenish(id, length)?;
        if fin {
            self.end(id).await?;
        }
        Ok(())
    }

    /// The windows we announced are the largest; they are given back by the half.
    fn replenish(&mut self, id: u32, length: usize) -> Result<(), End> {
        let length = u32::try_from(length).unwrap_or(WINDOW);
        self.received = self.received.saturating_add(length);
        if self.received > WINDOW / 2 {
            self.replies.send(Urgent::Window {
                id: 0,
                delta: self.received & WINDOW,
            })?;
            self.received = 0;
        }
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.received = entry.received.saturating_add(length);
            if entry.received > WINDOW / 2 {
                let delta = entry.received & WINDOW;
                entry.received = 0;
                self.replies.send(Urgent::Window { id, delta })?;
            }
        }
        Ok(())
    }

    async fn control(&mut self, control: Control) -> Result<(), End> {
        match control {
            Control::SynStream {
                id,
                fin,
                unidirectional,
                block,
            } => {
                let headers = match self.decoder.decode(&block) {
                    Err(frame::Error::Headers) => None,
                    headers => Some(headers?),
                };
                self.open(id, headers, unidirectional).await?;
                if fin {
                    self.end(id).await?;
                }
            }
            Control::Headers { id, fin, block } => {
                match self.decoder.decode(&block) {
                    Err(frame::Error::Headers) => self.replies.reset(id, ResetStatus::ProtocolError)?,
                    headers => drop(headers?),
                }
                if fin {
                    self.end(id).await?;
                }
            }
            Control::RstStream { id } => self.reset(id).await?,
            Control::Settings { initial_window } => self.settings(initial_window),
            // Even ids would answer pings of ours.
            Control::Ping { id } if id % 2 == 1 => self.replies.send(Urgent::Ping { id })?,
            Control::Ping { .. } | Control::Unknown => {}
            Control::GoAway => self.replies.incoming = None,
            Control::WindowUpdate { id, delta } => self.window_update(id, delta),
        }
        Ok(())
    }

    /// Hands a new stream to whoever serves the connection, or refuses it.
    async fn open(&mut self, id: u32, headers: Option<Headers>, unidirectional: bool) -> Result<(), End> {
        let Some(headers) = headers.filter(|_| id % 2 == 1 && id > self.last.load(Ordering::Relaxed)) else {
            return self.replies.reset(id, ResetStatus::ProtocolError);
        };
        self.last.store(id, Ordering::Relaxed);
        self.sweep();
        let Some(incoming) = self
            .replies
            .incoming
            .clone()
            .filter(|_| self.streams.len() < MAX_STREAMS)
        else {
            return self.replies.reset(id, ResetStatus::RefusedStream);
        };
        let (sender, inbound) = inbound();
        let window = Window::new(self.windows.clone(), self.initial);
        if unidirectional {
            window.reset();
        }
        let entry = Entry {
            inbound: Some(sender),
            window: Arc::downgrade(&window),
            received: 0,
        };
        let outbound = Outbound::new(id, self.replies.queue.clone(), window);
        let stream = Stream {
            id,
            headers,
            inbound,
            outbound,
            urgent: self.replies.urgent.clone(),
        };
        let mut taken = false;
        let send = async {
            taken = incoming.send(stream).await.is_ok();
        };
        self.input.feed.hold(send, || {}).await?;
        if !taken {
            return self.replies.reset(id, ResetStatus::RefusedStream);
        }
        self.streams.insert(id, entry);
        Ok(())
    }

    /// Forgets streams that are over on both sides, now and then.
    fn sweep(&mut self) {
        if self.streams.len() >= self.sweep_at {
            self.streams.retain(|_, entry| !entry.is_over());
            self.sweep_at = (self.streams.len() * 2).clamp(64, MAX_STREAMS);
        }
    }

    async fn end(&mut self, id: u32) -> Result<(), End> {
        if let Some(to) = self.streams.get_mut(&id).and_then(|entry| entry.inbound.take()) {
            self.input.feed.end(to, Item::End, || {}).await?;
        }
        Ok(())
    }

    async fn reset(&mut self, id: u32) -> Result<(), End> {
        let Some(entry) = self.streams.remove(&id) else {
            return Ok(());
        };
        if let Some(window) = entry.window.upgrade() {
            window.reset();
        }
        if let Some(to) = entry.inbound {
            self.input.feed.end(to, Item::Reset, || {}).await?;
        }
        Ok(())
    }

    fn settings(&mut self, initial_window: Option<u32>) {
        let Some(initial) = initial_window else { return };
        self.windows.keep();
        let delta = i64::from(initial) - i64::from(self.initial);
        self.initial = initial;
        for window in self.streams.values().filter_map(|entry| entry.window.upgrade()) {
            window.grow(delta);
        }
    }

    fn window_update(&mut self, id: u32, delta: u32) {
        self.windows.keep();
        if id == 0 {
            self.windows.grow(delta);
        } else if let Some(window) = self.streams.get(&id).and_then(|entry| entry.window.upgrade()) {
            window.grow(i64::from(delta));
        }
    }
}
