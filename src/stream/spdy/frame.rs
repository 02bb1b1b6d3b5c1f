//! SPDY/3.1 frames: heads and bodies as bytes, nothing of connections.
//!
//! Every frame has a head of 8 bytes. Control: 1 bit set, 15 bits of version, 16
//! of type, 8 of flags, 24 of length. Data: 1 bit clear, 31 bits of stream id, 8
//! of flags, 24 of length.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of every frame's head.
pub const HEAD: usize = 8;
/// Most bytes of a control frame's body: a compressed header block and its ids.
pub const MAX_CONTROL: usize = 64 * 1024;
/// The flag that ends the sender's half of a stream.
pub const FIN: u8 = 1;
/// The flag of a SYN_STREAM whose receiver may not send.
pub const UNIDIRECTIONAL: u8 = 2;

const VERSION: u16 = 3;
const ID: u32 = 0x7fff_ffff;
const INITIAL_WINDOW: u32 = 7;

/// What is wrong with what came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("spdy version {0}, not 3")]
    Version(u16),
    #[error("spdy control frame of {0} bytes")]
    TooLong(usize),
    #[error("spdy frame of type {0} is malformed")]
    Malformed(u16),
    #[error("spdy header block does not decompress")]
    Compression,
    #[error("spdy header block is too large")]
    HeadersTooLarge,
    #[error("spdy header block is malformed")]
    Headers,
    #[error("spdy peer does not read its replies")]
    Flood,
}

/// The types of control frames.
pub mod kind {
    pub const SYN_STREAM: u16 = 1;
    pub const SYN_REPLY: u16 = 2;
    pub const RST_STREAM: u16 = 3;
    pub const SETTINGS: u16 = 4;
    pub const PING: u16 = 6;
    pub const GOAWAY: u16 = 7;
    pub const HEADERS: u16 = 8;
    pub const WINDOW_UPDATE: u16 = 9;
}

/// Why a stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetStatus {
    ProtocolError = 1,
    InvalidStream = 2,
    RefusedStream = 3,
    Cancel = 5,
}

impl ResetStatus {
    fn code(self) -> u32 {
        match self {
            ResetStatus::ProtocolError => 1,
            ResetStatus::InvalidStream => 2,
            ResetStatus::RefusedStream => 3,
            ResetStatus::Cancel => 5,
        }
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    Control {
        version: u16,
        kind: u16,
        flags: u8,
        length: usize,
    },
    Data {
        id: u32,
        fin: bool,
        length: usize,
    },
}

/// The body of a control frame; header blocks are still compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    SynStream {
        id: u32,
        fin: bool,
        unidirectional: bool,
        block: Bytes,
    },
    /// A block that only has to pass through the decompression: SYN_REPLY or HEADERS.
    Headers {
        id: u32,
        fin: bool,
        block: Bytes,
    },
    RstStream {
        id: u32,
    },
    /// SETTINGS, with the initial window for new streams when it has one.
    Settings {
        initial_window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway,
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    /// A type that this version does not have: ignored.
    Unknown,
}

/// Reads a head.
pub fn head(bytes: [u8; HEAD]) -> Head {
    let mut bytes = bytes.as_slice();
    let first = bytes.get_u32();
    let flags = bytes.get_u8();
    // 24 bits fit.
    let length = usize::try_from(bytes.get_uint(3)).unwrap_or(usize::MAX);
    if first & !ID == 0 {
        Head::Data {
            id: first,
            fin: flags & FIN != 0,
            length,
        }
    } else {
        let [a, b, c, d] = first.to_be_bytes();
        Head::Control {
            version: u16::from_be_bytes([a & 0x7f, b]),
            kind: u16::from_be_bytes([c, d]),
            flags,
            length,
        }
    }
}

/// Checks the head of a control frame before its body is read.
pub fn check(version: u16, length: usize) -> Result<(), Error> {
    if version != VERSION {
        return Err(Error::Version(version));
    }
    if length > MAX_CONTROL {
        return Err(Error::TooLong(length));
    }
    Ok(())
}

