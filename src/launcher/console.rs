//! The terminal of a process: from the container's own devpts, by descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchown, fstat, fstatfs, major, minor, openat2};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::filesystem;
use super::path::{FOLLOW, Leaf, NO_LINKS, find_or_make};

/// linux/magic.h
const DEVPTS_MAGIC: i64 = 0x1cd1;

#[derive(Debug)]
pub struct Console {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

/// In the child. What is opened is verified to be the multiplexer of a devpts, and
/// the slave comes from the master itself and not from a path: a link that the image
/// or another container puts there leads nowhere (CVE-2025-52565 of runc).
pub fn open(root: BorrowedFd<'_>, uid: u32, size: Winsize) -> Result<Console, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = openat2(root, c"/dev/pts/ptmx", flags, Mode::empty(), FOLLOW)?;
    let stat = fstat(&master)?;
    let is_multiplexer = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == (5, 2);
    if !is_multiplexer || i128::from(fstatfs(&master)?.f_type) != i128::from(DEVPTS_MAGIC) {
        return Err(Errno::NOTTY);
    }
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    // The group stays the one that devpts was mounted with (tty).
    fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>)?;
    if size.ws_col != 0 && size.ws_row != 0 {
        tcsetwinsize(&slave, size)?;
    }
    Ok(Console { master, slave })
}

/// In the child: /dev/console of a container is its terminal.
pub fn bind(root: BorrowedFd<'_>, slave: BorrowedFd<'_>) -> Result<(), Errno> {
    let target = find_or_make(root, c"/dev/console", Leaf::File, NO_LINKS)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(slave, c"", flags)?;
    filesystem::attach(tree.as_fd(), target.as_fd())
}
