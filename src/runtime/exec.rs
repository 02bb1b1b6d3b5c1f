//! Processes in a running container: with the caller's descriptors, or to the
//! end with the output collected, as probes want it.

use std::{
    io::{self, IoSliceMut},
    mem::{self, MaybeUninit},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    pin::pin,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    pipe::{PipeFlags, pipe_with},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::unix::pipe::Receiver,
};

use super::{Error, Shim, shim_client::any};
use crate::proto::{plan, task};

/// How long the end of the output is waited for after the process has ended: what
/// it wrote is in the pipe by then, and a child that it left in the background
/// may hold the pipe for a year.
const DRAIN: Duration = Duration::from_millis(500);

/// How long a command that was killed for its time-out may take to end before the
/// client is told of the time-out all the same.
const DYING: Duration = Duration::from_secs(5);

/// How long a verb of an exec may take; its start reads from any disk.
const LIMIT: Duration = Duration::from_secs(120);

const SIGKILL: u32 = 9;

/// The exit code of a process that was killed.
const KILLED: i32 = 128 + 9;

/// What a process reads and writes.
#[derive(Debug)]
pub enum ExecIo {
    /// The process's ends, closed here once the shim has them; absent: /dev/null.
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    },
    /// A terminal, see [`Exec::take_console`]; `process.terminal` must be set.
    Terminal,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Exit code, or 128 plus the signal.
    pub code: i32,
    /// Bytes of output beyond the limit, which were dropped.
    pub dropped: u64,
}

/// A process that was started in a container. When this is dropped before its
/// end was seen, the process runs on, and is forgotten when it ends.
#[derive(Debug)]
pub struct Exec {
    shim: Shim,
    id: String,
    pid: u32,
    console: Option<OwnedFd>,
    /// Nothing of it is left in the shim.
    forgotten: bool,
    on_drop: OnDrop,
}

/// What becomes of the process when its handle is dropped.
#[derive(Clone, Copy, Debug)]
enum OnDrop {
    /// It runs on.
    Leave,
    /// Its terminal is hung up, and after this time all of it is killed.
    HangUp(Duration),
    /// All of it is killed.
    Kill,
}