/// Reads the body of a control frame.
pub fn control(kind: u16, flags: u8, mut body: Bytes) -> Result<Control, Error> {
    let need = match kind {
        kind::SYN_STREAM => 10,
        kind::SYN_REPLY | kind::HEADERS | kind::SETTINGS | kind::PING => 4,
        kind::RST_STREAM | kind::GOAWAY | kind::WINDOW_UPDATE => 8,
        _ => return Ok(Control::Unknown),
    };
    if body.len() < need {
        return Err(Error::Malformed(kind));
    }
    let fin = flags & FIN != 0;
    let first = body.get_u32();
    let id = first & ID;
    let stream = |id: u32| {
        if id == 0 {
            Err(Error::Malformed(kind))
        } else {
            Ok(id)
        }
    };
    Ok(match kind {
        kind::SYN_STREAM => {
            // Associated stream, priority and slot: nothing here depends on them.
            body.advance(6);
            let unidirectional = flags & UNIDIRECTIONAL != 0;
            Control::SynStream {
                id: stream(id)?,
                fin,
                unidirectional,
                block: body,
            }
        }
        kind::SYN_REPLY | kind::HEADERS => Control::Headers {
            id: stream(id)?,
            fin,
            block: body,
        },
        kind::RST_STREAM => Control::RstStream { id: stream(id)? },
        kind::SETTINGS => settings(first, body)?,
        kind::PING => Control::Ping { id: first },
        kind::GOAWAY => Control::GoAway,
        _ => Control::WindowUpdate {
            id,
            delta: body.get_u32() & ID,
        },
    })
}

fn settings(count: u32, mut body: Bytes) -> Result<Control, Error> {
    let malformed = Error::Malformed(kind::SETTINGS);
    let count = usize::try_from(count).map_err(|_| malformed)?;
    if count > body.len() / 8 {
        return Err(malformed);
    }
    let mut initial_window = None;
    for _ in 0..count {
        let (id, value) = (body.get_u32() & 0x00ff_ffff, body.get_u32());
        if id == INITIAL_WINDOW {
            initial_window = Some(value & ID);
        }
    }
    Ok(Control::Settings { initial_window })
}

/// Appends the head of a data frame; at most 2^24 - 1 bytes follow it.
pub fn put_data_head(output: &mut BytesMut, id: u32, fin: bool, length: usize) {
    output.put_u32(id & ID);
    output.put_u8(if fin { FIN } else { 0 });
    output.put_uint(u64::try_from(length).unwrap_or_default(), 3);
}

/// Appends a control frame.
pub fn put_control(output: &mut BytesMut, kind: u16, flags: u8, body: &[&[u8]]) {
    output.put_u16(0x8000 | VERSION);
    output.put_u16(kind);
    output.put_u8(flags);
    let length: usize = body.iter().map(|part| part.len()).sum();
    output.put_uint(u64::try_from(length).unwrap_or_default(), 3);
    for part in body {
        output.put_slice(part);
    }
}

/// Appends a SYN_STREAM; the client's side, for tests and tools.
pub fn put_syn_stream(output: &mut BytesMut, id: u32, flags: u8, block: &[u8]) {
    put_control(
        output,
        kind::SYN_STREAM,
        flags,
        &[&id.to_be_bytes(), &[0; 6], block],
    );
}

pub fn put_syn_reply(output: &mut BytesMut, id: u32, block: &[u8]) {
    put_control(output, kind::SYN_REPLY, 0, &[&id.to_be_bytes(), block]);
}

pub fn put_reset(output: &mut BytesMut, id: u32, status: ResetStatus) {
    let body: [&[u8]; 2] = [&id.to_be_bytes(), &status.code().to_be_bytes()];
    put_control(output, kind::RST_STREAM, 0, &body);
}

pub fn put_ping(output: &mut BytesMut, id: u32) {
    put_control(output, kind::PING, 0, &[&id.to_be_bytes()]);
}

