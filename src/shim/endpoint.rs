//! One end of a pipe, or a terminal, that is written without ever blocking: what
//! it does not take waits.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use rustix::{event::epoll, io::Errno};

use super::note;

/// What writing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    All,
    /// The rest waits.
    Part,
    /// Nobody reads any more.
    Gone,
}

/// A descriptor, non-blocking, as an epoll knows it.
#[derive(Debug)]
pub struct Endpoint {
    fd: OwnedFd,
    token: u64,
    watched: Option<epoll::EventFlags>,
    waiting: Vec<u8>,
    /// How much of `waiting` has gone.
    gone: usize,
    /// When it took something last, if something waits.
    since: Option<Instant>,
}

impl Endpoint {
    pub fn new(fd: OwnedFd, token: u64) -> Endpoint {
        Endpoint {
            fd,
            token,
            watched: None,
            waiting: Vec::new(),
            gone: 0,
            since: None,
        }
    }

    pub fn is_waiting(&self) -> bool {
        self.since.is_some()
    }

    pub fn waits_since(&self) -> Option<Instant> {
        self.since
    }

    /// Writes what can be written now. Nothing may be waiting: whoever has data
    /// reads no more of it until it has left.
    pub fn write(&mut self, bytes: &[u8]) -> Written {
        debug_assert!(!self.is_waiting());
        match self.put(bytes) {
            Ok(count) if count == bytes.len() => Written::All,
            Ok(count) => {
                self.waiting = bytes[count..].to_vec();
                self.gone = 0;
                self.since = Some(Instant::now());
                Written::Part
            }
            Err(_) => Written::Gone,
        }
    }

    /// Writes what waits.
    pub fn flush(&mut self) -> Written {
        if !self.is_waiting() {
            return Written::All;
        }
        let Ok(count) = self.put(&self.waiting[self.gone..]) else {
            return Written::Gone;
        };
        self.gone += count;
        if self.gone < self.waiting.len() {
            if count > 0 {
                self.since = Some(Instant::now());
            }
            return Written::Part;
        }
        self.waiting = Vec::new();
        self.since = None;
        Written::All
    }

    fn put(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let mut count = 0;
        while count < bytes.len() {
            match rustix::io::write(&self.fd, &bytes[count..]) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(more) => count += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(count)
    }

    /// Has it watched for these events, or not at all.
    pub fn watch(&mut self, epoll: &OwnedFd, flags: Option<epoll::EventFlags>) {
        if self.watched == flags {
            return;
        }
        let data = epoll::EventData::new_u64(self.token);
        let done = match (self.watched, flags) {
            (None, Some(flags)) => epoll::add(epoll, &self.fd, data, flags),
            (Some(_), Some(flags)) => epoll::modify(epoll, &self.fd, data, flags),
            (_, None) => epoll::delete(epoll, &self.fd),
        };
        match done {
            Ok(()) => self.watched = flags,
            Err(errno) => note(format_args!("watch a client's stream: {errno}")),
        }
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// For both who share the description: of a pipe's end that is ours alone.
pub fn set_nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)
}

#[cfg(test)]
mod tests {
    use rustix::pipe::pipe;

    use super::*;

    #[test]
    fn what_a_pipe_does_not_take_waits_and_goes_later() {
        let (read, write) = pipe().unwrap();
        set_nonblocking(&write).unwrap();
        let mut end = Endpoint::new(write, 1);
        let bytes: Vec<u8> = (0..100_000u32).map(|number| number.to_le_bytes()[0]).collect();
        assert_eq!(end.write(&bytes), Written::Part);
        assert!(end.is_waiting() && end.waits_since().is_some());
        assert_eq!(end.flush(), Written::Part);
        let mut got = Vec::new();
        let mut buffer = [0; 8192];
        while got.len() < bytes.len() {
            let count = rustix::io::read(&read, &mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
            end.flush();
        }
        assert_eq!(got, bytes);
        assert!(!end.is_waiting());
        assert_eq!(end.write(b"more"), Written::All);
    }

    #[test]
    fn nobody_reads() {
        let (read, write) = pipe().unwrap();
        set_nonblocking(&write).unwrap();
        let mut end = Endpoint::new(write, 1);
        drop(read);
        assert_eq!(end.write(b"x"), Written::Gone);
    }
}
