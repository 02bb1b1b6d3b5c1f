//! Terminals: their size, and the hand-over of an exec's terminal to the client.
//!
//! The client of an exec with a terminal sends one end of a Unix stream socket
//! as the standard output; the shim sends the terminal's master over it, with
//! one byte, as OCI runtimes do on their console socket. So the shim copies no
//! byte of an interactive session.

use std::os::fd::BorrowedFd;

use rustix::{
    io::Errno,
    termios::{Winsize, tcsetwinsize},
};

use super::rights;

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
    rights::send(socket, &[0], &[master]).map(drop)
}