/// Appends a GOAWAY with the last stream that was taken; status 0 or 1 (protocol error).
pub fn put_goaway(output: &mut BytesMut, last: u32, protocol_error: bool) {
    let status = u32::from(protocol_error);
    put_control(
        output,
        kind::GOAWAY,
        0,
        &[&last.to_be_bytes(), &status.to_be_bytes()],
    );
}

/// Appends a SETTINGS with the window that every new stream has to start with.
pub fn put_initial_window(output: &mut BytesMut, window: u32) {
    let body: [&[u8]; 3] = [
        &1_u32.to_be_bytes(),
        &INITIAL_WINDOW.to_be_bytes(),
        &window.to_be_bytes(),
    ];
    put_control(output, kind::SETTINGS, 0, &body);
}

/// Appends a WINDOW_UPDATE; stream 0 is the connection.
pub fn put_window_update(output: &mut BytesMut, id: u32, delta: u32) {
    put_control(
        output,
        kind::WINDOW_UPDATE,
        0,
        &[&id.to_be_bytes(), &delta.to_be_bytes()],
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(mut bytes: BytesMut) -> Control {
        let head_bytes = bytes.split_to(HEAD);
        let Head::Control {
            version,
            kind,
            flags,
            length,
        } = head(head_bytes[..].try_into().unwrap())
        else {
            panic!("data frame");
        };
        check(version, length).unwrap();
        assert_eq!(length, bytes.len());
        control(kind, flags, bytes.freeze()).unwrap()
    }

    #[test]
    fn frames_are_read_as_written() {
        type Put<'a> = &'a dyn Fn(&mut BytesMut);
        let cases: [(Put, Control); 6] = [
            (
                &|o| put_reset(o, 5, ResetStatus::Cancel),
                Control::RstStream { id: 5 },
            ),
            (&|o| put_ping(o, 7), Control::Ping { id: 7 }),
            (&|o| put_goaway(o, 3, false), Control::GoAway),
            (
                &|o| put_initial_window(o, 9),
                Control::Settings {
                    initial_window: Some(9),
                },
            ),
            (
                &|o| put_window_update(o, 1, 8),
                Control::WindowUpdate { id: 1, delta: 8 },
            ),
            (
                &|o| put_syn_stream(o, 1, FIN, b"block"),
                Control::SynStream {
                    id: 1,
                    fin: true,
                    unidirectional: false,
                    block: Bytes::from_static(b"block"),
                },
            ),
        ];
        for (put, expected) in cases {
            let mut output = BytesMut::new();
            put(&mut output);
            assert_eq!(read(output), expected);
        }
        let mut output = BytesMut::new();
        put_data_head(&mut output, 3, true, 70_000);
        let bytes = output[..].try_into().unwrap();
        assert_eq!(
            head(bytes),
            Head::Data {
                id: 3,
                fin: true,
                length: 70_000
            }
        );
    }

    #[test]
    fn the_known_bytes_of_a_ping() {
        let mut output = BytesMut::new();
        put_ping(&mut output, 1);
        assert_eq!(output[..], [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
    }

    #[test]
    fn limits_hold() {
        assert_eq!(check(2, 0), Err(Error::Version(2)));
        assert_eq!(check(3, MAX_CONTROL + 1), Err(Error::TooLong(MAX_CONTROL + 1)));
        let lie = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 7]);
        assert_eq!(
            control(kind::SETTINGS, 0, lie),
            Err(Error::Malformed(kind::SETTINGS))
        );
        assert_eq!(
            control(kind::RST_STREAM, 0, Bytes::from_static(&[0; 8])),
            Err(Error::Malformed(3))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_an_error(
            first in any::<[u8; HEAD]>(),
            kind in 0_u16..12,
            flags in any::<u8>(),
            body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Head::Control { version, length, .. } = head(first) {
                let _ = check(version, length);
            }
            let _ = control(kind, flags, Bytes::from(body));
        }
    }
}
