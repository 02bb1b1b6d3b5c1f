//! execve with arrays that were made before clone.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};

use rustix::io::Errno;

use super::last_errno;

/// Strings with the null-terminated array of pointers that execve wants.
pub struct Strings {
    owned: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl Strings {
    #[must_use]
    pub fn new(owned: Vec<CString>) -> Self {
        // The bytes of a CString are on the heap: moving the vector does not move them.
        let mut pointers: Vec<_> = owned.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self { owned, pointers }
    }

    #[must_use]
    pub fn as_slice(&self) -> &[CString] {
        &self.owned
    }
}

impl std::fmt::Debug for Strings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Environments hold secrets: only the number is shown.
        f.debug_struct("Strings")
            .field("count", &self.owned.len())
            .finish()
    }
}

/// execve(2); returns only when it failed.
#[must_use]
pub fn execve(path: &CStr, args: &Strings, env: &Strings) -> Errno {
    // SAFETY: all three are terminated, and live across the call, which does not change them.
    unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    last_errno()
}
