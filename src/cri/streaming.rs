//! What the streaming server streams to: processes in containers, the stdio of
//! containers, ports of sandboxes.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::FutureExt;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    net::{TcpStream, unix::pipe},
};

use super::{
    container_attach, container_exec,
    error::{Context as _, Error, io as io_error},
    node::Node,
    sandbox_portforward,
};
use crate::{
    kind::HasKind,
    network,
    runtime::{AttachIo, ExecIo, watched},
    stream::{
        AttachRequest, Backend, Duplex, EndOfInput, Error as StreamError, ExecRequest, Session, TerminalSize,
    },
};

/// How long a process whose client has vanished may take to notice the end of its
/// input, or that its terminal hung up, until it is killed with all it started.
const GRACE: Duration = Duration::from_secs(3);

/// Output of a container that may wait for an attached client, in its pipe.
const QUEUE: usize = 256 << 10;

/// The containers and sandboxes of a node, as the streaming server uses them.
#[derive(Clone, Debug)]
pub struct Streams {
    pub node: Arc<Node>,
}

impl Backend for Streams {
    async fn exec(&self, request: ExecRequest) -> Result<Session, StreamError> {
        self.exec_session(request).await.map_err(said)
    }

    async fn attach(&self, request: AttachRequest) -> Result<Session, StreamError> {
        self.attach_session(request).await.map_err(said)
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>, StreamError> {
        let stream = self.connect(sandbox, port).await.map_err(said)?;
        Ok(Box::new(stream))
    }
}

fn said(error: impl HasKind + std::error::Error) -> StreamError {
    StreamError::backend(error.kind(), error.to_string())
}

impl Streams {
    async fn exec_session(&self, request: ExecRequest) -> Result<Session, Error> {
        let container = self.node.pods.container(&request.container)?;
        let id = container.id.as_str();
        let process = container_exec::process(&self.node, &container, &request.command, request.tty)?;
        let shim = container_exec::shim(&container)?;
        let exec_id = crate::runtime::new_exec_id();
        let failed = pipe_error(id);
        if request.tty {
            let mut exec = shim.exec(&exec_id, &process, ExecIo::Terminal).await.step(
                "container",
                id,
                "execute a command",
            )?;
            exec.hang_up_on_drop(GRACE);
            let master = exec
                .take_console()
                .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
            let console = Console::new(master).map_err(&failed)?;
            let sized = console.clone();
            return Ok(Session {
                stdin: request.stdin.then(|| Box::new(console.clone()) as _),
                stdout: request.stdout.then(|| Box::new(console) as _),
                stderr: None,
                resize: Some(Box::new(move |size| {
                    sized.resize(size);
                    std::future::ready(()).boxed()
                })),
                end_of_input: EndOfInput::Closes,
                exit: async move { exec.wait().await.map_err(said) }.boxed(),
            });
        }
        let (stdin, stdin_end) = split(request.stdin.then(input).transpose().map_err(&failed)?);
        let (stdout, stdout_end) = split(request.stdout.then(output).transpose().map_err(&failed)?);
        let (stderr, stderr_end) = split(request.stderr.then(output).transpose().map_err(&failed)?);
        let stdio = ExecIo::Pipes {
            stdin: stdin_end,
            stdout: stdout_end,
            stderr: stderr_end,
        };
        let mut exec =
            shim.exec(&exec_id, &process, stdio)
                .await
                .step("container", id, "execute a command")?;
        exec.hang_up_on_drop(GRACE);
        Ok(Session {
            stdin: stdin.map(|pipe| Box::new(pipe) as _),
            stdout: stdout.map(|pipe| Box::new(pipe) as _),
            stderr: stderr.map(|pipe| Box::new(pipe) as _),
            resize: None,
            end_of_input: EndOfInput::Closes,
            exit: async move { exec.wait().await.map_err(said) }.boxed(),
        })
    }

