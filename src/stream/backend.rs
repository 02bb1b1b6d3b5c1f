//! What the streaming server streams to: the contract with the side that knows
//! containers and sandboxes.
//!
//! Who ends what: dropping a [`Session`] is the only signal that a client is
//! gone. The backend of an exec kills the process then (its whole cgroup), so
//! that a client that vanishes leaves nothing behind; the backend of an attach
//! only lets go of the container's streams.

use std::{fmt, future::Future};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Error;

/// What the streaming server streams to.
///
/// The futures of `exec` and `attach` run in tasks of their own and are never
/// cancelled: when the client has gone meanwhile, the finished session is
/// dropped. That of `port_forward` is dropped when its client goes.
pub trait Backend: Send + Sync + 'static {
    /// Starts a process in a running container.
    fn exec(&self, request: ExecRequest) -> impl Future<Output = Result<Session, Error>> + Send;

    /// Joins the streams of a running container's init.
    fn attach(&self, request: AttachRequest) -> impl Future<Output = Result<Session, Error>> + Send;

    /// Connects to `port` of the sandbox's loopback, IPv4 first and then IPv6.
    /// `shutdown` of what it gives closes the direction to the pod and leaves
    /// the other open.
    fn port_forward(
        &self,
        sandbox: &str,
        port: u16,
    ) -> impl Future<Output = Result<Box<dyn Duplex>, Error>> + Send;
}

/// A process to run in a container, as the CRI asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    /// Container id.
    pub container: String,
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    /// Never together with `tty`.
    pub stderr: bool,
    pub tty: bool,
}

/// A container to attach to, as the CRI asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    /// Container id.
    pub container: String,
    pub stdin: bool,
    pub stdout: bool,
    /// Never together with `tty`.
    pub stderr: bool,
    pub tty: bool,
}

/// A sandbox whose ports are forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// Sandbox id.
    pub sandbox: String,
    /// For clients with the plain WebSocket protocol, which cannot name ports by
    /// themselves; all other clients name a port for each connection.
    pub ports: Vec<u16>,
}

/// Cells of a terminal; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// A connection to a port of a sandbox.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The stream that ends in a process's standard input. Its `shutdown` is called
/// at the client's end of input, then it is dropped.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;
/// A stream out of a process. EIO is taken as its end (a terminal's way).
pub type Output = Box<dyn AsyncRead + Send + Unpin>;
/// Sets the size of the terminal; called in the order of the client's resizes.
pub type Resize = Box<dyn Fn(TerminalSize) -> BoxFuture<'static, ()> + Send + Sync>;

/// What becomes of an attached session when the client's input ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOfInput {
    /// Only the input ends: exec, and attach to a container with stdin_once and
    /// without a terminal. Output goes on until the process ends.
    Closes,
    /// The session ends with success and the container goes on.
    Detaches,
}

/// The ends of a process, for one client.
pub struct Session {
    /// None: what the client sends is thrown away.
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    /// None without a terminal.
    pub resize: Option<Resize>,
    pub end_of_input: EndOfInput,
    /// The exit code of the process (128 + N for signal N). Dropped before it is
    /// ready when the client is gone: an exec is killed then.
    pub exit: BoxFuture<'static, Result<i32, Error>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .field("end_of_input", &self.end_of_input)
            .finish_non_exhaustive()
    }
}
