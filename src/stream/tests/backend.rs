//! A backend of local processes: exec runs a program of this host, attach is an
//! echo, and ports are those of this host's loopback.

use std::{
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::FutureExt;
use tokio::{net::TcpStream, process::Command};

use super::Kind;
use super::stream::{AttachRequest, Backend, Duplex, EndOfInput, Error, ExecRequest, Session, TerminalSize};

/// What the tests look at.
#[derive(Debug, Default)]
pub struct Local {
    /// Sessions and forwarded connections that are alive.
    pub alive: Arc<AtomicUsize>,
    pub resizes: Arc<Mutex<Vec<TerminalSize>>>,
}

/// Counts one as long as it lives.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Alive {
        count.fetch_add(1, Ordering::SeqCst);
        Alive(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Local {
    fn resize(&self) -> super::stream::backend::Resize {
        let resizes = self.resizes.clone();
        Box::new(move |size| {
            resizes.lock().unwrap().push(size);
            std::future::ready(()).boxed()
        })
    }
}

fn pipe(wanted: bool) -> Stdio {
    if wanted { Stdio::piped() } else { Stdio::null() }
}

impl Backend for Local {
    async fn exec(&self, request: ExecRequest) -> Result<Session, Error> {
        let alive = Alive::new(&self.alive);
        let mut command = Command::new(&request.command[0]);
        command.args(&request.command[1..]).kill_on_drop(true);
        command
            .stdin(pipe(request.stdin))
            .stdout(pipe(request.stdout))
            .stderr(pipe(request.stderr));
        let mut child = command.spawn().map_err(|e| {
            Error::backend(
                Kind::NotFound,
                format!("run {} in {}: {e}", request.command[0], request.container),
            )
        })?;
        Ok(Session {
            stdin: child.stdin.take().map(|s| Box::new(s) as _),
            stdout: child.stdout.take().map(|s| Box::new(s) as _),
            stderr: child.stderr.take().map(|s| Box::new(s) as _),
            resize: request.tty.then(|| self.resize()),
            end_of_input: EndOfInput::Closes,
            exit: async move {
                let _alive = alive;
                let status = child
                    .wait()
                    .await
                    .map_err(|e| Error::backend(Kind::Internal, e.to_string()))?;
                Ok(status.code().unwrap_or(137))
            }
            .boxed(),
        })
    }

    /// The container's name says what it is: "once" closes with its input, others
    /// are detached from.
    async fn attach(&self, request: AttachRequest) -> Result<Session, Error> {
        let end_of_input = if request.container == "once" {
            EndOfInput::Closes
        } else {
            EndOfInput::Detaches
        };
        let cat = ExecRequest {
            container: request.container,
            command: vec!["cat".into()],
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        };
        Ok(Session {
            end_of_input,
            ..self.exec(cat).await?
        })
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>, Error> {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(e) => Err(Error::backend(
                Kind::Unavailable,
                format!("connect to port {port} of {sandbox}: {e}"),
            )),
        }
    }
}
