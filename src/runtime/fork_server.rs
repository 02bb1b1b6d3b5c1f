//! berthd's side of the fork server: one process, started for the first shim and again when
//! it has ended or hangs.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
    sync::Mutex,
};

use super::{ShimBinary, cgroup_driver::shims::Shims, watched};
use crate::shim::fork_server::{Beginning, FLAG, ROOM, answer, ask, give_up};

/// How long it may take to make a shim; one that takes longer hangs, and is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes shims.
#[derive(Debug)]
pub struct ForkServer {
    program: ShimBinary,
    /// Where shims are to be: the server is moved there, and makes them there.
    scope: Option<Arc<Shims>>,
    /// Not there before the first shim, and while one is made: who is interrupted in
    /// between leaves no answer behind that the next one would take for its own.
    server: Mutex<Option<Server>>,
}

#[derive(Debug)]
struct Server {
    socket: AsyncFd<OwnedFd>,
    /// Killed when it is dropped.
    _process: Child,
}

/// Why a server has made no shim.
enum Failure {
    /// It works: the kernel refused it a process.
    Refused(Errno),
    /// It is gone, or hangs.
    Broken(io::Error),
}

impl ForkServer {
    /// `scope`: the cgroup of shims, if they have one.
    pub fn new(program: ShimBinary, scope: Option<Arc<Shims>>) -> ForkServer {
        ForkServer {
            program,
            scope,
            server: Mutex::default(),
        }
    }

    /// The cgroup of shims, if they have one.
    pub fn scope(&self) -> Option<Arc<Shims>> {
        self.scope.clone()
    }

    /// The program of shims.
    pub fn program(&self) -> &ShimBinary {
        &self.program
    }

    /// Makes a shim of the container `id`: its pid and pidfd. It is a child of this process
    /// and has to be waited for.
    ///
    /// # Errors
    /// The server cannot be started, or cannot make a process.
    pub async fn fork(&self, id: &str, with: &Beginning<BorrowedFd<'_>>) -> io::Result<(u32, OwnedFd)> {
        let mut place = self.server.lock().await;
        // The one that is there may have been killed since the last shim.
        let mut was_there = place.is_some();
        loop {
            let server = match place.take() {
                Some(server) => server,
                None => Server::start(&self.program, self.scope())?,
            };
            let error = match server.fork(id, with).await {
                Ok(shim) => {
                    *place = Some(server);
                    return Ok(shim);
                }
                Err(Failure::Refused(errno)) => {
                    *place = Some(server);
                    return Err(errno.into());
                }
                Err(Failure::Broken(error)) => error,
            };
            if let Some(shim) = give_up(server.socket.get_ref().as_fd()) {
                return Ok(shim);
            }
            if !was_there {
                return Err(error);
            }
            tracing::warn!(%error, "the fork server of shims is gone or hangs: another one is started");
            was_there = false;
        }
    }
}

impl Server {
    fn start(program: &ShimBinary, scope: Option<Arc<Shims>>) -> io::Result<Server> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let mut command = std::process::Command::new(program.path());
        std::os::unix::process::CommandExt::arg0(&mut command, "berth-shim");
        command
            .args([FLAG, ROOM])
            .current_dir("/")
            .env_clear()
            .stdin(its)
            .stdout(Stdio::null());
        let socket = watched(ours, Interest::READABLE)?;
        let process = Command::from(command).kill_on_drop(true).spawn()?;
        if let (Some(scope), Some(pid)) = (scope, process.id()) {
            tokio::spawn(async move { scope.take(pid).await });
        }
        Ok(Server {
            socket,
            _process: process,
        })
    }

    async fn fork(&self, id: &str, with: &Beginning<BorrowedFd<'_>>) -> Result<(u32, OwnedFd), Failure> {
        let broken = |errno: Errno| Failure::Broken(errno.into());
        ask(self.socket.get_ref().as_fd(), id, with).map_err(broken)?;
        let told = async {
            loop {
                let mut ready = self.socket.readable().await?;
                match ready.try_io(|socket| answer(socket.get_ref().as_fd()).map_err(io::Error::from)) {
                    Ok(told) => return told,
                    Err(_not_yet) => {}
                }
            }
        };
        match tokio::time::timeout(PATIENCE, told).await {
            Ok(Ok(told)) => told.map_err(Failure::Refused),
            Ok(Err(error)) => Err(Failure::Broken(error)),
            Err(_) => Err(Failure::Broken(io::ErrorKind::TimedOut.into())),
        }
    }
}
