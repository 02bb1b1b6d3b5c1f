//! What SPDY and WebSocket connections have in common: bounded queues from and to
//! the client, idleness, a client that is gone, and the orderly end.
//!
//! A connection has two tasks. The reader fills the [`Inbound`] queues; when one is
//! full it stops reading, which is the only back-pressure these clients know
//! (they keep no flow control windows). The writer empties one queue for all
//! [`Outbound`] streams, so what is queued first is sent first: that keeps output
//! before the status. Neither waits for the other, or two full pipes would wait
//! for each other for ever.

use std::{
    future::Future,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::spdy::window::Window;

/// Most bytes of one piece of a stream.
pub(super) const CHUNK: usize = 32 * 1024;
/// Pieces of one stream that wait for their reader.
const INBOUND: usize = 64;
/// Bytes that wait on a whole connection, whatever the number of its streams.
const BUDGET: usize = 16 << 20;
/// Pieces that wait for the socket.
const OUTBOUND: usize = 16;
/// How long the client may take to close its end after ours.
const LINGER: Duration = Duration::from_secs(5);
/// How often a connection that is not read is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The client is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// Why nothing more can be sent on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The client has reset this stream.
    Reset,
    /// The client is gone.
    Gone,
}

/// Bytes from the client, counted in the connection's budget until dropped.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) bytes: Bytes,
    _budget: OwnedSemaphorePermit,
}

/// What comes in on a stream.
#[derive(Debug)]
pub(super) enum Item {
    Data(Chunk),
    /// The client has closed its half.
    End,
    Reset,
}

/// The client's half of a stream. Dropping it throws away what still comes.
#[derive(Debug)]
pub(super) struct Inbound {
    items: mpsc::Receiver<Item>,
}

impl Inbound {
    /// The next item; None after End or Reset, or when the client is gone.
    pub(super) async fn next(&mut self) -> Option<Item> {
        self.items.recv().await
    }
}

/// Makes a stream's queue.
pub(super) fn inbound() -> (mpsc::Sender<Item>, Inbound) {
    let (sender, items) = mpsc::channel(INBOUND);
    (sender, Inbound { items })
}

/// What the writer has to do, in this order.
#[derive(Debug)]
pub(super) enum Out {
    Data {
        channel: u32,
        bytes: Bytes,
    },
    /// Our half of the channel ends.
    Finish {
        channel: u32,
    },
    Reset {
        channel: u32,
    },
    /// Everything is said: close the connection in the protocol's way.
    Close,
}

/// Our half of a stream.
#[derive(Debug)]
pub(super) struct Outbound {
    channel: u32,
    queue: mpsc::Sender<Out>,
    window: Arc<Window>,
    finished: bool,
}

impl Outbound {
    pub(super) fn new(channel: u32, queue: mpsc::Sender<Out>, window: Arc<Window>) -> Outbound {
        Outbound {
            channel,
            queue,
            window,
            finished: false,
        }
    }

    /// Queues the bytes; waits while the client is slower than we are.
    pub(super) async fn write(&self, mut bytes: Bytes) -> Result<(), Lost> {
        while !bytes.is_empty() {
            let granted = self.window.take(bytes.len()).await.map_err(|_| Lost::Reset)?;
            self.write_unlimited(bytes.split_to(granted)).await?;
        }
        Ok(())
    }

    /// Queues bytes, also none, outside flow control.
    pub(super) async fn write_unlimited(&self, bytes: Bytes) -> Result<(), Lost> {
        self.send(Out::Data {
            channel: self.channel,
            bytes,
        })
        .await
    }

    /// Ends our half after all that was written; once. A client that has lost
    /// interest, or is gone, need not know.
    pub(super) async fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            let _ = self
                .send(Out::Finish {
                    channel: self.channel,
                })
                .await;
        }
    }

    /// Ends both halves after all that was written.
    pub(super) async fn reset(&mut self) {
        if !self.finished {
            self.finished = true;
            let _ = self
                .send(Out::Reset {
                    channel: self.channel,
                })
                .await;
        }
    }

    /// Waits until the client resets the stream, which is known here before what it
    /// sent ahead has left the [`Inbound`].
    pub(super) fn was_reset(&self) -> impl Future<Output = ()> + Send + use<> {
        let window = self.window.clone();
        async move { window.was_reset().await }
    }

    async fn send(&self, out: Out) -> Result<(), Lost> {
        if self.window.is_reset() {
            return Err(Lost::Reset);
        }
        self.queue.send(out).await.map_err(|_| Lost::Gone)
    }
}

