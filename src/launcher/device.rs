//! The nodes and links of a container's /dev.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, major, makedev, minor, mknodat, openat,
    statat, symlinkat,
};
use rustix::io::Errno;

use crate::proto::plan::{Device, device::Kind};

use super::Error;
use super::path::{Leaf, NO_LINKS, find_or_make};
use super::plan;
use super::step::{At, Step, Walk};
use super::user_namespace::Ranges;

#[derive(Debug)]
pub struct Prepared {
    folder: CString,
    name: CString,
    kind: FileType,
    number: rustix::fs::Dev,
    mode: Mode,
    uid: u32,
    gid: u32,
}

pub fn prepare(index: usize, device: &Device) -> Result<Prepared, Error> {
    let field = format!("devices[{index}]");
    plan::path(&field, &device.path)?;
    let (folder, name) = device.path.rsplit_once('/').unwrap_or(("", ""));
    if name.is_empty() || name == "." || name == ".." {
        return Err(Error::plan(
            field,
            format!("{:?} does not end in a name", device.path),
        ));
    }
    let kind = match Kind::try_from(device.kind) {
        Ok(Kind::Char) => FileType::CharacterDevice,
        Ok(Kind::Block) => FileType::BlockDevice,
        Ok(Kind::Fifo) => FileType::Fifo,
        Err(_) => return Err(Error::plan(field, format!("kind {} is unknown", device.kind))),
    };
    let number = if kind == FileType::Fifo {
        0
    } else {
        makedev(device.major, device.minor)
    };
    Ok(Prepared {
        folder: plan::field(&field, if folder.is_empty() { "/" } else { folder })?,
        name: plan::field(&field, name)?,
        kind,
        number,
        mode: Mode::from_raw_mode(device.mode & 0o7777),
        uid: device.uid,
        gid: device.gid,
    })
}

impl Prepared {
    /// In the child, with umask 0.
    pub fn make(&self, root: BorrowedFd<'_>, index: usize) -> Walk<()> {
        self.try_make(root).at_index(Step::MakeDevice, index)
    }

    /// In the parent, for a container in a user namespace: below the detached file system
    /// that will be its /dev. Its own root owns folders and nodes.
    pub fn make_in_dev(&self, dev: BorrowedFd<'_>, ranges: &Ranges) -> Result<(), Errno> {
        let below = match self.folder.to_bytes().strip_prefix(b"/dev") {
            Some(b"") => c"/".to_owned(),
            Some(below @ [b'/', ..]) => CString::new(below).map_err(|_| Errno::INVAL)?,
            // Outside of it only a process of the container could make a node, and may not.
            _ => return Err(Errno::PERM),
        };
        let folder = find_or_make(dev, &below, Leaf::Folder, NO_LINKS)?;
        own(folder.as_fd(), ranges)?;
        let name = self.name.as_c_str();
        match mknodat(&folder, name, self.kind, self.mode, self.number) {
            Err(Errno::EXIST) => {}
            answer => answer?,
        }
        let uid = ranges.host_uid(self.uid).ok_or(Errno::OVERFLOW)?;
        let gid = ranges.host_gid(self.gid).ok_or(Errno::OVERFLOW)?;
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(&folder, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        // Whatever the umask is. Nothing in there is a link: it is ours.
        chmodat(&folder, name, self.mode, AtFlags::empty())
    }

    fn try_make(&self, root: BorrowedFd<'_>) -> Result<(), Errno> {
        let folder = find_or_make(root, &self.folder, Leaf::Folder, NO_LINKS)?;
        match mknodat(&folder, self.name.as_c_str(), self.kind, self.mode, self.number) {
            // Named twice in the plan, or in the image: good when it is the same thing.
            Err(Errno::EXIST) => {
                let there = statat(&folder, self.name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
                let same = FileType::from_raw_mode(there.st_mode) == self.kind
                    && (self.kind == FileType::Fifo || there.st_rdev == self.number);
                if !same {
                    return Err(Errno::EXIST);
                }
            }
            answer => answer?,
        }
        let owner = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        chownat(
            &folder,
            self.name.as_c_str(),
            owner.0,
            owner.1,
            AtFlags::SYMLINK_NOFOLLOW,
        )
    }
}

/// Gives a folder to the root of a user namespace.
pub fn own(folder: BorrowedFd<'_>, ranges: &Ranges) -> Result<(), Errno> {
    let uid = ranges.host_uid(0).ok_or(Errno::OVERFLOW)?;
    let gid = ranges.host_gid(0).ok_or(Errno::OVERFLOW)?;
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    chownat(folder, c"", owner.0, owner.1, AtFlags::EMPTY_PATH)
}

/// Where they lead, and their names in /dev.
const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"fd"),
    (c"/proc/self/fd/0", c"stdin"),
    (c"/proc/self/fd/1", c"stdout"),
    (c"/proc/self/fd/2", c"stderr"),
    (c"pts/ptmx", c"ptmx"),
];

/// In the child: the links that programs expect; what is there already stays.
pub fn make_links(root: BorrowedFd<'_>, kcore: bool) -> Walk<()> {
    let folder = find_or_make(root, c"/dev", Leaf::Folder, NO_LINKS).at(Step::MakeLink)?;
    let core = kcore.then_some((c"/proc/kcore", c"core"));
    for (target, name) in LINKS.into_iter().chain(core) {
        match symlinkat(target, &folder, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            answer => answer.at(Step::MakeLink)?,
        }
    }
    Ok(())
}

/// The container's /dev/null, if it is that: a mask that binds something else shows it
/// (CVE-2025-31133 of runc).
pub fn open_null(root: BorrowedFd<'_>) -> Result<std::os::fd::OwnedFd, Errno> {
    let folder = super::path::find(root, c"/dev", NO_LINKS)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = openat(folder.as_fd(), c"null", flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&null)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3);
    if is_null { Ok(null) } else { Err(Errno::NODEV) }
}
