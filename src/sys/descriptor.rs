//! Descriptors of the calling process as numbers: dup2 to a given number, and close_range.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::io::Errno;

use super::check;

/// Makes `number` a copy of `fd`, without close-on-exec. What was open there is closed.
///
/// # Errors
/// Those of dup3(2).
pub fn install(fd: BorrowedFd<'_>, number: RawFd) -> Result<(), Errno> {
    if fd.as_raw_fd() == number {
        // dup3 refuses equal numbers; only the flag is to be cleared.
        // SAFETY: F_SETFD takes an integer.
        check(libc::c_long::from(unsafe {
            libc::fcntl(number, libc::F_SETFD, 0)
        }))?;
        return Ok(());
    }
    // SAFETY: takes integers. A descriptor that somebody owns as `number` now means
    // another file; callers use it for 0, 1 and 2 of a child about to exec.
    check(unsafe { libc::syscall(libc::SYS_dup3, fd.as_raw_fd(), number, 0) })?;
    Ok(())
}

/// Closes every descriptor from 3 on but those in `keep`, which must be in rising order.
/// For a child after clone: what it closes is gone for everybody in it.
///
/// # Errors
/// Those of close_range(2), Linux 5.9.
pub fn close_all_but(keep: &[RawFd]) -> Result<(), Errno> {
    let mut first: libc::c_uint = 3;
    for fd in keep {
        let kept = fd.unsigned_abs();
        if kept > first {
            close_range(first, kept - 1)?;
        }
        first = first.max(kept + 1);
    }
    close_range(first, libc::c_uint::MAX)
}

/// Every descriptor from 3 on is closed when this process executes something else.
///
/// # Errors
/// Those of close_range(2); the flag needs Linux 5.11.
pub fn close_at_exec() -> Result<(), Errno> {
    let (first, last): (libc::c_uint, _) = (3, libc::c_uint::MAX);
    // SAFETY: takes integers; only flags of descriptors change.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: takes integers; the callers document that the descriptors are given up.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}
