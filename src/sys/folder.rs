//! The working folder of the calling process.
#![allow(unsafe_code)]

use rustix::io::Errno;

use super::check;

/// Whether the working folder is below the root of the process. The kernel says
/// "(unreachable)/..." when it is not, as with a descriptor that leaked from the
/// host (CVE-2024-21626).
///
/// # Errors
/// Those of getcwd(2); ENOENT when the folder was removed.
pub fn is_reachable() -> Result<bool, Errno> {
    let mut buffer = [0u8; 4097];
    // The raw call: glibc's getcwd would search upwards, and allocate, for an unreachable folder.
    // SAFETY: the buffer lives across the call and has the size given.
    check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    Ok(buffer.first() == Some(&b'/'))
}
