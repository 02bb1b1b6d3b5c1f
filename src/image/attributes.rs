//! Owner, mode, times and extended attributes that go from one inode to another.

use std::os::fd::BorrowedFd;

use rustix::{
    fs::{Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

/// Name and value.
type Xattr = (Vec<u8>, Vec<u8>);

/// What is copied of a file or folder besides its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Sorted by name.
    pub xattrs: Vec<Xattr>,
}

impl Attributes {
    /// Of an open file or folder (not O_PATH). overlayfs's own extended
    /// attributes and SELinux labels are left out.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Attributes, Errno> {
        let mut attributes = Attributes::of_stat(&rustix::fs::fstat(fd)?);
        attributes.xattrs = xattrs(fd)?;
        Ok(attributes)
    }

    /// Without extended attributes.
    pub fn of_stat(stat: &Stat) -> Attributes {
        Attributes {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
            mtime: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            xattrs: Vec::new(),
        }
    }

    /// Sets all but the times: the owner first, as a change of it takes setuid
    /// bits and capabilities away.
    pub fn apply(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        rustix::fs::fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        for (name, value) in &self.xattrs {
            match rustix::fs::fsetxattr(fd, &name[..], value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(self.mode))
    }

    pub fn times(&self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.mtime.0,
            tv_nsec: self.mtime.1,
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }
}

fn xattrs(fd: BorrowedFd<'_>) -> Result<Vec<Xattr>, Errno> {
    let mut names = vec![0u8; 64 << 10];
    let length = match rustix::fs::flistxattr(fd, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0u8; 64 << 10];
        match rustix::fs::fgetxattr(fd, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                found.push((name.to_vec(), value));
            }
            // Removed meanwhile, or not for reading.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    found.sort();
    Ok(found)
}
