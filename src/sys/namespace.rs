//! setns, unshare and the session keyring.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::check;

pub const PID: u64 = libc::CLONE_NEWPID.unsigned_abs() as u64;
pub const NETWORK: u64 = libc::CLONE_NEWNET.unsigned_abs() as u64;
pub const MOUNT: u64 = libc::CLONE_NEWNS.unsigned_abs() as u64;
pub const IPC: u64 = libc::CLONE_NEWIPC.unsigned_abs() as u64;
pub const UTS: u64 = libc::CLONE_NEWUTS.unsigned_abs() as u64;
pub const USER: u64 = libc::CLONE_NEWUSER.unsigned_abs() as u64;
pub const CGROUP: u64 = libc::CLONE_NEWCGROUP.unsigned_abs() as u64;

/// setns(2): `fd` is a namespace file or a pidfd; `kinds` the `CLONE_NEW*` bits.
/// Moves the calling thread only.
///
/// # Errors
/// Those of setns(2).
pub fn join(fd: BorrowedFd<'_>, kinds: u64) -> Result<(), Errno> {
    let kinds = libc::c_int::try_from(kinds).map_err(|_| Errno::INVAL)?;
    // SAFETY: takes two integers.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), kinds) })?;
    Ok(())
}

/// unshare(2) of namespaces, for the calling thread only.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare(kinds: u64) -> Result<(), Errno> {
    let kinds = libc::c_int::try_from(kinds).map_err(|_| Errno::INVAL)?;
    // SAFETY: takes an integer; CLONE_NEW* bits change no memory or descriptors.
    check(unsafe { libc::syscall(libc::SYS_unshare, kinds) })?;
    Ok(())
}

/// Leaves the session keyring of the parent for a new one without a name.
///
/// # Errors
/// Those of keyctl(2); ENOSYS when the kernel has no keys.
pub fn new_session_keyring() -> Result<(), Errno> {
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    })?;
    Ok(())
}
