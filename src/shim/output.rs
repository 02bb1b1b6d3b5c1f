//! What the init writes: pipes, or its terminal, read into the log and to the
//! clients that are attached.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::io::Errno;

use super::{
    attach::Attached,
    clock,
    line::{MAX_LINE, Source, Splitter},
    log::Log,
};

/// Reads of one stream before the others have their turn.
const TURN: usize = 8;

/// One stream of the init.
#[derive(Debug)]
struct Stream {
    /// Non-blocking.
    from: OwnedFd,
    source: Source,
    splitter: Splitter,
}

/// The streams of the init that are still open, and the log they go to.
#[derive(Debug, Default)]
pub struct Output {
    streams: [Option<Stream>; 2],
    /// Nothing: the output is read, so that nobody blocks, and dropped.
    log: Option<Log>,
    /// Shared by the streams; made at the first output.
    buffer: Vec<u8>,
}

/// What reading a stream came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pumped {
    /// Nothing is left to read for now.
    Dry,
    /// More may be there: another turn.
    More,
    Ended,
}

impl Output {
    pub fn new(log: Option<Log>) -> Output {
        Output {
            log,
            ..Output::default()
        }
    }

    /// Reads `from`, made non-blocking here, from now on.
    pub fn add(&mut self, from: OwnedFd, source: Source, terminal: bool) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&from)?;
        rustix::fs::fcntl_setfl(&from, flags | rustix::fs::OFlags::NONBLOCK)?;
        let place = &mut self.streams[index(source)];
        *place = Some(Stream {
            from,
            source,
            splitter: Splitter::new(terminal),
        });
        Ok(())
    }

    /// The descriptor of a stream that is open.
    pub fn descriptor(&self, source: Source) -> Option<BorrowedFd<'_>> {
        self.streams[index(source)]
            .as_ref()
            .map(|stream| stream.from.as_fd())
    }

    /// Nobody can write any more, and all was read.
    pub fn is_ended(&self) -> bool {
        self.streams.iter().all(Option::is_none)
    }

    /// Moves what a stream holds to the log and to who is attached, at most some
    /// buffers full, and nothing while one of those has yet to take the last. A
    /// stream that has ended stays until [`Output::close`].
    pub fn pump(&mut self, source: Source, attached: &mut Attached) -> Pumped {
        let Some(stream) = &mut self.streams[index(source)] else {
            return Pumped::Dry;
        };
        if self.buffer.is_empty() {
            self.buffer = vec![0; MAX_LINE];
        }
        let mut pumped = Pumped::More;
        let mut now = 0;
        for _ in 0..TURN {
            if attached.holds(source) {
                break;
            }
            match rustix::io::read(&stream.from, &mut self.buffer[..]) {
                Ok(0) => {
                    pumped = Pumped::Ended;
                    break;
                }
                Ok(count) => {
                    now = clock::now();
                    let read = &self.buffer[..count];
                    attached.deliver(source, read);
                    if let Some(log) = &mut self.log {
                        stream
                            .splitter
                            .feed(read, |tag, content| log.line(now, stream.source, tag, content));
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    pumped = Pumped::Dry;
                    break;
                }
                // EIO: the last process has closed the terminal.
                Err(_) => {
                    pumped = Pumped::Ended;
                    break;
                }
            }
        }
        if let Some(log) = &mut self.log {
            log.flush(now);
        }
        pumped
    }

    /// Writes what a stream still holds of a line, and closes it.
    pub fn close(&mut self, source: Source) {
        let Some(mut stream) = self.streams[index(source)].take() else {
            return;
        };
        if let Some(log) = &mut self.log {
            let now = clock::now();
            stream
                .splitter
                .finish(|tag, content| log.line(now, source, tag, content));
            log.flush(now);
        }
    }

    /// Opens the log file anew. Nothing to do for a container without a log.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.log.as_mut().map_or(Ok(()), Log::reopen)
    }
}

pub fn index(source: Source) -> usize {
    match source {
        Source::Stdout => 0,
        Source::Stderr => 1,
    }
}
