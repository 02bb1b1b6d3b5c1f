//! Streaming: exec, attach and port-forward, served to the kubelet and crictl.
//!
//! The CRI side asks [`Urls`] for a one-time URL; the client connects to it and
//! upgrades to SPDY/3.1 or WebSocket; what it then streams to comes from a
//! [`Backend`]. In reading order:
//!
//! 1. [`backend`]: what a session is made of, and who ends it.
//! 2. [`server`], `token`, `upgrade`, `tls`: from a connection to a request.
//! 3. `link`: what both transports have in common: bounded queues, idleness, the
//!    orderly end.
//! 4. [`spdy`], [`websocket`]: the frame codecs and their connections.
//! 5. `remotecommand`, `session`, `status`, `portforward`: what is streamed.
//!
//! Nothing here knows of containers, and no task outlives its connection: each
//! session owns its tasks and dropping it ends them.

pub mod backend;
mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod link;
mod portforward;
mod remotecommand;
pub mod server;
mod session;
pub mod spdy;
mod status;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod upgrade;
pub mod websocket;

pub use backend::{
    AttachRequest, Backend, Duplex, EndOfInput, ExecRequest, PortForwardRequest, Session, TerminalSize,
};
pub use error::Error;
pub use server::{Server, Urls};
