//! The channel protocols: which channel a message is for, read piece by piece, so
//! that a message of any length costs no more memory than a piece.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};

use super::frame::{Error, Opcode, put_head};

/// The byte that, in v5, closes the channel named by the byte after it.
const CLOSE_SIGNAL: u8 = 255;

/// How messages carry channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// A byte with the channel's number, then the data. `closes`: v5's close signal
    /// is understood.
    Binary { closes: bool },
    /// The channel's number as a digit, then the data in base64, as text.
    Base64,
    /// The data of channel 0 and nothing else: a tunnel.
    Raw,
}

/// What a piece of a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Data {
        channel: u8,
        bytes: Bytes,
    },
    /// The client has closed its half of the channel.
    Closed {
        channel: u8,
    },
}

#[derive(Debug)]
enum Message {
    /// Nothing of it has come.
    Start,
    /// A close signal, which is one when the message ends behind its channel: it says the
    /// same however it is cut.
    Signal(Option<u8>),
    /// Of base64 up to 3 characters wait for the rest of their group.
    Data { channel: u8, rest: BytesMut },
}

/// Reads messages.
#[derive(Debug)]
pub struct Decoder {
    codec: Codec,
    message: Message,
}

impl Decoder {
    pub fn new(codec: Codec) -> Decoder {
        Decoder {
            codec,
            message: Message::Start,
        }
    }

    /// Takes the next piece of the message; `last` when the message ends with it.
    pub fn push(&mut self, mut bytes: Bytes, last: bool) -> Result<Option<Event>, Error> {
        let mut event = None;
        if let Message::Start = self.message {
            self.message = match self.start(&mut bytes) {
                Some(message) => message,
                // An empty message says nothing.
                None => return Ok(None),
            };
        }
        match &mut self.message {
            Message::Signal(channel) => {
                for byte in bytes {
                    if channel.replace(byte).is_some() {
                        return Err(Error::CloseSignal);
                    }
                }
            }
            Message::Data { channel, rest } => {
                let channel = *channel;
                if self.codec == Codec::Base64 {
                    bytes = decode(rest, &bytes, last)?;
                }
                event = (!bytes.is_empty()).then_some(Event::Data { channel, bytes });
            }
            Message::Start => {}
        }
        if last {
            if let Message::Signal(channel) = self.message {
                let channel = channel.ok_or(Error::CloseSignal)?;
                event = Some(Event::Closed { channel });
            }
            self.message = Message::Start;
        }
        Ok(event)
    }

    /// Reads what a message starts with; None when there is nothing.
    fn start(&self, bytes: &mut Bytes) -> Option<Message> {
        let data = |channel| Message::Data {
            channel,
            rest: BytesMut::new(),
        };
        if self.codec == Codec::Raw {
            return Some(data(0));
        }
        let first = *bytes.first()?;
        *bytes = bytes.slice(1..);
        Some(match self.codec {
            Codec::Binary { closes: true } if first == CLOSE_SIGNAL => Message::Signal(None),
            Codec::Base64 => data(first.wrapping_sub(b'0')),
            _ => data(first),
        })
    }
}

/// Decodes whole groups of four and leaves the others in `rest`.
fn decode(rest: &mut BytesMut, bytes: &[u8], last: bool) -> Result<Bytes, Error> {
    rest.extend_from_slice(bytes);
    let whole = rest.len() / 4 * 4;
    let groups = rest.split_to(whole);
    if last && !rest.is_empty() {
        return Err(Error::Base64);
    }
    STANDARD
        .decode(groups)
        .map(Bytes::from)
        .map_err(|_| Error::Base64)
}

impl Codec {
    /// Appends a message with data of the channel, which may be empty.
    pub fn put(self, output: &mut BytesMut, channel: u32, bytes: &[u8]) {
        let channel = u8::try_from(channel).unwrap_or(u8::MAX);
        match self {
            Codec::Binary { .. } => {
                put_head(output, Opcode::Binary, bytes.len() + 1);
                output.put_u8(channel);
                output.put_slice(bytes);
            }
            Codec::Base64 => {
                let text = STANDARD.encode(bytes);
                put_head(output, Opcode::Text, text.len() + 1);
                output.put_u8(b'0'.wrapping_add(channel));
                output.put_slice(text.as_bytes());
            }
            Codec::Raw => {
                put_head(output, Opcode::Binary, bytes.len());
                output.put_slice(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V5: Codec = Codec::Binary { closes: true };

    fn data(channel: u8, bytes: &'static str) -> Option<Event> {
        Some(Event::Data {
            channel,
            bytes: Bytes::from_static(bytes.as_bytes()),
        })
    }

    #[test]
    fn the_first_byte_is_the_channel() {
        let mut decoder = Decoder::new(V5);
        assert_eq!(decoder.push("\0foo".into(), true), Ok(data(0, "foo")));
        assert_eq!(decoder.push("\x04".into(), false), Ok(None));
        assert_eq!(decoder.push("bar".into(), false), Ok(data(4, "bar")));
        assert_eq!(decoder.push("baz".into(), true), Ok(data(4, "baz")));
        assert_eq!(decoder.push(Bytes::new(), true), Ok(None));
    }

    #[test]
    fn v5_closes_a_channel() {
        let closed = Ok(Some(Event::Closed { channel: 0 }));
        let mut decoder = Decoder::new(V5);
        assert_eq!(decoder.push(Bytes::from_static(&[255, 0]), true), closed);
        assert_eq!(decoder.push(Bytes::from_static(&[255]), false), Ok(None));
        assert_eq!(decoder.push(Bytes::from_static(&[0]), true), closed);
        assert_eq!(
            decoder.push(Bytes::from_static(&[255, 0, 0]), true),
            Err(Error::CloseSignal)
        );
        assert_eq!(
            Decoder::new(V5).push(Bytes::from_static(&[255]), true),
            Err(Error::CloseSignal)
        );
        // No channel is closed by what turns out to be no signal.
        let mut cut = Decoder::new(V5);
        assert_eq!(cut.push(Bytes::from_static(&[255, 0]), false), Ok(None));
        assert_eq!(cut.push(Bytes::from_static(&[0]), true), Err(Error::CloseSignal));
        let mut v4 = Decoder::new(Codec::Binary { closes: false });
        let data = Event::Data {
            channel: 255,
            bytes: Bytes::from_static(&[0]),
        };
        assert_eq!(v4.push(Bytes::from_static(&[255, 0]), true), Ok(Some(data)));
    }

    #[test]
    fn base64_may_be_cut_anywhere() {
        let mut decoder = Decoder::new(Codec::Base64);
        assert_eq!(decoder.push("0Zm9vC".into(), false), Ok(data(0, "foo")));
        assert_eq!(decoder.push("g==".into(), true), Ok(data(0, "\n")));
        assert_eq!(decoder.push("0Zm9".into(), true), Err(Error::Base64));
    }

    proptest! {
        #[test]
        fn any_pieces_are_read_or_refused(
            codec in prop_oneof![Just(V5), Just(Codec::Base64), Just(Codec::Raw)],
            pieces in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..16), any::<bool>()), 0..16),
        ) {
            let mut decoder = Decoder::new(codec);
            for (piece, last) in pieces {
                if decoder.push(Bytes::from(piece), last).is_err() {
                    break;
                }
            }
        }
    }
}
