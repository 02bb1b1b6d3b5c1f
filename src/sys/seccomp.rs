//! Loading of a seccomp program that was compiled elsewhere.
#![allow(unsafe_code)]

use rustix::io::Errno;

use super::last_errno;

/// A program as the kernel wants it: `struct sock_filter` one after the other.
#[derive(Debug)]
pub struct Program {
    filters: Vec<libc::sock_filter>,
    flags: u32,
}

impl Program {
    /// From bytes of `struct sock_filter`; None when they are not whole instructions, or more than 4096.
    #[must_use]
    pub fn parse(bytes: &[u8], flags: u32) -> Option<Self> {
        let (instructions, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() || instructions.is_empty() || instructions.len() > 4096 {
            return None;
        }
        let filters = instructions
            .iter()
            .map(|b| libc::sock_filter {
                code: u16::from_ne_bytes([b[0], b[1]]),
                jt: b[2],
                jf: b[3],
                k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            })
            .collect();
        Some(Self { filters, flags })
    }

    /// SECCOMP_SET_MODE_FILTER for the calling thread, for ever.
    ///
    /// # Errors
    /// EACCES without no_new_privs and CAP_SYS_ADMIN; EINVAL for a bad program or flags.
    pub fn load(&self) -> Result<(), Errno> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.filters.len()).map_err(|_| Errno::INVAL)?,
            filter: self.filters.as_ptr().cast_mut(),
        };
        // SAFETY: `program` describes `filters`, which the kernel copies and does not write.
        let returned = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::c_ulong::from(self.flags),
                &raw const program,
            )
        };
        match returned {
            0 => Ok(()),
            // With SECCOMP_FILTER_FLAG_TSYNC: the id of a thread that could not be moved.
            1.. => Err(Errno::SRCH),
            _ => Err(last_errno()),
        }
    }
}
