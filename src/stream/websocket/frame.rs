//! WebSocket frames: heads and masks as bytes, nothing of connections.

use bytes::{BufMut, BytesMut};

/// Most bytes of a control frame's payload.
pub const MAX_CONTROL: usize = 125;

/// What is wrong with what came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("websocket frame has reserved bits")]
    Reserved,
    #[error("websocket frame has unknown opcode {0}")]
    Opcode(u8),
    #[error("websocket frame of a client is not masked")]
    Unmasked,
    #[error("websocket control frame is fragmented or longer than 125 bytes")]
    Control,
    #[error("websocket frame has an impossible length")]
    Length,
    #[error("websocket fragments are out of order")]
    Fragment,
    #[error("websocket message is not base64")]
    Base64,
    #[error("websocket close signal does not name one channel")]
    CloseSignal,
    #[error("websocket peer does not read its replies")]
    Flood,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn read(bits: u8) -> Result<Opcode, Error> {
        Ok(match bits {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            other => return Err(Error::Opcode(other)),
        })
    }

    fn bits(self) -> u8 {
        match self {
            Opcode::Continuation => 0,
            Opcode::Text => 1,
            Opcode::Binary => 2,
            Opcode::Close => 8,
            Opcode::Ping => 9,
            Opcode::Pong => 10,
        }
    }

    /// Whether frames of this kind may come between the fragments of a message.
    pub fn is_control(self) -> bool {
        matches!(self, Opcode::Close | Opcode::Ping | Opcode::Pong)
    }
}

/// The head of a client's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The last fragment of its message.
    pub fin: bool,
    pub opcode: Opcode,
    /// Bytes of payload.
    pub length: u64,
    pub mask: [u8; 4],
    /// Bytes of the head itself.
    pub size: usize,
}

/// Reads a client's head; None when there are not enough bytes yet.
pub fn head(bytes: &[u8]) -> Result<Option<Head>, Error> {
    let Some((&[first, second], rest)) = bytes.split_first_chunk::<2>() else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(Error::Reserved);
    }
    let opcode = Opcode::read(first & 0x0f)?;
    let fin = first & 0x80 != 0;
    if second & 0x80 == 0 {
        return Err(Error::Unmasked);
    }
    let short = second & 0x7f;
    if opcode.is_control() && (!fin || usize::from(short) > MAX_CONTROL) {
        return Err(Error::Control);
    }
    let (length, rest) = match short {
        126 => match rest.split_first_chunk::<2>() {
            Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((length, rest)) => (u64::from_be_bytes(*length), rest),
            None => return Ok(None),
        },
        short => (u64::from(short), rest),
    };
    if length >> 63 != 0 {
        return Err(Error::Length);
    }
    let Some((mask, rest)) = rest.split_first_chunk::<4>() else {
        return Ok(None);
    };
    Ok(Some(Head {
        fin,
        opcode,
        length,
        mask: *mask,
        size: bytes.len() - rest.len(),
    }))
}

/// Takes the mask off (or puts it on) the payload's bytes from `offset` on.
pub fn mask(payload: &mut [u8], mask: [u8; 4], offset: u64) {
    let turn = usize::try_from(offset % 4).unwrap_or_default();
    let mut turned = mask;
    turned.rotate_left(turn);
    let [a, b, c, d] = turned;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(turned.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends the head of a server's frame that is a whole message.
pub fn put_head(output: &mut BytesMut, opcode: Opcode, length: usize) {
    output.put_u8(0x80 | opcode.bits());
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => output.put_u8(short),
        (_, Ok(medium)) => {
            output.put_u8(126);
            output.put_u16(medium);
        }
        _ => {
            output.put_u8(127);
            output.put_u64(u64::try_from(length).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_rfc() {
        // Section 5.7: a masked "Hello", and an unmasked 256 bytes binary message.
        let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let head = head(&hello).unwrap().unwrap();
        assert_eq!(
            (head.fin, head.opcode, head.length, head.size),
            (true, Opcode::Text, 5, 6)
        );
        let mut payload = hello[6..].to_vec();
        mask(&mut payload, head.mask, 0);
        assert_eq!(payload, b"Hello");
        let mut output = BytesMut::new();
        put_head(&mut output, Opcode::Binary, 256);
        assert_eq!(output[..], [0x82, 0x7e, 0x01, 0x00]);
    }

    #[test]
    fn what_a_client_may_not_send() {
        assert_eq!(head(&[0x82, 0x01, 0]), Err(Error::Unmasked));
        assert_eq!(head(&[0xc2, 0x81]), Err(Error::Reserved));
        assert_eq!(head(&[0x83, 0x81]), Err(Error::Opcode(3)));
        assert_eq!(head(&[0x09, 0x80]), Err(Error::Control));
        assert_eq!(head(&[0x89, 0xfe]), Err(Error::Control));
        assert_eq!(head(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]), Err(Error::Length));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head_or_an_error_or_too_few(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(Some(head)) = head(&bytes) {
                prop_assert!(head.size <= bytes.len());
            }
        }

        #[test]
        fn a_mask_may_be_taken_off_in_pieces(
            payload in proptest::collection::vec(any::<u8>(), 0..64),
            key in any::<[u8; 4]>(),
            cut in 0_usize..64,
        ) {
            let plain: Vec<u8> = payload.iter().zip(key.iter().cycle()).map(|(a, b)| a ^ b).collect();
            let mut pieces = payload.clone();
            let cut = cut.min(pieces.len());
            let (left, right) = pieces.split_at_mut(cut);
            mask(left, key, 0);
            mask(right, key, u64::try_from(cut).unwrap());
            prop_assert_eq!(pieces, plain);
        }
    }
}
