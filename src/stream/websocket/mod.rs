//! WebSocket (RFC 6455), the server's side, and the channel protocols of
//! Kubernetes over it: the first byte of a message says which channel it is for.

pub mod channel;
mod connection;
pub mod frame;

use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

pub(super) use channel::Codec;
pub(super) use connection::{Channel, serve};

/// What RFC 6455, section 1.3, appends to the client's key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The answer to a client's `Sec-WebSocket-Key`; None when the key is not 16 bytes
/// in base64.
pub(super) fn accept_key(key: &str) -> Option<String> {
    let bytes = STANDARD.decode(key).ok()?;
    if bytes.len() != 16 {
        return None;
    }
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(GUID);
    Some(STANDARD.encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_that_of_the_rfc() {
        let answer = accept_key("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(answer.as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(accept_key("c2hvcnQ="), None);
    }
}
