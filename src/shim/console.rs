//! Terminals: their size, and the hand-over of an exec's terminal to the client.
//!
//! The client of an exec with a terminal sends one end of a Unix stream socket
//! as the standard output; the shim sends the terminal's master over it, with
//! one byte, as OCI runtimes do on their console socket. So the shim copies no
//! byte of an interactive session.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    io::Errno,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    termios::{Winsize, tcsetwinsize},
};

/// Sets the size in characters; more than a terminal can have is cut.
pub fn resize(master: BorrowedFd<'_>, width: u32, height: u32) -> Result<(), Errno> {
    let size = Winsize {
        ws_row: u16::try_from(height).unwrap_or(u16::MAX),
        ws_col: u16::try_from(width).unwrap_or(u16::MAX),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(master, size)
}

/// Sends the master over the client's socket.
pub fn hand_over(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, flags).map(drop)
}
