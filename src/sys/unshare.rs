//! New namespaces for the calling thread.
#![allow(unsafe_code)]

use std::io;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves the calling thread, and it alone, into new namespaces of these kinds.
/// The thread should be a short-lived one: it cannot be given back to a pool.
pub fn unshare(net: bool, ipc: bool, uts: bool) -> io::Result<()> {
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWNET, net);
    flags.set(UnshareFlags::NEWIPC, ipc);
    flags.set(UnshareFlags::NEWUTS, uts);
    // SAFETY: the call is only unsafe with UnshareFlags::FILES, which would let a
    // thread see another table of descriptors than the one it was given from.
    unsafe { unshare_unsafe(flags) }.map_err(io::Error::from)
}
