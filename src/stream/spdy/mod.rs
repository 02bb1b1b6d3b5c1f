//! SPDY/3.1, the server's side: what kubelet, kubectl and crictl speak after an
//! HTTP upgrade. The codec (`frame`, `headers`) is plain functions over bytes.

mod connection;
mod dictionary;
pub mod frame;
pub mod headers;
mod reader;
pub(super) mod window;
mod writer;

pub(super) use connection::{Connection, Stream};
