//! Reading and writing the small files of a cgroup.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::{Error, Result};

fn error(step: &'static str, path: &Path, errno: Errno) -> Error {
    Error::File {
        step,
        path: path.to_owned(),
        errno,
    }
}

/// One write(2), as cgroup files want it. The file is never made.
pub fn write(path: &Path, value: &str) -> Result<()> {
    try_write(path, value).map_err(|errno| Error::File {
        step: "write",
        path: path.to_owned(),
        errno,
    })
}

/// The same with the bare errno, for callers that know what to make of it.
pub fn try_write(path: &Path, value: &str) -> std::result::Result<(), Errno> {
    let fd = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&fd, value.as_bytes())?;
    Ok(())
}

pub fn open_for_writing(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|errno| error("open", path, errno))
}

/// None when it does not exist, or its cgroup is being removed.
pub fn read_if_exists(path: &Path) -> Result<Option<String>> {
    let opened = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let fd = match opened {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(None),
        Err(errno) => return Err(error("open", path, errno)),
    };
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(&fd, &mut buffer) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(Errno::NODEV | Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(error("read", path, errno)),
        }
    }
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// A folder to pass to clone3; None when it does not exist.
pub fn open_folder(path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match openat(CWD, path, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(error("open", path, errno)),
    }
}
