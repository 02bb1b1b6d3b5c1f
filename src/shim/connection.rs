//! One end of a shim's socket: frames in and out, with the descriptors that go
//! with them. Never blocks; the shim drops a client that does not read its
//! answers when its queue is full. berthd stands on it too, under tokio.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{io::Errno, net::RecvFlags};

use super::{
    rights::{self, MAX_FDS},
    ttrpc::{self, HEADER, Header},
};

/// Bytes that wait for the other end; with more, it is taken for dead.
const MAX_QUEUE: usize = 1 << 20;

/// A frame as it came in.
#[derive(Debug)]
pub struct Frame {
    pub header: Header,
    /// Empty when the frame was over the limit and its bytes were skipped.
    pub payload: Vec<u8>,
    /// In the order in which they were sent.
    pub fds: Vec<OwnedFd>,
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    #[error("the other end was closed")]
    ByPeer,
    #[error("the other end does not read: more than {MAX_QUEUE} bytes wait for it")]
    Slow,
    #[error("more than {MAX_FDS} descriptors came with one frame")]
    Descriptors,
    #[error("socket: {0}")]
    Socket(#[from] Errno),
}

/// Where the reader is. A read never goes past the end of a frame: so the
/// descriptors that a read brings belong to the frame it is in.
#[derive(Debug)]
enum Reading {
    Header {
        bytes: [u8; HEADER],
        filled: usize,
    },
    Payload {
        header: Header,
        bytes: Vec<u8>,
        filled: usize,
    },
    /// The payload is over the limit.
    Skip {
        header: Header,
        left: u32,
    },
}

const START: Reading = Reading::Header {
    bytes: [0; HEADER],
    filled: 0,
};

/// A whole frame that waits; its descriptors go with its first byte.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// A connected socket: a descriptor, or whatever lends one.
#[derive(Debug)]
pub struct Connection<S = OwnedFd> {
    socket: S,
    reading: Reading,
    fds: Vec<OwnedFd>,
    /// Of the first, `sent` bytes are gone.
    queue: VecDeque<Outgoing>,
    sent: usize,
    queued: usize,
}

impl<S: AsFd> Connection<S> {
    /// `socket` must be non-blocking.
    pub fn new(socket: S) -> Connection<S> {
        Connection {
            socket,
            reading: START,
            fds: Vec::new(),
            queue: VecDeque::new(),
            sent: 0,
            queued: 0,
        }
    }

    /// The next whole frame, or nothing when more bytes must come first.
    pub fn read(&mut self) -> Result<Option<Frame>, Closed> {
        let mut skipped = [0; 1024];
        loop {
            let target = match &mut self.reading {
                Reading::Header { bytes, filled } => &mut bytes[*filled..],
                Reading::Payload { bytes, filled, .. } => &mut bytes[*filled..],
                Reading::Skip { left, .. } => {
                    let want = usize::try_from(*left).unwrap_or(usize::MAX).min(skipped.len());
                    &mut skipped[..want]
                }
            };
            // Nothing to read is a payload of no bytes, not the end of the stream.
            let count = if target.is_empty() {
                0
            } else {
                match rights::receive(self.socket.as_fd(), target, RecvFlags::DONTWAIT, &mut self.fds) {
                    Ok(0) => return Err(Closed::ByPeer),
                    Ok(count) => count,
                    Err(Errno::AGAIN) => return Ok(None),
                    Err(Errno::INTR) => continue,
                    Err(errno) => return Err(errno.into()),
                }
            };
            if self.fds.len() > MAX_FDS {
                return Err(Closed::Descriptors);
            }
            if let Some((header, payload)) = self.advance(count) {
                return Ok(Some(Frame {
                    header,
                    payload,
                    fds: std::mem::take(&mut self.fds),
                }));
            }
        }
    }

    /// Moves the reader on by `count` bytes; the frame when it is whole.
    fn advance(&mut self, count: usize) -> Option<(Header, Vec<u8>)> {
        match &mut self.reading {
            Reading::Header { bytes, filled } => {
                *filled += count;
                if *filled == HEADER {
                    let header = Header::decode(*bytes);
                    self.reading = match header.payload() {
                        Some(length) => Reading::Payload {
                            header,
                            bytes: vec![0; length],
                            filled: 0,
                        },
                        None => Reading::Skip {
                            header,
                            left: header.length,
                        },
                    };
                }
                None
            }
            Reading::Payload {
                header,
                bytes,
                filled,
            } => {
                *filled += count;
                if *filled < bytes.len() {
                    return None;
                }
                let whole = (*header, std::mem::take(bytes));
                self.reading = START;
                Some(whole)
            }
            Reading::Skip { header, left } => {
                *left = left.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
                if *left > 0 {
                    return None;
                }
                let header = *header;
                self.reading = START;
                Some((header, Vec::new()))
            }
        }
    }

    /// Queues an answer and sends what the socket takes.
    pub fn answer(&mut self, stream: u32, response: &ttrpc::Response) -> Result<(), Closed> {
        let frame = ttrpc::frame(stream, ttrpc::FrameType::Response, response).or_else(|| {
            let status = ttrpc::Status::new(ttrpc::Code::ResourceExhausted, "the answer is over 4 MiB");
            let short = ttrpc::Response {
                status: Some(status),
                payload: Vec::new(),
            };
            ttrpc::frame(stream, ttrpc::FrameType::Response, &short)
        });
        self.send(frame.unwrap_or_default(), Vec::new())
    }

