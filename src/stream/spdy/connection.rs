//! A SPDY connection: a reader and a writer task, and the streams that the client
//! opens.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, atomic::AtomicU32},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use super::{
    frame::ResetStatus,
    headers::Headers,
    reader::{Input, Reader, Replies},
    writer::{URGENT, Urgent, write},
};
use crate::stream::link::{Activity, Feed, Gone, Inbound, Link, Outbound};

/// Streams that wait to be taken by whoever serves the connection.
const INCOMING: usize = 16;

/// A stream that the client has opened and that is to be accepted or refused.
#[derive(Debug)]
pub(in crate::stream) struct Stream {
    pub(in crate::stream) id: u32,
    pub(in crate::stream) headers: Headers,
    pub(in crate::stream) inbound: Inbound,
    pub(in crate::stream) outbound: Outbound,
    pub(super) urgent: mpsc::Sender<Urgent>,
}

impl Stream {
    /// Answers with SYN_REPLY: the client may send now.
    pub(in crate::stream) async fn accept(self) -> Result<(Inbound, Outbound), Gone> {
        self.urgent
            .send(Urgent::Reply { id: self.id })
            .await
            .map_err(|_| Gone)?;
        Ok((self.inbound, self.outbound))
    }

    /// Answers with RST_STREAM.
    pub(in crate::stream) async fn refuse(self) {
        // A client that is gone needs no answer.
        let _ = self
            .urgent
            .send(Urgent::Reset {
                id: self.id,
                status: ResetStatus::RefusedStream,
            })
            .await;
    }
}

/// A connection whose client opens streams.
#[derive(Debug)]
pub(in crate::stream) struct Connection {
    pub(in crate::stream) link: Link,
    /// New streams. Ends when the client says that it opens no more (GOAWAY).
    pub(in crate::stream) incoming: mpsc::Receiver<Stream>,
}

impl Connection {
    /// Serves `io`; `read` is what was read of it already, `socket` the socket
    /// beneath it.
    pub(in crate::stream) fn serve<I>(io: I, read: BytesMut, socket: Option<OwnedFd>) -> Connection
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (input, output) = tokio::io::split(io);
        let activity = Activity::new();
        let (mut link, outs, gone) = Link::new(activity.clone());
        let (urgent, urgents) = mpsc::channel(URGENT);
        let (sender, incoming) = mpsc::channel(INCOMING);
        let last = Arc::new(AtomicU32::new(0));
        let reader = Reader::new(
            Input {
                io: input,
                buffer: read,
                activity: activity.clone(),
                feed: Feed::new(socket),
            },
            Replies {
                urgent,
                incoming: Some(sender),
                queue: link.queue(),
            },
            last.clone(),
        );
        link.spawn(reader.run(gone));
        link.spawn(write(output, urgents, outs, activity, last));
        Connection { link, incoming }
    }
}
