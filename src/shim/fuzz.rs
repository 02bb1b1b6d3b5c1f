//! Frames of ttrpc, whatever they hold and however they are cut.

use std::os::fd::OwnedFd;

use prost::Message;
use rustix::{
    io::write,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};

use super::{
    connection::{Closed, Connection},
    ttrpc::{FrameType, HEADER, Header, MAX_PAYLOAD, Request, Response, frame},
};

/// Bytes that a socket takes without a reader.
const MOST: usize = 32 << 10;

/// Frames come out of a connection as they stand in the bytes, in one piece or in
/// many; messages that can be read survive being written.
pub fn ttrpc(data: &[u8]) {
    let data = &data[..data.len().min(MOST)];
    let expected = frames(data);
    for piece in [data.len().max(1), 1 + data.len() % 23] {
        assert_eq!(received(data, piece), expected, "in pieces of {piece}");
    }
    for (header, payload) in &expected {
        if let Ok(request) = Request::decode(&payload[..]) {
            survives(header.stream, &request);
        }
        if let Ok(response) = Response::decode(&payload[..]) {
            survives(header.stream, &response);
        }
    }
}

fn survives<M: Message + Default + PartialEq + std::fmt::Debug>(stream: u32, message: &M) {
    let Some(bytes) = frame(stream, FrameType::Request, message) else {
        assert!(message.encoded_len() > MAX_PAYLOAD);
        return;
    };
    let (head, payload) = bytes.split_first_chunk::<HEADER>().expect("a frame has a header");
    let header = Header::decode(*head);
    assert_eq!((header.stream, header.payload()), (stream, Some(payload.len())));
    assert_eq!(M::decode(payload).as_ref(), Ok(message));
}

/// The frames that are whole; those over the limit without their bytes.
fn frames(mut data: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some((head, rest)) = data.split_first_chunk::<HEADER>() {
        let header = Header::decode(*head);
        let length = usize::try_from(header.length).expect("64 bits");
        let Some((payload, rest)) = rest.split_at_checked(length) else {
            break;
        };
        let taken = header.payload().map_or(&[][..], |_| payload);
        found.push((header, taken.to_vec()));
        data = rest;
    }
    found
}

fn received(data: &[u8], piece: usize) -> Vec<(Header, Vec<u8>)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair: (OwnedFd, OwnedFd) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("make a socket pair");
    let (ours, theirs) = pair;
    let mut connection = Connection::new(theirs);
    let mut found = Vec::new();
    let mut read = |connection: &mut Connection| {
        loop {
            match connection.read() {
                Ok(Some(frame)) => {
                    assert!(frame.fds.is_empty());
                    found.push((frame.header, frame.payload));
                }
                Ok(None) => return true,
                Err(Closed::ByPeer) => return false,
                Err(other) => panic!("{other}"),
            }
        }
    };
    for part in data.chunks(piece) {
        assert_eq!(write(&ours, part), Ok(part.len()));
        assert!(read(&mut connection), "it ends before its peer does");
    }
    drop(ours);
    assert!(!read(&mut connection), "it does not see its peer's end");
    found
}