    /// Queues a frame and sends what the socket takes. The descriptors, at most
    /// [`MAX_FDS`], are closed here once they are sent.
    pub fn send(&mut self, frame: Vec<u8>, fds: Vec<OwnedFd>) -> Result<(), Closed> {
        if self.queued > MAX_QUEUE {
            return Err(Closed::Slow);
        }
        self.queued += frame.len();
        self.queue.push_back(Outgoing { bytes: frame, fds });
        self.flush()
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) -> Result<(), Closed> {
        while let Some(frame) = self.queue.front_mut() {
            let rest = frame.bytes.get(self.sent..).unwrap_or_default();
            let fds: Vec<BorrowedFd<'_>> = frame.fds.iter().map(AsFd::as_fd).collect();
            match rights::send(self.socket.as_fd(), rest, &fds) {
                Ok(count) => {
                    frame.fds = Vec::new();
                    self.sent += count;
                    if count == rest.len() {
                        self.queued = self.queued.saturating_sub(frame.bytes.len());
                        self.queue.pop_front();
                        self.sent = 0;
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Closed::ByPeer),
                Err(errno) => return Err(errno.into()),
            }
        }
        // An idle connection holds no memory for its queue.
        self.queue.shrink_to_fit();
        Ok(())
    }

    /// Frames wait until the socket takes more.
    pub fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }
}

impl<S: AsFd> AsFd for Connection<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{IoSlice, Write},
        mem::MaybeUninit,
        os::unix::net::UnixStream,
    };

    use proptest::prelude::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::{ttrpc::FrameType, *};

    fn pair() -> (UnixStream, Connection) {
        let (client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        (client, Connection::new(server.into()))
    }

    fn request(stream: u32, payload: Vec<u8>) -> Vec<u8> {
        let request = ttrpc::Request {
            payload,
            ..ttrpc::Request::default()
        };
        ttrpc::frame(stream, FrameType::Request, &request).unwrap()
    }

    fn send(client: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let count = sendmsg(client, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
        assert_eq!(count, bytes.len());
    }

    proptest! {
        #[test]
        fn frames_come_whole_however_they_are_cut(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 1..6),
            cut in 1usize..97,
        ) {
            let (mut client, mut connection) = pair();
            let bytes: Vec<u8> = payloads.iter().flat_map(|payload| request(7, payload.clone())).collect();
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                client.write_all(piece).unwrap();
                while let Some(frame) = connection.read().unwrap() {
                    let request: ttrpc::Request = prost::Message::decode(&frame.payload[..]).unwrap();
                    seen.push(request.payload);
                }
            }
            prop_assert_eq!(seen, payloads);
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let (mut client, mut connection) = pair();
            client.write_all(&bytes).unwrap();
            drop(client);
            while let Ok(Some(_)) = connection.read() {}
        }
    }

    #[test]
    fn descriptors_stay_with_their_frame() {
        let (client, mut connection) = pair();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(&client, &request(1, vec![1; 300]), &[]);
        send(&client, &request(3, vec![2; 300]), &[null.as_fd(), null.as_fd()]);
        send(&client, &request(5, vec![3; 300]), &[]);
        send(&client, &request(7, vec![4; 300]), &[null.as_fd()]);
        let counts: Vec<(u32, usize)> = std::iter::from_fn(|| connection.read().unwrap())
            .map(|frame| (frame.header.stream, frame.fds.len()))
            .collect();
        assert_eq!(counts, [(1, 0), (3, 2), (5, 0), (7, 1)]);
    }

    #[test]
    fn too_many_descriptors_end_the_connection() {
        let (client, mut connection) = pair();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(&client, &request(1, Vec::new()), &[null.as_fd(); 6]);
        assert!(matches!(connection.read(), Err(Closed::Descriptors)));
    }

    #[test]
    fn an_oversized_frame_is_skipped_and_the_next_is_read() {
        let (mut client, mut connection) = pair();
        let length = u32::try_from(ttrpc::MAX_PAYLOAD + 1).unwrap();
        let header = Header {
            length,
            stream: 9,
            kind: FrameType::Request,
            flags: 0,
        };
        let writer = std::thread::spawn(move || {
            client.write_all(&header.encode()).unwrap();
            client.write_all(&vec![0; ttrpc::MAX_PAYLOAD + 1]).unwrap();
            client.write_all(&request(11, vec![1])).unwrap();
            client
        });
        let mut seen = Vec::new();
        while seen.len() < 2 {
            if let Some(frame) = connection.read().unwrap() {
                seen.push((frame.header.stream, frame.payload.len()));
            }
        }
        assert_eq!(seen, [(9, 0), (11, 3)]);
        writer.join().unwrap();
    }

    #[test]
    fn a_client_that_does_not_read_is_dropped() {
        let (_client, mut connection) = pair();
        let response = ttrpc::Response {
            status: None,
            payload: vec![0; 100_000],
        };
        let end = (0..100).find_map(|stream| connection.answer(stream, &response).err());
        assert!(matches!(end, Some(Closed::Slow)));
    }
}
