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
pub mod fork_server;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod line;
pub mod log;
pub mod output;
mod rights;
pub mod service;
pub mod state;
pub mod task;
pub mod ttrpc;

use std::{
    fmt, io,
    io::Write as _,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
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
    #[error("take the socket of berthd from standard input: {0}")]
    Socket(io::Error),
    #[error("serve: {0}")]
    Serve(io::Error),
}

/// The life of a shim, which the [`fork_server`] has made. `id` is the container's.
pub fn run(id: String, listener: OwnedFd) -> Result<(), Error> {
    detach()?;
    // What the fork server has of its own.
    descriptor::close_all_but(&[listener.as_raw_fd()]).map_err(|errno| Error::Daemon {
        step: "close inherited descriptors",
        errno,
    })?;
    EventLoop::new(listener, Service::new(id))
        .and_then(EventLoop::run)
        .map_err(Error::Serve)
}

/// Leaves the server's session, takes no signals, adopts the container's orphans.
fn detach() -> Result<(), Error> {
    let failed = |step| move |errno| Error::Daemon { step, errno };
    set_name(c"berth-shim").map_err(failed("set name"))?;
    setsid().map_err(failed("setsid"))?;
    signal::block_all().map_err(failed("block signals"))?;
    set_child_subreaper(Some(getpid())).map_err(failed("set child subreaper"))?;
    umask(Mode::from_raw_mode(0o022));
    Ok(())
}

/// What berthd gave as standard input; /dev/null takes its place.
fn take_stdin() -> io::Result<OwnedFd> {
    let given = io::stdin().as_fd().try_clone_to_owned()?;
    descriptor::install(null()?.as_fd(), 0)?;
    Ok(given)
}

fn null() -> io::Result<std::fs::File> {
    std::fs::File::open("/dev/null")
}

/// A line for people, in `shim.log`. A failing write is nobody's business.
pub(crate) fn note(message: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{message}");
}
