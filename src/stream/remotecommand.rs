//! Exec and attach: from an upgraded connection to the streams of a session.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, TryFutureExt};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    AttachRequest, Backend, Error, ExecRequest, Session,
    link::{Gone, Inbound, Limits, Link, Outbound},
    session::{Streams, finish, run},
    spdy,
    status::{Outcome, StatusForm},
    websocket::Channel,
};

/// What is run or attached to.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

/// The streams that a request asks for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Command {
    fn wanted(&self) -> Wanted {
        let (stdin, stdout, stderr, tty) = match self {
            Command::Exec(r) => (r.stdin, r.stdout, r.stderr, r.tty),
            Command::Attach(r) => (r.stdin, r.stdout, r.stderr, r.tty),
        };
        Wanted {
            stdin,
            stdout,
            stderr: stderr && !tty,
            tty,
        }
    }

    async fn start<B: Backend>(self, backend: Arc<B>) -> Result<Session, Error> {
        match self {
            Command::Exec(request) => backend.exec(request).await,
            Command::Attach(request) => {
                let session = backend.attach(request).await?;
                // How the container ends is no failure of the attach.
                let exit = session.exit.map_ok(|_| 0).boxed();
                Ok(Session { exit, ..session })
            }
        }
    }
}

/// Serves a SPDY connection; `version` is that of the remote command protocol, 1 to 4.
pub(super) async fn spdy<B: Backend>(
    mut connection: spdy::Connection,
    version: u8,
    command: Command,
    backend: Arc<B>,
    limits: Limits,
    stop: watch::Receiver<bool>,
) {
    let mut gathered = Gathered::default();
    let wanted = command.wanted();
    let gather = timeout(
        limits.creation,
        gathered.all(&mut connection.incoming, wanted, version >= 3),
    );
    let complete = tokio::select! {
        complete = gather => complete,
        () = connection.link.gone() => return,
    };
    let spdy::Connection { link, incoming } = connection;
    // Streams that come later are refused.
    drop(incoming);
    let form = if version >= 4 {
        StatusForm::Object
    } else {
        StatusForm::Text
    };
    let Some(streams) = gathered.into_streams(form) else {
        return link.close(limits.idle).await;
    };
    match complete {
        Ok(Ok(())) => run(link, streams, command.start(backend), limits, stop).await,
        Ok(Err(Gone)) => {}
        Err(_) => {
            let message = "timed out waiting for client to create streams";
            finish(streams, &Outcome::Failed(message.into())).await;
            link.close(limits.idle).await;
        }
    }
}

/// The streams that have come so far.
#[derive(Debug, Default)]
struct Gathered {
    error: Option<Outbound>,
    stdin: Option<Inbound>,
    stdout: Option<Outbound>,
    stderr: Option<Outbound>,
    resize: Option<Inbound>,
    silent: Vec<Outbound>,
}

impl Gathered {
    /// Accepts streams until all that are expected are there.
    async fn all(
        &mut self,
        incoming: &mut mpsc::Receiver<spdy::Stream>,
        wanted: Wanted,
        resizable: bool,
    ) -> Result<(), Gone> {
        let resize = wanted.tty && resizable;
        loop {
            if self.error.is_some()
                && self.stdin.is_some() == wanted.stdin
                && self.stdout.is_some() == wanted.stdout
                && self.stderr.is_some() == wanted.stderr
                && self.resize.is_some() == resize
            {
                return Ok(());
            }
            let Some(stream) = incoming.recv().await else {
                // No more will come, and the client may still read a status.
                return Ok(());
            };
            let known = match stream.headers.get("streamtype") {
                Some("error") => self.error.is_none(),
                Some("stdin") => wanted.stdin && self.stdin.is_none(),
                Some("stdout") => wanted.stdout && self.stdout.is_none(),
                Some("stderr") => wanted.stderr && self.stderr.is_none(),
                Some("resize") => resize && self.resize.is_none(),
                _ => false,
            };
            if !known {
                stream.refuse().await;
                continue;
            }
            let kind = stream.headers.get("streamtype").unwrap_or_default().to_owned();
            let (inbound, outbound) = stream.accept().await?;
            match kind.as_str() {
                "error" => self.error = Some(outbound),
                "stdout" => self.stdout = Some(outbound),
                "stderr" => self.stderr = Some(outbound),
                "stdin" => {
                    self.stdin = Some(inbound);
                    self.silent.push(outbound);
                }
                _ => {
                    self.resize = Some(inbound);
                    self.silent.push(outbound);
                }
            }
        }
    }

    /// None without an error stream: there is nowhere to say anything.
    fn into_streams(self, form: StatusForm) -> Option<Streams> {
        Some(Streams {
            stdin: self.stdin,
            stdout: self.stdout,
            stderr: self.stderr,
            resize: self.resize,
            error: self.error?,
            silent: self.silent,
            form,
        })
    }
}

/// Which of the five channels of a remote command the client sends on.
pub(super) fn channels(command: &Command) -> [bool; 5] {
    let wanted = command.wanted();
    [wanted.stdin, false, false, false, wanted.tty]
}

/// Serves a WebSocket connection with the channels of [`channels`].
pub(super) async fn websocket<B: Backend>(
    link: Link,
    channels: Vec<Channel>,
    form: StatusForm,
    command: Command,
    backend: Arc<B>,
    (limits, stop): (Limits, watch::Receiver<bool>),
) {
    let wanted = command.wanted();
    let Ok([stdin, stdout, stderr, error, resize]) = <[Channel; 5]>::try_from(channels) else {
        return;
    };
    // An empty message on the lowest channel tells the client that it is connected.
    let first = match wanted {
        Wanted { stdout: true, .. } => &stdout,
        Wanted { stderr: true, .. } => &stderr,
        _ => &error,
    };
    if first.outbound.write_unlimited(Bytes::new()).await.is_err() {
        return;
    }
    let streams = Streams {
        stdin: stdin.inbound,
        stdout: wanted.stdout.then_some(stdout.outbound),
        stderr: wanted.stderr.then_some(stderr.outbound),
        resize: resize.inbound,
        error: error.outbound,
        silent: Vec::new(),
        form,
    };
    run(link, streams, command.start(backend), limits, stop).await;
}
