//! Descriptors that the runtime waits for.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Has the runtime watch a descriptor, which may have to be non-blocking for what is done
/// with it when it is ready.
///
/// # Errors
/// Those of epoll_ctl(2).
pub fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        deprecated,
        reason = "its successor wants a promise that the descriptor is owned, which OwnedFd is already"
    )]
    AsyncFd::with_interest(fd, interest)
}
