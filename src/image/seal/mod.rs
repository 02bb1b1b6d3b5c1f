//! The seal of a layer: two sums over what a layer's folder holds, made while it is
//! unpacked and made again from the disk when the machine has stopped uncleanly
//! ([`super::check`]). Equal seals: no byte, name or attribute is missing or another.
//!
//! It finds what disks lose, not what somebody forges: xxh3 of 128 bits, at memory speed.
//! Sums do not depend on the order of entries, so nothing is kept per file.
//!
//! - The contents: of each file its size and its blocks of [`BLOCK`] bytes that are not all
//!   zero (so that holes cost nothing). Files with several names count once.
//! - The tree: of each name its kind, owner, mode, whole seconds of its time, device, target
//!   of a symlink and extended attributes. Of folders that the archive had no entry for only
//!   the name: the rest comes from the layers below, and variants of a layer differ in it.
//!
//! SELinux labels are left out: they are this machine's, and may be set anew.

#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    ffi::CStr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat},
    io::Errno,
};
use twox_hash::XxHash3_128;

use super::{
    view::{self, join},
    walk::{self, Visitor},
};

/// Bytes hashed at a time.
const BLOCK: usize = 64 << 10;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    tree: u128,
    contents: u128,
}

impl Seal {
    /// Of a folder that was just unpacked, whose contents are known.
    pub fn with(top: OwnedFd, implied: &[PathBuf], contents: &Contents) -> Result<Seal, Errno> {
        Look::new(implied, false).walk(top, contents.sum)
    }

    /// Of a folder, all read from the disk.
    pub fn of(top: OwnedFd, implied: &[PathBuf]) -> Result<Seal, Errno> {
        Look::new(implied, true).walk(top, 0)
    }

    /// As the records have it.
    pub fn to_bytes(self) -> Vec<u8> {
        [self.tree.to_be_bytes(), self.contents.to_be_bytes()].concat()
    }
}

/// The sum over the contents of files.
#[derive(Debug, Default)]
pub struct Contents {
    sum: u128,
    /// The file that is being added: its blocks so far.
    file: u128,
    index: u64,
    partial: Vec<u8>,
    end: u64,
    /// Something was written twice: the sum is worth nothing.
    pub spoiled: bool,
}

impl Contents {
    /// Bytes of the current file, in their order; what lies between is zeros.
    pub fn update(&mut self, mut offset: u64, mut bytes: &[u8]) {
        self.spoiled |= offset < self.end;
        while !bytes.is_empty() {
            let index = offset / BLOCK as u64;
            let start = usize::try_from(offset % BLOCK as u64).unwrap_or(0);
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK - start));
            if index != self.index {
                self.flush();
                self.index = index;
            }
            if now.len() == BLOCK {
                self.block(now);
            } else {
                self.partial.resize(start, 0);
                self.partial.extend_from_slice(now);
            }
            offset += now.len() as u64;
            bytes = rest;
        }
        self.end = offset;
    }

    /// The current file has no more, and is `size` bytes long.
    pub fn file(&mut self, size: u64) {
        self.flush();
        let file = std::mem::take(&mut self.file);
        self.sum = self
            .sum
            .wrapping_add(XxHash3_128::oneshot_with_seed(size, &file.to_be_bytes()));
        (self.index, self.end) = (0, 0);
    }

    fn flush(&mut self) {
        let partial = std::mem::take(&mut self.partial);
        self.block(&partial);
        self.partial = partial;
        self.partial.clear();
    }

    fn block(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            let hash = XxHash3_128::oneshot_with_seed(self.index, &bytes[..=last]);
            self.file = self.file.wrapping_add(hash);
        }
    }
}

/// The walk that sums up.
struct Look<'a> {
    implied: HashSet<&'a [u8]>,
    tree: u128,
    /// None: contents are not read.
    contents: Option<Contents>,
    /// The folder that the walk is in.
    path: Vec<u8>,
    /// Files with several names that were read.
    linked: HashSet<u64>,
    entry: Vec<u8>,
    buffer: Vec<u8>,
}

