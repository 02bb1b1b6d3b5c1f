//! The shim: a small process that owns one container and lives as long as it.
//!
//! It serves the task verbs on its socket ([`service`]), writes the container's
//! log ([`output`], [`log`]), and writes the exit record before it tells anybody
//! ([`exit`]). It does not need berthd: clients come and go. It ends by itself
//! when its container has ended and everybody connected was told; signals do not
//! end it, but SIGKILL.
//!
//! What must not be here: configuration, names to be looked up, JSON, threads.

pub mod attach;
pub mod clock;
pub mod connection;
pub mod console;
pub mod endpoint;
pub mod event_loop;
pub mod exec;
pub mod execs;
pub mod exit;
pub mod fault;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod line;
pub mod log;
pub mod output;
pub mod service;
pub mod state;
pub mod task;
pub mod ttrpc;

use std::{
    fmt, io,
    io::Write as _,
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::{
    fs::Mode,
    io::Errno,
    process::{getpid, set_child_subreaper, setsid, umask},
    thread::set_name,
};

use self::{event_loop::EventLoop, service::Service};
use crate::sys::{descriptor, signal};

/// The name of the socket in the container's state folder.
pub const SOCKET: &str = "shim.sock";

/// Why a shim cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("become a daemon: {step}: {errno}")]
    Daemon { step: &'static str, errno: Errno },
    #[error("take the listening socket from standard input: {0}")]
    Socket(io::Error),
    #[error("serve: {0}")]
    Serve(io::Error),
}

/// The life of a shim. `id` is the container's. Standard input is the listening
/// socket, for a descriptor of a higher number would cost berthd a fork instead
/// of a vfork; it is replaced by /dev/null here.
pub fn run(id: String) -> Result<(), Error> {
    detach()?;
    // What berthd may have inherited itself without close-on-exec.
    descriptor::close_all_but(&[]).map_err(|errno| Error::Daemon {
        step: "close inherited descriptors",
        errno,
    })?;
    let listener = take_listener().map_err(Error::Socket)?;
    EventLoop::new(listener, Service::new(id))
        .and_then(EventLoop::run)
        .map_err(Error::Serve)
}

/// Leaves berthd's session, takes no signals, adopts the container's orphans.
fn detach() -> Result<(), Error> {
    let failed = |step| move |errno| Error::Daemon { step, errno };
    set_name(c"berth-shim").map_err(failed("set name"))?;
    match setsid() {
        // EPERM: it leads a session already, as when started by a shell.
        Ok(_) | Err(Errno::PERM) => {}
        Err(errno) => return Err(failed("setsid")(errno)),
    }
    signal::block_all().map_err(failed("block signals"))?;
    set_child_subreaper(Some(getpid())).map_err(failed("set child subreaper"))?;
    umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn take_listener() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    let listener = stdin.as_fd().try_clone_to_owned()?;
    if !rustix::net::sockopt::socket_acceptconn(&listener)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"));
    }
    let null = std::fs::File::open("/dev/null")?;
    descriptor::install(null.as_fd(), 0)?;
    Ok(listener)
}

/// A line for people, in `shim.log`. A failing write is nobody's business.
pub(crate) fn note(message: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{message}");
}