/// When the connection last carried something.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    last: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Arc<Activity> {
        Arc::new(Activity {
            start: Instant::now(),
            last: AtomicU64::new(0),
        })
    }

    /// A frame was read or written.
    pub(super) fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Waits until nothing was carried for `limit`.
    async fn idle(&self, limit: Duration) {
        loop {
            let until = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// The reader's way into the queues.
#[derive(Debug)]
pub(super) struct Feed {
    budget: Arc<Semaphore>,
    /// The socket under the transport, to see its end while it is not read.
    socket: Option<OwnedFd>,
}

impl Feed {
    pub(super) fn new(socket: Option<OwnedFd>) -> Feed {
        Feed {
            budget: Arc::new(Semaphore::new(BUDGET)),
            socket,
        }
    }

    /// Passes bytes (at most [`CHUNK`]) on; waits while the queue is full and calls
    /// `held` about every second of it. Bytes nobody wants any more are dropped.
    pub(super) async fn data(
        &self,
        to: &mpsc::Sender<Item>,
        bytes: Bytes,
        held: impl FnMut(),
    ) -> Result<(), Gone> {
        if to.is_closed() {
            return Ok(());
        }
        // What small pieces cost besides their bytes is counted too.
        let cost = u32::try_from(bytes.len() + 128).unwrap_or(u32::MAX);
        let send = async {
            let Ok(budget) = self.budget.clone().acquire_many_owned(cost).await else {
                return;
            };
            // An error means that the receiver is not interested any more.
            let _ = to
                .send(Item::Data(Chunk {
                    bytes,
                    _budget: budget,
                }))
                .await;
        };
        let send = async {
            tokio::select! {
                () = send => {}
                () = to.closed() => {}
            }
        };
        self.hold(send, held).await
    }

    /// Passes an end or a reset on, after the data before it.
    pub(super) async fn end(
        &self,
        to: mpsc::Sender<Item>,
        item: Item,
        held: impl FnMut(),
    ) -> Result<(), Gone> {
        let send = async {
            let _ = to.send(item).await;
        };
        self.hold(send, held).await
    }

    /// Waits for `send` while the connection is not read. A client that goes
    /// meanwhile is seen by its socket alone.
    pub(super) async fn hold(
        &self,
        send: impl Future<Output = ()>,
        mut held: impl FnMut(),
    ) -> Result<(), Gone> {
        tokio::pin!(send);
        loop {
            match timeout(LOOK, &mut send).await {
                Ok(()) => return Ok(()),
                Err(_) if self.hung_up() => return Err(Gone),
                Err(_) => held(),
            }
        }
    }

    /// Whether the other end of the socket is closed.
    fn hung_up(&self) -> bool {
        let Some(socket) = &self.socket else { return false };
        let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0)
    }
}

/// How long connections may take for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Without a byte either way.
    pub(super) idle: Duration,
    /// To open the streams that are needed.
    pub(super) creation: Duration,
}

/// Waits until the flag is true, or nobody is left to set it: the same here.
pub(super) async fn flagged(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|flag| *flag).await;
}

/// One connection: its tasks and what is known of it. Dropping it ends both tasks
/// and closes the socket at once.
#[derive(Debug)]
pub(super) struct Link {
    tasks: JoinSet<()>,
    queue: mpsc::Sender<Out>,
    gone: watch::Receiver<bool>,
    activity: Arc<Activity>,
}

impl Link {
    /// A link without tasks yet, the writer's queue, and what the reader sets to
    /// true (or drops) at its end.
    pub(super) fn new(activity: Arc<Activity>) -> (Link, mpsc::Receiver<Out>, watch::Sender<bool>) {
        let (queue, outs) = mpsc::channel(OUTBOUND);
        let (sender, gone) = watch::channel(false);
        let tasks = JoinSet::new();
        (
            Link {
                tasks,
                queue,
                gone,
                activity,
            },
            outs,
            sender,
        )
    }

    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    pub(super) fn queue(&self) -> mpsc::Sender<Out> {
        self.queue.clone()
    }

    /// Waits until the client is gone.
    pub(super) async fn gone(&self) {
        flagged(&mut self.gone.clone()).await;
    }

    /// Waits until nothing was carried for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        self.activity.idle(limit).await;
    }

    /// Sends what is queued, says goodbye, and reads until the client has closed:
    /// a socket that is closed with unread bytes resets the connection, and the
    /// client would lose what is still on its way. `limit` bounds the silence.
    pub(super) async fn close(self, limit: Duration) {
        let flushed = async {
            if self.queue.send(Out::Close).await.is_ok() {
                self.queue.closed().await;
            }
        };
        tokio::select! {
            () = flushed => {}
            () = self.gone() => return,
            () = self.idle(limit) => return,
        }
        tokio::select! {
            () = self.gone() => {}
            () = sleep(LINGER) => {}
        }
    }
}
