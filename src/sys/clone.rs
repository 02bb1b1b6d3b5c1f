//! clone3: a new process in given namespaces and a given cgroup, with its pidfd.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::check;

/// What clone3 answers: once in each process.
#[derive(Debug)]
pub enum Forked {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Clones the calling process (its calling thread only) with `CLONE_NEW*` bits in
/// `namespaces`, into the cgroup v2 folder `cgroup` when given.
///
/// The child has a copy of the memory: it must not return into code that takes
/// locks or allocates, because another thread of the parent may have held one.
///
/// # Errors
/// Those of clone3(2).
pub fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked, Errno> {
    // SAFETY: clone_args is plain old data of integers; all zero is its default.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces;
    args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    if let Some(folder) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(folder.as_raw_fd().unsigned_abs());
    }
    clone(args)
}

/// As [`clone3`], but the new process is a child of the caller's parent, and tells that
/// one of its end as the caller would. It stays in the caller's cgroup.
///
/// # Errors
/// Those of clone3(2).
pub fn clone_sibling(namespaces: u64) -> Result<Forked, Errno> {
    // SAFETY: as above.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // The exit signal is inherited; to name one is an error.
    args.flags = namespaces | u64::from(libc::CLONE_PARENT.unsigned_abs());
    clone(args)
}

fn clone(mut args: libc::clone_args) -> Result<Forked, Errno> {
    let mut pidfd: libc::c_int = -1;
    args.flags |= u64::from(libc::CLONE_PIDFD.unsigned_abs());
    args.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    // SAFETY: without CLONE_VM the child has its own copy of memory and stack, as
    // after fork; `args` and `pidfd` live across the call.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel wrote a new descriptor of this process, owned by nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent {
        pid: i32::try_from(pid).map_err(|_| Errno::OVERFLOW)?,
        pidfd,
    })
}

/// linux/sched.h, Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Ends the calling process without running any handler.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}
