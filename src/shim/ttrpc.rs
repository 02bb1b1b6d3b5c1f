//! The frames of ttrpc, containerd's small RPC protocol: a header of ten bytes,
//! then a protobuf message. Pure: no descriptors, no clock; the shim's server
//! and the agent's client both stand on it.
//!
//! ```text
//! 0        4          8      9       10
//! | length | stream id | type | flags | payload ...
//! ```
//!
//! Numbers are big endian. A client's stream ids are odd and grow; a unary call
//! is one request and one response of the same id. The protocol is described in
//! github.com/containerd/ttrpc, PROTOCOL.md.

/// Bytes of a header.
pub const HEADER: usize = 10;

/// The longest payload either side accepts.
pub const MAX_PAYLOAD: usize = 4 << 20;

/// The service that a shim serves.
pub const TASK_SERVICE: &str = "containerd.task.v3.Task";

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameType {
    Request,
    Response,
    /// A message of a streaming call; Berth's services have none.
    Data,
    /// Something of a later protocol.
    Unknown(u8),
}

impl From<u8> for FrameType {
    fn from(number: u8) -> FrameType {
        match number {
            1 => FrameType::Request,
            2 => FrameType::Response,
            3 => FrameType::Data,
            other => FrameType::Unknown(other),
        }
    }
}

impl From<FrameType> for u8 {
    fn from(kind: FrameType) -> u8 {
        match kind {
            FrameType::Request => 1,
            FrameType::Response => 2,
            FrameType::Data => 3,
            FrameType::Unknown(other) => other,
        }
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of payload; may be over [`MAX_PAYLOAD`], the reader decides.
    pub length: u32,
    pub stream: u32,
    pub kind: FrameType,
    pub flags: u8,
}

impl Header {
    /// Any ten bytes are a header.
    pub fn decode(bytes: [u8; HEADER]) -> Header {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = bytes;
        Header {
            length: u32::from_be_bytes([l0, l1, l2, l3]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind: kind.into(),
            flags,
        }
    }

    pub fn encode(self) -> [u8; HEADER] {
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, l3, s0, s1, s2, s3, self.kind.into(), self.flags]
    }

    /// The payload's length, or nothing when it is over the limit.
    pub fn payload(self) -> Option<usize> {
        usize::try_from(self.length)
            .ok()
            .filter(|length| *length <= MAX_PAYLOAD)
    }
}

/// A whole frame around `message`; nothing when the message is over [`MAX_PAYLOAD`].
pub fn frame(stream: u32, kind: FrameType, message: &impl prost::Message) -> Option<Vec<u8>> {
    let length = message.encoded_len();
    if length > MAX_PAYLOAD {
        return None;
    }
    let header = Header {
        length: u32::try_from(length).ok()?,
        stream,
        kind,
        flags: 0,
    };
    let mut bytes = Vec::with_capacity(HEADER + length);
    bytes.extend_from_slice(&header.encode());
    // A Vec grows: encoding into it does not fail.
    message.encode(&mut bytes).ok()?;
    Some(bytes)
}

/// `ttrpc.Request`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// "containerd.task.v3.Task"
    #[prost(string, tag = "1")]
    pub service: String,
    /// "Create"
    #[prost(string, tag = "2")]
    pub method: String,
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// 0: no limit.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

/// `ttrpc.KeyValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `ttrpc.Response`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// Absent: OK.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    /// A [`Code`].
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    /// A start that failed carries its berth.plan.v1.ExitRecord here.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<crate::proto::google::protobuf::Any>,
}

impl Status {
    pub fn new(code: Code, message: impl Into<String>) -> Status {
        Status {
            code: code as i32,
            message: message.into(),
            details: Vec::new(),
        }
    }
}

/// gRPC's status codes, those that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    proptest! {
        #[test]
        fn any_ten_bytes_are_a_header_and_come_back(bytes: [u8; HEADER]) {
            prop_assert_eq!(Header::decode(bytes).encode(), bytes);
        }

        #[test]
        fn a_request_survives_its_frame(
            stream: u32, service: String, method: String, payload: Vec<u8>, timeout_nano: i64,
        ) {
            let request = Request { service, method, payload, timeout_nano, metadata: Vec::new() };
            let bytes = frame(stream, FrameType::Request, &request).unwrap();
            let header = Header::decode(bytes[..HEADER].try_into().unwrap());
            prop_assert_eq!(header.payload(), Some(bytes.len() - HEADER));
            prop_assert_eq!((header.stream, header.kind), (stream, FrameType::Request));
            prop_assert_eq!(Request::decode(&bytes[HEADER..]).unwrap(), request);
        }

        #[test]
        fn damaged_messages_are_errors_and_no_panic(bytes: Vec<u8>) {
            let _ = Request::decode(&bytes[..]);
            let _ = Response::decode(&bytes[..]);
        }
    }

    /// As the Go implementation writes it (ttrpc v1.2, messageHeader and a
    /// request of one short field).
    #[test]
    fn known_bytes() {
        let request = Request {
            service: "s".into(),
            ..Request::default()
        };
        assert_eq!(
            frame(3, FrameType::Request, &request).unwrap(),
            [0, 0, 0, 3, 0, 0, 0, 3, 1, 0, 0x0a, 1, b's']
        );
    }

    #[test]
    fn four_mebibytes_and_no_more() {
        let mut response = Response {
            status: None,
            payload: vec![0; MAX_PAYLOAD - 5],
        };
        assert!(frame(1, FrameType::Response, &response).is_some());
        response.payload.push(0);
        assert!(frame(1, FrameType::Response, &response).is_none());
        let header = Header {
            length: u32::MAX,
            stream: 1,
            kind: FrameType::Request,
            flags: 0,
        };
        assert_eq!(header.payload(), None);
    }
}
