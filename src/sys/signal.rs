//! Signals of the calling thread: dispositions, mask, waiting.
#![allow(unsafe_code)]

use rustix::io::Errno;

use super::check;

/// The kernel's `struct sigaction` (not the C library's): handler, flags, restorer
/// and a mask of 64 bits. All zero is the default disposition.
#[repr(C)]
struct KernelAction([u64; 4]);

const MASK_BYTES: usize = 8;

/// Default dispositions for all signals and an empty mask, as a new program expects:
/// ignored signals survive execve, and Rust ignores SIGPIPE.
pub fn reset() {
    let default = KernelAction([0; 4]);
    for signal in 1..=64 {
        // SAFETY: the action lives across the call; SIGKILL and SIGSTOP are refused, which is right.
        // The raw call is used because glibc hides the signals 32 and 33.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                std::ptr::null_mut::<KernelAction>(),
                MASK_BYTES,
            )
        };
    }
    let _ = set_mask(0);
}

/// Blocks every signal that can be blocked, so that [`wait`] gets them.
///
/// # Errors
/// None that a caller can cause.
pub fn block_all() -> Result<(), Errno> {
    set_mask(u64::MAX)
}

fn set_mask(mask: u64) -> Result<(), Errno> {
    // SAFETY: the mask lives across the call and has the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            std::ptr::null_mut::<u64>(),
            MASK_BYTES,
        )
    })?;
    Ok(())
}

/// Waits for one of the blocked signals and takes it.
///
/// # Errors
/// EINTR after a stop and continue.
pub fn wait() -> Result<i32, Errno> {
    let all = u64::MAX;
    // SAFETY: the mask lives across the call; no information and no timeout are asked for.
    let signal = check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const all,
            std::ptr::null_mut::<libc::siginfo_t>(),
            std::ptr::null::<libc::timespec>(),
            MASK_BYTES,
        )
    })?;
    i32::try_from(signal).map_err(|_| Errno::OVERFLOW)
}

/// Takes every child that has ended, without waiting; its status is dropped.
pub fn reap_all() {
    // SAFETY: a null status is allowed.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) } > 0 {}
}
