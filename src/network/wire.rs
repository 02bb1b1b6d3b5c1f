//! Blocking netlink: what rtnetlink and nfnetlink have in common.
//!
//! The kernel handles a request inside `send`, so its answers are already queued
//! when that returns: nothing here waits for anybody.
//!
//! A socket belongs to the network namespace of the thread that opened it, for
//! good. So a pod's is opened by a short-lived thread and used from any other.

use std::{fmt, io};

use netlink_sys::{Socket, SocketAddr};

/// A netlink header: length, kind, flags, sequence, port.
pub const HEADER: usize = 16;
/// Largest answer of the kernel to one read (a part of a dump is 32 KiB at most).
const ANSWER: usize = 64 * 1024;
/// Requests longer than this need a larger send buffer than sockets have.
const SEND_BUFFER: usize = 128 * 1024;

const NLM_F_REQUEST: u16 = 0x1;
pub const NLM_F_ACK: u16 = 0x4;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Of an error: the request is not repeated in it (NETLINK_CAP_ACK).
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A request that failed: what was done, to what, and what the kernel said.
#[derive(Debug)]
pub struct Error {
    operation: &'static str,
    object: String,
    source: io::Error,
    /// The kernel's own words (extended acknowledgement); may be empty.
    detail: String,
}

impl Error {
    pub fn new(operation: &'static str, object: impl Into<String>, source: io::Error) -> Error {
        Error {
            operation,
            object: object.into(),
            source,
            detail: String::new(),
        }
    }

    /// The error number, 0 when it did not come from the kernel.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }

    fn refused(operation: &'static str, object: &str, refusal: Refusal) -> Error {
        Error {
            operation,
            object: object.to_owned(),
            source: io::Error::from_raw_os_error(refusal.errno),
            detail: refusal.detail,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.operation, self.object, self.source)?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The kernel's no.
#[derive(Debug)]
struct Refusal {
    errno: i32,
    detail: String,
}

/// One message of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub kind: u16,
    flags: u16,
    sequence: u32,
    /// With its header, as the packet crates parse it.
    pub whole: &'a [u8],
}

/// An open netlink socket.
pub struct Wire {
    socket: Socket,
    sequence: u32,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl Wire {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(protocol: isize, name: &'static str) -> Result<Wire, Error> {
        let open = |source| Error::new("open netlink socket", name, source);
        let mut socket = Socket::new(protocol).map_err(open)?;
        socket.bind_auto().map_err(open)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(open)?;
        // Errors say why in words, and don't repeat the request.
        socket.set_ext_ack(true).map_err(open)?;
        socket.set_cap_ack(true).map_err(open)?;
        Ok(Wire { socket, sequence: 0 })
    }

    /// The number for the next message.
    pub fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends messages, of which the one with the number `last` asks for an
    /// acknowledgement or a dump, and hands every data message of the answer to
    /// `each`. The first refusal of any message is the result.
    pub fn exchange(
        &self,
        request: &[u8],
        last: u32,
        operation: &'static str,
        object: &str,
        mut each: impl FnMut(Message<'_>) -> io::Result<()>,
    ) -> Result<(), Error> {
        let failed = |source| Error::new(operation, object, source);
        if request.len() > SEND_BUFFER {
            rustix::net::sockopt::set_socket_send_buffer_size_force(&self.socket, request.len() * 2)
                .map_err(|e| failed(e.into()))?;
        }
        retry(|| self.socket.send(request, 0)).map_err(failed)?;
        let mut refusal = None;
        let mut ended = false;
        let mut buffer = Vec::with_capacity(ANSWER);
        // After the last answer the queue is read until it is empty, so that
        // nothing is left for the next request; a long dump is refilled by reads.
        loop {
            buffer.clear();
            match retry(|| self.socket.recv(&mut buffer, libc::MSG_DONTWAIT)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(failed(e)),
            }
            for message in messages(&buffer) {
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        ended |= message.sequence == last;
                        if let Err(no) = verdict(message) {
                            refusal.get_or_insert(no);
                        }
                    }
                    _ => each(message).map_err(failed)?,
                }
            }
        }
        match refusal {
            Some(refusal) => Err(Error::refused(operation, object, refusal)),
            None if ended => Ok(()),
            None => Err(failed(io::Error::other("the kernel did not answer"))),
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// The messages of one answer.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(word(rest, 0)?).ok()?;
        let whole = rest.get(..length.max(HEADER))?;
        let message = Message {
            kind: half(whole, 4)?,
            flags: half(whole, 6)?,
            sequence: word(whole, 8)?,
            whole,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// What an acknowledgement (or the end of a dump) says.
fn verdict(message: Message<'_>) -> Result<(), Refusal> {
    let body = message.whole.get(HEADER..).unwrap_or_default();
    let code = word(body, 0).map_or(0, |word| i32::from_ne_bytes(word.to_ne_bytes()));
    if code >= 0 {
        return Ok(());
    }
    // Error number, then the request (its header alone when capped), then attributes.
    let mut attributes = 4;
    if message.kind == NLMSG_ERROR {
        let repeated = if message.flags & NLM_F_CAPPED == 0 {
            word(body, 4)
        } else {
            None
        };
        attributes += repeated
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(HEADER)
            .next_multiple_of(4);
    }
    let mut detail = String::new();
    if message.flags & NLM_F_ACK_TLVS != 0 {
        for (kind, value) in attributes_of(body.get(attributes..).unwrap_or_default()) {
            if kind == NLMSGERR_ATTR_MSG {
                detail = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            }
        }
    }
    Err(Refusal {
        errno: code.saturating_neg(),
        detail,
    })
}

/// Netlink attributes: kind (without its flags) and value.
pub fn attributes_of(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(rest, 0)?);
        let kind = half(rest, 2)? & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A list of netlink attributes being written. Numbers are big-endian, as
/// netfilter wants them.
#[derive(Clone, Debug, Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    pub const NESTED: u16 = 0x8000;

    pub fn new() -> Attributes {
        Attributes::default()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Attributes {
        // No attribute of ours comes near 64 KiB: elements are sent in parts.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub fn number(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn text(self, kind: u16, value: &str) -> Attributes {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub fn nested(self, kind: u16, value: &Attributes) -> Attributes {
        self.bytes(kind | Attributes::NESTED, &value.0)
    }
}

/// Writes one message, header and body.
pub fn put(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, body: &[u8]) {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
