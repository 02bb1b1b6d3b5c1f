//! The live upgrade: berthd replaces itself by the program that is at its path now. The
//! process, its number and its listening socket stay, so a service manager sees nothing
//! and no client is refused: who connects meanwhile waits in the socket's queue.
//!
//! The order is that of a polite stop: calls under way are finished by the old program,
//! connections are told to go (HTTP/2 GOAWAY, after which clients connect anew by
//! themselves), then the new program restores the truth as after any other start.

use std::{
    convert::Infallible,
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStringExt, net::UnixListener, process::CommandExt},
    },
    path::PathBuf,
    process::Command,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::sockopt::socket_acceptconn,
    process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid},
};

/// Set for the new program: its standard input is the listening socket.
const MARK: &str = "BERTH_HANDED_OVER";

/// Executes the program that is at the path of this one now, with the same arguments and
/// the socket; comes back only when that fails.
///
/// # Errors
/// The program's path, and why it cannot be executed.
pub fn replace(listener: OwnedFd) -> Result<Infallible, (PathBuf, io::Error)> {
    let path = program();
    let error = Command::new(&path)
        .args(std::env::args_os().skip(1))
        .env(MARK, "1")
        .stdin(listener)
        .exec();
    Err((path, error))
}

/// The path that this program was started from; after an upgrade another program is there.
fn program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| "/usr/bin/berthd".into());
    let mut bytes = path.into_os_string().into_vec();
    // The kernel says so of a file that was replaced (proc(5), /proc/PID/exe).
    if bytes.ends_with(b" (deleted)") {
        bytes.truncate(bytes.len() - b" (deleted)".len());
    }
    OsString::from_vec(bytes).into()
}

/// The socket that the program before this one has left; None: there was none.
///
/// # Errors
/// When what was left is no listening socket.
pub fn inherited() -> io::Result<Option<UnixListener>> {
    if std::env::var_os(MARK).is_none() {
        return Ok(None);
    }
    let stdin = io::stdin();
    if !socket_acceptconn(stdin.as_fd()).unwrap_or(false) {
        let message = format!("{MARK} is set, and standard input is no listening socket: unset it");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let listener = UnixListener::from(stdin.as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    rustix::stdio::dup2_stdin(fs::File::open("/dev/null")?)?;
    Ok(Some(listener))
}

/// Reaps the children of the program before, in a thread that ends with the last of them:
/// shims that end are zombies otherwise, for they are this process's, and nobody here has
/// started them.
pub fn reap_inherited() {
    let own = std::process::id();
    let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    let pids = children
        .split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    let mut left: Vec<OwnedFd> = pids
        .filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .collect();
    let reap = move || {
        while !left.is_empty() {
            let mut watched: Vec<_> = left.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            if poll(&mut watched, None).is_err() {
                continue;
            }
            let ended: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
            let mut ended = ended.into_iter();
            left.retain(|pidfd| {
                let over = ended.next().unwrap_or(false);
                if over {
                    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
                }
                !over
            });
        }
    };
    if let Err(error) = std::thread::Builder::new().name("reap".into()).spawn(reap) {
        tracing::warn!(%error, "shims from before the upgrade stay zombies when they end");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_predecessor_nothing_is_taken() {
        assert!(inherited().unwrap().is_none());
        assert!(program().is_absolute());
    }
}
