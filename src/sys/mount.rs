//! mount_setattr, the part of the new mount API that rustix lacks.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::check;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What [`set_attributes`] changes. `propagation` is 0 (leave) or one of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
}

pub const PRIVATE: u64 = libc::MS_PRIVATE;
pub const SLAVE: u64 = libc::MS_SLAVE;
pub const SHARED: u64 = libc::MS_SHARED;

/// mount_setattr(2) on the mount that `fd` refers to, with all below it when `recursive`.
///
/// # Errors
/// Those of mount_setattr(2), Linux 5.12.
pub fn set_attributes(fd: BorrowedFd<'_>, attributes: Attributes, recursive: bool) -> Result<(), Errno> {
    set_attributes_at(fd, c"", attributes, recursive)
}

/// Makes the detached mount `fd`, with all below it when `recursive`, show the owners of
/// its files as the user namespace `user` maps them: what is 0 on the disk is the
/// namespace's 0. For good, and only where no mount was mapped before.
///
/// # Errors
/// Those of mount_setattr(2): EINVAL when the file system cannot do it.
pub fn map_owners(fd: BorrowedFd<'_>, user: BorrowedFd<'_>, recursive: bool) -> Result<(), Errno> {
    let attr = MountAttr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(user.as_raw_fd().unsigned_abs()),
    };
    set(fd, c"", &attr, recursive)
}

/// [`set_attributes`] for a path relative to `fd`.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn set_attributes_at(
    fd: BorrowedFd<'_>,
    path: &CStr,
    attributes: Attributes,
    recursive: bool,
) -> Result<(), Errno> {
    let attr = MountAttr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    set(fd, path, &attr, recursive)
}

fn set(fd: BorrowedFd<'_>, path: &CStr, attr: &MountAttr, recursive: bool) -> Result<(), Errno> {
    let mut flags = 0;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `path` is terminated, `attr` is the structure of the given size and lives across the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}
