//! Owner, mode, extended attributes and times, in this order: a change of owner
//! takes setuid bits and file capabilities away.

use std::{
    ffi::CStr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::{Fault, step};
use crate::image::tar::{Entry, Kind, Time};

const OPAQUE_XATTR: &CStr = c"trusted.overlay.opaque";

/// A name in an open folder, for what cannot be opened (symlinks) or should not be (devices).
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub parent: BorrowedFd<'a>,
    pub name: &'a CStr,
}

impl Place<'_> {
    pub fn stat(&self) -> Result<Stat, Fault> {
        rustix::fs::statat(self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW).map_err(step("stat it"))
    }

    pub fn is_folder(&self) -> Result<bool, Fault> {
        Ok(FileType::from_raw_mode(self.stat()?.st_mode) == FileType::Directory)
    }

    /// Sets all of a new symlink, device or FIFO.
    pub fn apply(&self, entry: &Entry, owned: bool, skipped: &mut u64) -> Result<(), Fault> {
        if !owned {
            self.set_owner(entry)?;
        }
        self.set_xattrs(entry, skipped)?;
        if entry.kind == Kind::Symlink {
            return self.set_times(entry);
        }
        self.set_mode(entry)?;
        self.set_times(entry)
    }

    /// Sets what differs on an inode that has other names: GNU tar writes the same
    /// for each name, and setting the owner again would cost it its capabilities.
    pub fn apply_to_linked(&self, entry: &Entry, skipped: &mut u64) -> Result<(), Fault> {
        let stat = self.stat()?;
        let chown = (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid);
        if chown {
            self.set_owner(entry)?;
        }
        self.set_xattrs(entry, skipped)?;
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        if !is_link && (chown || stat.st_mode & 0o7777 != entry.mode) {
            self.set_mode(entry)?;
        }
        self.set_times(entry)
    }

    fn set_owner(&self, entry: &Entry) -> Result<(), Fault> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(
            self.parent,
            self.name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(step("set its owner"))
    }

    /// By a descriptor of the thing itself: chmod by name follows symlinks before
    /// Linux 6.6 (RUSTSEC-2026-0067 is about that).
    fn set_mode(&self, entry: &Entry) -> Result<(), Fault> {
        let set = step("set its mode");
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.parent, self.name, flags, Mode::empty()).map_err(&set)?;
        rustix::fs::chmod(proc_path(fd.as_fd()), Mode::from_raw_mode(entry.mode)).map_err(set)
    }

    fn set_times(&self, entry: &Entry) -> Result<(), Fault> {
        let times = times(entry.mtime, entry.atime);
        rustix::fs::utimensat(self.parent, self.name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(step("set its times"))
    }

    fn set_xattrs(&self, entry: &Entry, skipped: &mut u64) -> Result<(), Fault> {
        if entry.xattrs.is_empty() {
            return Ok(());
        }
        let path = [proc_path(self.parent).as_bytes(), b"/", self.name.to_bytes()].concat();
        set_xattrs(entry, skipped, |name, value| {
            rustix::fs::lsetxattr(&path[..], name, value, XattrFlags::empty())
        })
    }
}

/// Sets owner, mode and extended attributes of an open file or folder.
pub(super) fn apply_to_open(
    fd: BorrowedFd<'_>,
    entry: &Entry,
    owned: bool,
    skipped: &mut u64,
) -> Result<(), Fault> {
    if !owned {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(step("set its owner"))?;
    }
    set_xattrs(entry, skipped, |name, value| {
        rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
    })?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(step("set its mode"))
}

pub(super) fn set_times(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), Fault> {
    rustix::fs::futimens(fd, &times(entry.mtime, entry.atime)).map_err(step("set its times"))
}

pub(super) fn set_owner_and_mode(fd: BorrowedFd<'_>, owner: (u32, u32), mode: u32) -> Result<(), Errno> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))
}

/// Hides what the layers below have in this folder (which may be open as O_PATH).
pub(super) fn set_opaque(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::setxattr(proc_path(fd), OPAQUE_XATTR, b"y", XattrFlags::empty())
}

/// The times of an entry. As containerd has it, what was accessed was not
/// accessed before it was changed.
pub(super) fn times(mtime: Time, atime: Option<Time>) -> Timestamps {
    let spec = |time: Time| Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.into(),
    };
    Timestamps {
        last_access: spec(atime.unwrap_or(mtime).max(mtime)),
        last_modification: spec(mtime),
    }
}

/// The object behind a descriptor as a path, for calls that want one.
fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn set_xattrs(
    entry: &Entry,
    skipped: &mut u64,
    set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>,
) -> Result<(), Fault> {
    for (name, value) in &entry.xattrs {
        if !is_wanted(name) {
            *skipped += 1;
            continue;
        }
        match set(name, value) {
            Ok(()) => {}
            // Not supported here; or user.* on what is neither file nor folder.
            Err(Errno::OPNOTSUPP) => *skipped += 1,
            Err(Errno::PERM) if name.starts_with(b"user.") => *skipped += 1,
            Err(errno) => return Err(Fault::Step("set an extended attribute", errno)),
        }
    }
    Ok(())
}

/// An image must not speak to overlayfs (redirect and metacopy lead to files of
/// other layers), and labels and hashes of another host mean nothing here.
fn is_wanted(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.overlay.")
        && !matches!(name, b"security.selinux" | b"security.ima" | b"security.evm")
}