impl Shim {
    /// Starts a process in the container. `exec_id` is new in this container.
    /// [`Error::Start`] when the program cannot be executed.
    pub async fn exec(&self, exec_id: &str, process: &plan::Process, stdio: ExecIo) -> Result<Exec, Error> {
        let mut exec = Exec {
            shim: self.clone(),
            id: exec_id.into(),
            pid: 0,
            console: None,
            forgotten: false,
            on_drop: OnDrop::Kill,
        };
        let mut request = task::ExecProcessRequest {
            id: self.id().into(),
            exec_id: exec_id.into(),
            terminal: process.terminal,
            spec: Some(any("berth.plan.v1.Process", process)),
            ..Default::default()
        };
        let mut fds = Vec::new();
        let mut name = |fd: Option<OwnedFd>| match fd {
            Some(fd) => {
                fds.push(fd);
                format!("fd:{}", fds.len() - 1)
            }
            None => String::new(),
        };
        let mut console = None;
        match stdio {
            ExecIo::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                request.stdin = name(stdin);
                request.stdout = name(stdout);
                request.stderr = name(stderr);
            }
            ExecIo::Terminal => {
                let (ours, theirs) =
                    UnixStream::pair().map_err(|source| self.exec_error("make a socket", source))?;
                request.stdout = name(Some(theirs.into()));
                console = Some(ours);
            }
        }
        let added: Result<(), Error> = self.call_with("Exec", Some(LIMIT), &request, fds).await;
        if let Err(error) = added {
            exec.forgotten = !matches!(error, Error::Slow { .. });
            return Err(error);
        }
        let started: Result<task::StartResponse, Error> =
            self.call("Start", LIMIT, &self.request_start(exec_id)).await;
        match started {
            Ok(answer) => exec.pid = answer.pid,
            Err(error) => {
                // The shim forgets what it cannot start.
                exec.forgotten = matches!(error, Error::Start { .. });
                return Err(error);
            }
        }
        if let Some(socket) = console {
            let master =
                receive_console(&socket).map_err(|source| self.exec_error("receive the terminal", source))?;
            exec.console = Some(master);
        }
        exec.on_drop = OnDrop::Leave;
        Ok(exec)
    }

    /// Runs a command to its end. Of both streams together `limit_bytes` are kept,
    /// the rest is read and dropped. A command over `timeout` is killed with all that it
    /// has started, and all of it is gone when [`Error::ExecTimeout`] comes.
    pub async fn exec_sync(
        &self,
        process: &plan::Process,
        timeout: Option<Duration>,
        limit_bytes: usize,
    ) -> Result<ExecOutput, Error> {
        let failed = |source| self.exec_error("make a pipe", source);
        let (stdout, stdout_end) = pipe().map_err(failed)?;
        let (stderr, stderr_end) = pipe().map_err(failed)?;
        let stdio = ExecIo::Pipes {
            stdin: None,
            stdout: Some(stdout_end),
            stderr: Some(stderr_end),
        };
        let mut exec = self.exec(&new_id(), process, stdio).await?;
        exec.on_drop = OnDrop::Kill;

        let (mut out, mut err) = (Collected::default(), Collected::default());
        let room = AtomicUsize::new(limit_bytes);
        let code = {
            let mut collecting = pin!(async {
                tokio::join!(out.collect(stdout, &room), err.collect(stderr, &room));
            });
            let mut collected = false;
            let ended = async {
                let mut waiting = pin!(exec.exit_code());
                loop {
                    tokio::select! {
                        code = &mut waiting => break code,
                        () = &mut collecting, if !collected => collected = true,
                    }
                }
            };
            let code = match timeout {
                None => ended.await?,
                Some(after) => match tokio::time::timeout(after, ended).await {
                    Ok(code) => code?,
                    Err(_) => {
                        let dying = async {
                            exec.kill_all().await?;
                            exec.exit_code().await.map(drop)
                        };
                        match tokio::time::timeout(DYING, dying).await {
                            Ok(Ok(())) => exec.forget().await,
                            // A process in an uninterruptible call, or a shim that is slow to
                            // say so: dropping the exec goes on with the killing, and the
                            // client is told in time.
                            Ok(Err(error)) => return Err(error),
                            Err(_) => tracing::error!(
                                container = self.id(),
                                command = ?process.args,
                                "a command over its time was killed and has not ended yet"
                            ),
                        }
                        return Err(Error::ExecTimeout {
                            id: self.id().into(),
                            command: process.args.join(" "),
                            after,
                        });
                    }
                },
            };
            if !collected {
                let _ = tokio::time::timeout(DRAIN, collecting).await;
            }
            code
        };
        exec.forget().await;
        Ok(ExecOutput {
            dropped: out.dropped.saturating_add(err.dropped),
            stdout: out.bytes,
            stderr: err.bytes,
            code,
        })
    }

    fn exec_error(&self, step: &'static str, source: io::Error) -> Error {
        Error::Exec {
            id: self.id().into(),
            step,
            source,
        }
    }
}

