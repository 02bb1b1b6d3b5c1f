//! System calls that rustix lacks: all `unsafe` of the project, and nothing else.
//!
//! Every function is a thin, checked wrapper of one call. None allocates, locks
//! or logs, so that all of them may be used between clone and exec; only
//! [`arguments::Arguments::find`] reads a file.

pub mod allocator;
pub mod arguments;
pub mod bpf;
pub mod capability;
pub mod clone;
pub mod descriptor;
pub mod exec;
pub mod folder;
pub mod hook;
pub mod mount;
pub mod namespace;
pub mod peer;
pub mod seccomp;
pub mod signal;
pub mod signalfd;
pub mod unshare;

use rustix::io::Errno;

/// The error of the C library call that just returned -1.
pub(crate) fn last_errno() -> Errno {
    let raw = std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO);
    Errno::from_raw_os_error(raw)
}

/// A system call's return value as a result.
pub(crate) fn check(returned: libc::c_long) -> Result<libc::c_long, Errno> {
    if returned < 0 {
        Err(last_errno())
    } else {
        Ok(returned)
    }
}