    async fn attach_session(&self, request: AttachRequest) -> Result<Session, Error> {
        let container = self.node.pods.container(&request.container)?;
        let id = container.id.as_str();
        let shim = container_attach::shim(&container)?;
        let config = container.config();
        let failed = pipe_error(id);
        // A container without an input is watched only, as the peers do.
        let stdin = (request.stdin && config.stdin).then(input);
        let (stdin, stdin_end) = split(stdin.transpose().map_err(&failed)?);
        let (stdout, stdout_end) = split(request.stdout.then(output).transpose().map_err(&failed)?);
        let stderr = (request.stderr && !config.tty).then(output);
        let (stderr, stderr_end) = split(stderr.transpose().map_err(&failed)?);
        for queue in [&stdout_end, &stderr_end].into_iter().flatten() {
            // Best effort: a user with many pipes gets no more than the default.
            let _ = fcntl_setpipe_size(queue, QUEUE);
        }
        let stdio = AttachIo {
            stdin: stdin_end,
            stdout: stdout_end,
            stderr: stderr_end,
        };
        let attachment = shim
            .attach(config.tty, stdio)
            .await
            .step("container", id, "attach")?;
        let closes = stdin.is_none() || (config.stdin_once && !config.tty);
        Ok(Session {
            stdin: stdin.map(|pipe| Box::new(pipe) as _),
            stdout: stdout.map(|pipe| Box::new(pipe) as _),
            stderr: stderr.map(|pipe| Box::new(pipe) as _),
            resize: config.tty.then(|| {
                Box::new(move |TerminalSize { width, height }: TerminalSize| {
                    let shim = shim.clone();
                    async move {
                        if let Err(error) = shim.resize(width.into(), height.into()).await {
                            tracing::debug!(%error, "resize the terminal of a container");
                        }
                    }
                    .boxed()
                }) as _
            }),
            end_of_input: if closes {
                EndOfInput::Closes
            } else {
                EndOfInput::Detaches
            },
            exit: async move { attachment.ended().await.map(|()| 0).map_err(said) }.boxed(),
        })
    }

    async fn connect(&self, sandbox: &str, port: u16) -> Result<TcpStream, Error> {
        let sandbox = sandbox_portforward::ready(&self.node, sandbox)?;
        let own = sandbox.record().namespaces.iter().any(|name| name == "net");
        let netns = own.then(|| self.node.paths.namespaces(&sandbox.id).join("net"));
        let connected = tokio::task::spawn_blocking(move || network::connect(netns.as_deref(), port)).await;
        let connected = match connected {
            Ok(connected) => connected.step("sandbox", &sandbox.id, "forward a port")?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let failed = pipe_error(&sandbox.id);
        connected.set_nonblocking(true).map_err(&failed)?;
        TcpStream::from_std(connected).map_err(&failed)
    }
}

fn pipe_error(id: &str) -> impl Fn(io::Error) -> Error + '_ {
    io_error("session of", id, "prepare the streams", std::path::Path::new(""))
}

/// A process's input: our end, and its own.
fn input() -> io::Result<(pipe::Sender, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((pipe::Sender::from_owned_fd(write)?, read))
}

/// A process's output: our end, and its own.
fn output() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

fn split<A, B>(pair: Option<(A, B)>) -> (Option<A>, Option<B>) {
    pair.map_or((None, None), |(a, b)| (Some(a), Some(b)))
}

/// The master of a terminal, to be read by one and written by one.
#[derive(Clone, Debug)]
struct Console(Arc<AsyncFd<OwnedFd>>);

impl Console {
    fn new(master: OwnedFd) -> io::Result<Console> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
        let registered = watched(master, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Console(Arc::new(registered)))
    }

    fn resize(&self, size: TerminalSize) {
        let size = rustix::termios::Winsize {
            ws_row: size.height,
            ws_col: size.width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        if let Err(error) = rustix::termios::tcsetwinsize(self.0.as_fd(), size) {
            tracing::debug!(%error, "resize the terminal of a command");
        }
    }
}

impl AsyncRead for Console {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            match ready.try_io(|fd| Ok(rustix::io::read(fd, unfilled)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) => return Poll::Ready(read.map(|count| buffer.advance(count))),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Console {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A terminal has no half-close: the client types the end of input by itself.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
