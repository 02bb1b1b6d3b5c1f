//! What a child of [`std::process::Command`] does between fork and exec, for hooks.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{descriptor, namespace, signal};

/// The child gets default signals and no descriptor besides the first three. With
/// `join`, a pidfd and the `CLONE_NEW*` bits, it enters these namespaces of that
/// process and then `folder`.
pub fn before_exec(command: &mut Command, join: Option<(OwnedFd, u64)>, folder: CString) {
    let enter = move || {
        signal::reset();
        descriptor::close_at_exec()?;
        if let Some((target, kinds)) = &join {
            namespace::join(target.as_fd(), *kinds)?;
        }
        rustix::process::chdir(folder.as_c_str())?;
        Ok(())
    };
    // SAFETY: the closure makes system calls on memory that it owns; it neither
    // allocates nor locks, which a fork of a process with threads must not.
    unsafe { command.pre_exec(enter) };
}
