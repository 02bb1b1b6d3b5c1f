//! Stories that drive the real binaries: a real registry, berthd in folders of
//! its own, a tonic client, and the kernel's state before and after.
//!
//! A story in `tests/` begins with [`Story::begin`], does what a kubelet or a
//! person does, and ends with [`Story::finish`], which removes everything and
//! asserts that the kernel and the disk are as they were.
//!
//! With `E2E_PEER=unix://PATH` the stories are told to another CRI server that
//! runs already: that shows whether a story asks for what is customary. The
//! state of the kernel is then not looked at.

pub mod chaos;
pub mod client;
pub mod disk;
pub mod hostile;
pub mod http;
pub mod images;
pub mod kernel;
pub mod machine;
pub mod measured;
pub mod node;
pub mod pages;
pub mod proxy;
pub mod registry;
pub mod spdy;
pub mod story;
pub mod streams;
pub mod tar;
pub mod upgrade;
pub mod websocket;
pub mod whole;

pub use berth::proto::cri;
pub use client::{Client, Output, Pod};
pub use images::Image;
pub use node::{Node, handler};
pub use registry::Registry;
pub use spdy::Spdy;
pub use story::Story;
pub use websocket::WebSocket;

/// What a story returns.
pub type Result<T = (), E = anyhow::Error> = std::result::Result<T, E>;
