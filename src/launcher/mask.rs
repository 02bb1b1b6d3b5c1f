//! Paths of procfs and sysfs that a container may not see, or not write.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::sys::mount::{self, Attributes};

use super::device;
use super::filesystem::{self, NODEV, NOEXEC, NOSUID, Parameter, RDONLY};
use super::path::{FOLLOW, find};
use super::step::{At, Failure, Step, Walk};

/// In the child: covers each path that exists.
pub fn mask(root: BorrowedFd<'_>, paths: &[CString], tmpfs: &[Parameter]) -> Walk<()> {
    // One empty tmpfs for all folders, one /dev/null for all files; made when first needed.
    let mut empty = None;
    let mut null = None;
    for (index, path) in paths.iter().enumerate() {
        let target = match find(root, path, FOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            answer => answer.at_index(Step::Mask, index)?,
        };
        let stat = fstat(&target).at_index(Step::Mask, index)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            cover_folder(target.as_fd(), &mut empty, tmpfs)
        } else {
            cover_file(root, target.as_fd(), &mut null).at(Step::Mask)
        }
        .map_err(|failure| Failure {
            index: u16::try_from(index).unwrap_or(u16::MAX),
            ..failure
        })?;
    }
    Ok(())
}

fn cover_folder(target: BorrowedFd<'_>, empty: &mut Option<OwnedFd>, options: &[Parameter]) -> Walk<()> {
    if let Some(empty) = empty {
        // Of a mount that is attached: clones of detached ones came with Linux 6.15.
        let tree = clone(empty.as_fd(), false).at(Step::Mask)?;
        return filesystem::attach(tree.as_fd(), target).at(Step::Mask);
    }
    let tmpfs = filesystem::make(
        c"tmpfs",
        c"tmpfs",
        options,
        RDONLY | NOSUID | NODEV | NOEXEC,
        Step::Mask,
    )?;
    filesystem::attach(tmpfs.as_fd(), target).at(Step::Mask)?;
    *empty = Some(tmpfs);
    Ok(())
}

fn cover_file(root: BorrowedFd<'_>, target: BorrowedFd<'_>, null: &mut Option<OwnedFd>) -> Result<(), Errno> {
    let null = match null {
        Some(null) => null,
        None => null.insert(device::open_null(root)?),
    };
    let tree = clone(null.as_fd(), false)?;
    let change = Attributes {
        set: RDONLY,
        clear: 0,
        propagation: mount::PRIVATE,
    };
    mount::set_attributes(tree.as_fd(), change, false)?;
    filesystem::attach(tree.as_fd(), target)
}

/// In the child: makes each path that exists read-only, with what is mounted below it.
pub fn make_read_only(root: BorrowedFd<'_>, paths: &[CString]) -> Walk<()> {
    for (index, path) in paths.iter().enumerate() {
        let target = match find(root, path, FOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            answer => answer.at_index(Step::ReadOnly, index)?,
        };
        bind_read_only(target.as_fd()).at_index(Step::ReadOnly, index)?;
    }
    Ok(())
}

fn bind_read_only(target: BorrowedFd<'_>) -> Result<(), Errno> {
    let tree = clone(target, true)?;
    mount::set_attributes(
        tree.as_fd(),
        Attributes {
            set: RDONLY,
            ..Attributes::default()
        },
        true,
    )?;
    filesystem::attach(tree.as_fd(), target)
}

fn clone(of: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(of, c"", flags)
}