impl<'a> Look<'a> {
    fn new(implied: &'a [PathBuf], read: bool) -> Look<'a> {
        Look {
            implied: implied.iter().map(|path| path.as_os_str().as_bytes()).collect(),
            tree: 0,
            contents: read.then(Contents::default),
            path: Vec::new(),
            linked: HashSet::new(),
            entry: Vec::new(),
            buffer: vec![0; 4 * BLOCK],
        }
    }

    fn walk(mut self, top: OwnedFd, contents: u128) -> Result<Seal, Errno> {
        // The rest of the root folder is the container's.
        self.entry.push(u8::from(view::is_opaque(top.as_fd())));
        self.add();
        walk::walk(top, &mut self)?;
        Ok(Seal {
            tree: self.tree,
            contents: self.contents.map_or(contents, |read| read.sum),
        })
    }

    fn add(&mut self) {
        self.tree = self
            .tree
            .wrapping_add(XxHash3_128::oneshot_with_seed(0, &self.entry));
        self.entry.clear();
    }

    fn field(&mut self, bytes: &[u8]) {
        self.entry.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.entry.extend_from_slice(bytes);
    }

    fn attributes(&mut self, stat: &Stat) {
        for number in [stat.st_mode, stat.st_uid, stat.st_gid] {
            self.entry.extend_from_slice(&number.to_be_bytes());
        }
        let size = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => stat.st_size,
            _ => 0,
        };
        for number in [stat.st_mtime, size] {
            self.entry.extend_from_slice(&number.to_be_bytes());
        }
        self.entry.extend_from_slice(&stat.st_rdev.to_be_bytes());
    }

    /// Extended attributes of a name in a folder, by whatever it is.
    fn xattrs(&mut self, path: &Path) -> Result<(), Errno> {
        let length = match rustix::fs::llistxattr(path, &mut self.buffer[..]) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
            Ok(length) => length,
            Err(errno) => return Err(errno),
        };
        let names = self.buffer[..length].to_vec();
        let mut names: Vec<&[u8]> = names.split(|byte| *byte == 0).collect();
        names.retain(|name| !name.is_empty() && *name != b"security.selinux");
        names.sort_unstable();
        for name in names {
            let length = rustix::fs::lgetxattr(path, name, &mut self.buffer[..])?;
            let value = self.buffer[..length].to_vec();
            self.field(name);
            self.field(&value);
        }
        Ok(())
    }

    fn read(&mut self, folder: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
        let Some(contents) = &mut self.contents else {
            return Ok(());
        };
        if stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
        let file = rustix::fs::openat(folder, name, flags, Mode::empty())?;
        let mut offset = 0;
        loop {
            offset = match rustix::fs::seek(&file, SeekFrom::Data(offset)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno),
            };
            let end = rustix::fs::seek(&file, SeekFrom::Hole(offset))?;
            while offset < end {
                let most =
                    usize::try_from(end - offset).map_or(self.buffer.len(), |n| n.min(self.buffer.len()));
                let read = rustix::io::pread(&file, &mut self.buffer[..most], offset)?;
                if read == 0 {
                    break;
                }
                contents.update(offset, &self.buffer[..read]);
                offset += read as u64;
            }
        }
        contents.file(u64::try_from(stat.st_size).unwrap_or(0));
        Ok(())
    }
}

impl Visitor for Look<'_> {
    fn leaf(&mut self, folder: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<(), Errno> {
        let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let path = join(&self.path, name.to_bytes());
        self.field(&path);
        self.attributes(&stat);
        if kind == FileType::Symlink {
            let target = rustix::fs::readlinkat(folder, name, Vec::new())?;
            self.field(target.to_bytes());
        }
        self.xattrs(&within(folder, name))?;
        self.add();
        if kind == FileType::RegularFile {
            self.read(folder, name, &stat)?;
        }
        Ok(())
    }

    fn enter(&mut self, name: &CStr, folder: BorrowedFd<'_>, stat: &Stat) -> Result<bool, Errno> {
        self.path = join(&self.path, name.to_bytes());
        let path = std::mem::take(&mut self.path);
        self.field(&path);
        if self.implied.contains(&path[..]) {
            self.entry.push(0);
        } else {
            self.attributes(stat);
            self.xattrs(&within(folder, c"."))?;
        }
        self.path = path;
        self.add();
        Ok(true)
    }

    fn leave(&mut self, _parent: BorrowedFd<'_>, _name: &CStr) -> Result<(), Errno> {
        self.path
            .truncate(self.path.iter().rposition(|&b| b == b'/').unwrap_or(0));
        Ok(())
    }
}

/// A name in an open folder as a path, for calls that take no descriptor.
fn within(folder: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    path.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
    path
}
