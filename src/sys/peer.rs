//! Who is at the other end of a Unix socket.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Most groups that are looked at.
const MAX_GROUPS: usize = 1024;

/// The supplementary groups that the peer had when it connected, SO_PEERGROUPS of
/// unix(7). A peer with more than 1024 of them is an error.
pub fn groups(socket: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut groups = vec![0u32; MAX_GROUPS];
    let bytes = size_of::<u32>() * MAX_GROUPS;
    let mut length = libc::socklen_t::try_from(bytes).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: the buffer has `length` bytes and outlives the call, which writes at
    // most that many, whole group ids, and sets `length` to what it wrote.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &mut length,
        )
    };
    super::check(done.into())?;
    groups.truncate(usize::try_from(length).unwrap_or(0) / size_of::<u32>());
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsFd, unix::net::UnixStream};

    #[test]
    fn our_own_groups_are_told() {
        let (a, _b) = UnixStream::pair().unwrap();
        let mut told = super::groups(a.as_fd()).unwrap();
        let mut own: Vec<u32> = rustix::process::getgroups()
            .unwrap()
            .iter()
            .map(|g| g.as_raw())
            .collect();
        told.sort_unstable();
        own.sort_unstable();
        assert_eq!(told, own);
    }
}
