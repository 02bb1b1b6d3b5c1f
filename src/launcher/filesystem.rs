//! New file systems by fsopen, fsconfig and fsmount: detached mounts as descriptors.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::step::{At, Detail, Step, Walk};

pub const RDONLY: u64 = 1;
pub const NOSUID: u64 = 2;
pub const NODEV: u64 = 4;
pub const NOEXEC: u64 = 8;

/// An option of a file system: `key` alone is a flag.
pub type Parameter = (CString, Option<CString>);

/// "key=value" or "key".
pub fn parameter(text: &str) -> Option<Parameter> {
    match text.split_once('=') {
        Some((key, value)) => Some((CString::new(key).ok()?, Some(CString::new(value).ok()?))),
        None => Some((CString::new(text).ok()?, None)),
    }
}

/// A detached mount of a new file system. When it fails, the detail is what the
/// kernel said about it.
pub fn make(
    kind: &CStr,
    source: &CStr,
    parameters: &[Parameter],
    attributes: u64,
    step: Step,
) -> Walk<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).at(step)?;
    configure(&context, source, parameters, attributes)
        .at(step)
        .map_err(|mut failure| {
            failure.detail = complaint(context.as_fd());
            failure
        })
}

fn configure(
    context: &OwnedFd,
    source: &CStr,
    parameters: &[Parameter],
    attributes: u64,
) -> Result<OwnedFd, Errno> {
    if !source.is_empty() {
        fsconfig_set_string(context, c"source", source)?;
    }
    for (key, value) in parameters {
        match value {
            Some(value) => fsconfig_set_string(context, key.as_c_str(), value.as_c_str())?,
            None => fsconfig_set_flag(context, key.as_c_str())?,
        }
    }
    mount(context, attributes)
}

/// Creates the superblock of a configured context, and a detached mount of it.
pub fn mount(context: &OwnedFd, attributes: u64) -> Result<OwnedFd, Errno> {
    fsconfig_create(context)?;
    let attributes = u32::try_from(attributes).map_err(|_| Errno::INVAL)?;
    fsmount(
        context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::from_bits_retain(attributes),
    )
}

/// The first error that the kernel has written down: "e tmpfs: Unknown parameter 'x'".
pub fn complaint(context: BorrowedFd<'_>) -> Detail {
    let mut buffer = [0u8; 256];
    for _ in 0..16 {
        match rustix::io::read(context, &mut buffer) {
            Ok(length) => {
                let line = buffer.get(..length).unwrap_or_default();
                if let Some(text) = line.strip_prefix(b"e ") {
                    return Detail::new(text);
                }
            }
            Err(_) => break,
        }
    }
    Detail::NONE
}

/// Moves a detached mount onto what `target` refers to.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

/// A procfs of the caller's pid namespace that is mounted nowhere: what is opened
/// through it cannot have been covered by a container's mounts (CVE-2025-52881 of runc).
pub fn private_procfs() -> Walk<OwnedFd> {
    make(c"proc", c"proc", &[], NOSUID | NODEV | NOEXEC, Step::Procfs)
}

/// The option of a procfs that is of another pid namespace than the caller's.
pub fn pid_namespace(file: BorrowedFd<'_>) -> Option<Parameter> {
    parameter(&format!("pidns=/proc/self/fd/{}", file.as_raw_fd()))
}

/// Whether the kernel knows that option: since Linux 6.18.
pub fn has_procfs_of(file: BorrowedFd<'_>) -> bool {
    let Some((key, Some(value))) = pid_namespace(file) else {
        return false;
    };
    let context = fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC);
    context.is_ok_and(|context| fsconfig_set_string(context, key.as_c_str(), value.as_c_str()).is_ok())
}

/// A procfs with processes and nothing else of the kernel's (Linux 5.8): whoever gets hold
/// of it has got nothing.
pub fn procfs_of_processes() -> Walk<OwnedFd> {
    let make = || {
        let context = fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, c"source", c"proc")?;
        fsconfig_set_string(&context, c"subset", c"pid")?;
        mount(&context, NOSUID | NODEV | NOEXEC)
    };
    make().at(Step::Procfs)
}
