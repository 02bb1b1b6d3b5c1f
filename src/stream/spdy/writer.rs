//! The writing half of a SPDY connection.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

use super::{
    frame::{self, ResetStatus},
    headers::{Encoder, Headers},
};
use crate::stream::link::{Activity, Out};

/// Replies that wait for the socket; a client that provokes more and reads none of
/// them is cut off.
pub(super) const URGENT: usize = 1024;
/// Bytes that are gathered for one write.
const BATCH: usize = 128 * 1024;
/// The largest window of the protocol.
pub(super) const WINDOW: u32 = 0x7fff_ffff;

/// What goes out before any data that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgent {
    Reply {
        id: u32,
    },
    Reset {
        id: u32,
        status: ResetStatus,
    },
    Ping {
        id: u32,
    },
    Window {
        id: u32,
        delta: u32,
    },
    /// An empty DATA frame, which says nothing: it finds out whether the client's
    /// socket is still there.
    Probe {
        id: u32,
    },
    /// The client has broken the protocol: the last frame of the connection.
    ProtocolError,
}

/// Writes until the connection is to be closed or cannot be written to.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    mut output: W,
    mut urgents: mpsc::Receiver<Urgent>,
    mut outs: mpsc::Receiver<Out>,
    activity: Arc<Activity>,
    last: Arc<AtomicU32>,
) {
    let Ok(encoder) = Encoder::new() else { return };
    let mut frames = Frames {
        buffer: BytesMut::with_capacity(BATCH),
        encoder,
        last,
        open: true,
    };
    frames.announce_windows();
    while frames.open {
        tokio::select! {
            biased;
            Some(urgent) = urgents.recv() => frames.urgent(urgent),
            Some(out) = outs.recv() => frames.out(out),
            else => break,
        }
        while frames.open && frames.buffer.len() < BATCH {
            if let Ok(urgent) = urgents.try_recv() {
                frames.urgent(urgent);
            } else if let Ok(out) = outs.try_recv() {
                frames.out(out);
            } else {
                break;
            }
        }
        // TLS keeps what is not flushed.
        if output.write_all(&frames.buffer).await.is_err() || output.flush().await.is_err() {
            return;
        }
        frames.buffer.clear();
        activity.touch();
    }
    // The client sees the end of the connection; an error is its end already.
    let _ = output.shutdown().await;
}

/// Frames that wait for their write.
struct Frames {
    buffer: BytesMut,
    encoder: Encoder,
    last: Arc<AtomicU32>,
    open: bool,
}

impl Frames {
    /// Clients that keep windows may send without waiting for us: what holds them
    /// back is the socket. The others ignore both frames.
    fn announce_windows(&mut self) {
        frame::put_initial_window(&mut self.buffer, WINDOW);
        frame::put_window_update(&mut self.buffer, 0, WINDOW - super::window::DEFAULT);
    }

    fn urgent(&mut self, urgent: Urgent) {
        match urgent {
            Urgent::Reply { id } => match self.encoder.encode(&Headers::default()) {
                Ok(block) => frame::put_syn_reply(&mut self.buffer, id, &block),
                Err(_) => self.goaway(true),
            },
            Urgent::Reset { id, status } => frame::put_reset(&mut self.buffer, id, status),
            Urgent::Ping { id } => frame::put_ping(&mut self.buffer, id),
            Urgent::Window { id, delta } => frame::put_window_update(&mut self.buffer, id, delta),
            Urgent::Probe { id } => frame::put_data_head(&mut self.buffer, id, false, 0),
            Urgent::ProtocolError => self.goaway(true),
        }
    }

    fn out(&mut self, out: Out) {
        match out {
            Out::Data { channel, bytes } => {
                frame::put_data_head(&mut self.buffer, channel, false, bytes.len());
                self.buffer.extend_from_slice(&bytes);
            }
            Out::Finish { channel } => frame::put_data_head(&mut self.buffer, channel, true, 0),
            Out::Reset { channel } => frame::put_reset(&mut self.buffer, channel, ResetStatus::Cancel),
            Out::Close => self.goaway(false),
        }
    }

    fn goaway(&mut self, protocol_error: bool) {
        frame::put_goaway(
            &mut self.buffer,
            self.last.load(Ordering::Relaxed),
            protocol_error,
        );
        self.open = false;
    }
}