impl Exec {
    /// As the host has it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The terminal's master, once. The shim keeps a copy for [`Exec::resize`],
    /// until [`Exec::hang_up`].
    pub fn take_console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }

    /// From now on, dropping this before the end was seen hangs its terminal up (the
    /// caller closes its own descriptors); if the process has not ended after
    /// `grace`, it is killed with all that it has started.
    pub fn hang_up_on_drop(&mut self, grace: Duration) {
        self.on_drop = OnDrop::HangUp(grace);
    }

    /// Waits for the process to end: its exit code, or 128 plus the signal.
    pub async fn wait(mut self) -> Result<i32, Error> {
        let code = self.exit_code().await?;
        self.forget().await;
        Ok(code)
    }

    /// Signals the process.
    pub async fn kill(&self, signal: u32) -> Result<(), Error> {
        self.shim.kill_process(&self.id, signal, false).await
    }

    /// Kills the process and all that it has started. The end is seen by
    /// [`Exec::wait`] when the last of them is gone.
    pub async fn kill_all(&self) -> Result<(), Error> {
        self.shim.kill_process(&self.id, SIGKILL, true).await
    }

    /// The size of its terminal, in characters.
    pub async fn resize(&self, width: u32, height: u32) -> Result<(), Error> {
        self.shim.resize_process(&self.id, width, height).await
    }

    /// Lets go of the shim's copy of the terminal: when the caller has closed its
    /// own, the processes behind it get SIGHUP.
    pub async fn hang_up(&self) -> Result<(), Error> {
        let request = task::CloseIoRequest {
            id: self.shim.id().into(),
            exec_id: self.id.clone(),
            stdin: true,
        };
        self.shim.call("CloseIO", LIMIT, &request).await
    }

    async fn exit_code(&self) -> Result<i32, Error> {
        let request = task::WaitRequest {
            id: self.shim.id().into(),
            exec_id: self.id.clone(),
        };
        let answer: Result<task::WaitResponse, _> =
            self.shim.call_with("Wait", None, &request, Vec::new()).await;
        let answer = match answer {
            Ok(answer) => answer,
            // The container ended before anybody asked, and the exec was killed with it.
            Err(error) if error.is_gone() && self.shim.has_ended() => return Ok(KILLED),
            Err(error) => return Err(error),
        };
        Ok(i32::try_from(answer.exit_status).unwrap_or(255))
    }

    /// Best effort: a shim that ends forgets everything.
    async fn forget(&mut self) {
        self.forgotten = true;
        let request = delete_request(&self.shim, &self.id);
        let _: Result<task::DeleteResponse, Error> = self.shim.call("Delete", LIMIT, &request).await;
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if mem::replace(&mut self.forgotten, true) {
            return;
        }
        let left = Exec {
            shim: self.shim.clone(),
            id: mem::take(&mut self.id),
            pid: self.pid,
            console: None,
            forgotten: true,
            on_drop: OnDrop::Leave,
        };
        let on_drop = self.on_drop;
        runtime.spawn(async move {
            let mut left = left;
            let kill = match on_drop {
                OnDrop::Leave => false,
                OnDrop::Kill => true,
                OnDrop::HangUp(grace) => {
                    let _ = left.hang_up().await;
                    tokio::time::timeout(grace, left.exit_code()).await.is_err()
                }
            };
            // One that was not started yet cannot be killed, only forgotten.
            if !kill || left.kill_all().await.is_ok() {
                let _ = left.exit_code().await;
            }
            left.forget().await;
        });
    }
}

fn delete_request(shim: &Shim, exec_id: &str) -> task::DeleteRequest {
    task::DeleteRequest {
        id: shim.id().into(),
        exec_id: exec_id.into(),
    }
}

/// What came out of a pipe so far: it stays when the reading is given up.
#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    dropped: u64,
}

impl Collected {
    /// Reads to the end; keeps what there is `room` for, which is shared by the
    /// streams of a command. An error is an end.
    async fn collect(&mut self, mut from: impl AsyncRead + Unpin, room: &AtomicUsize) {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(count) = from.read(&mut chunk).await
            && count > 0
        {
            let before = room.load(Ordering::Relaxed);
            // Nobody else takes from it meanwhile: both streams are read by one task.
            let kept = count.min(before);
            room.store(before - kept, Ordering::Relaxed);
            self.bytes.extend_from_slice(&chunk[..kept]);
            self.dropped += u64::try_from(count - kept).unwrap_or(u64::MAX);
        }
    }
}

/// A pipe: our end, and the process's.
fn pipe() -> io::Result<(Receiver, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Receiver::from_owned_fd(read)?, write))
}

/// New in every container: berthd's pid keeps those of a berthd that died apart.
pub fn new_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("s{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The shim has sent the master before it answered.
fn receive_console(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        flags,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut rights) = message
            && let Some(master) = rights.next()
        {
            return Ok(master);
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the shim sent none"))
}
