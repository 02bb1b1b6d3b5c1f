//! Where entries go: folders of the layer by their path in the archive.
//!
//! Every step down is one name, opened with O_NOFOLLOW (or a whole path that
//! the kernel resolves with RESOLVE_BENEATH and without symlinks). A symlink
//! among the parents is read and followed here, as at the root of a container:
//! "/" and ".." end at the layer's root. As nobody else writes to the folder
//! while it is unpacked, what was resolved stays true until an entry changes
//! it, and [`Places::forget`] is called then. So nothing is ever made outside.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{Fault, attributes, step};
use crate::image::{
    tar::{Entry, Time},
    view::join,
    walk,
};

/// Symlinks followed for one path, as in the kernel.
const MAX_LINKS: usize = 40;
/// Longest path of a folder, as in the kernel. Entries can go deeper, by way of
/// symlinks, but nobody could open what is there.
const MAX_PATH: usize = 4095;
/// Names looked up one by one in a whole layer. Only paths with symlinks in them need
/// that; with many long ones an archive could keep a thread busy for days.
const MAX_STEPS: u64 = 1 << 26;
/// What a folder takes in memory besides its path.
const FOLDER: usize = 96;

/// An open folder that things are made in (perhaps O_PATH).
#[derive(Debug)]
pub(super) struct Parent {
    /// From the layer's root, without symlinks; empty for the root.
    pub path: Vec<u8>,
    pub fd: OwnedFd,
    /// New files get the folder's group, not ours.
    pub setgid: bool,
}

impl Parent {
    pub fn child(&self, name: &[u8]) -> Vec<u8> {
        join(&self.path, name)
    }
}

/// How a folder came to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Folder {
    /// By an entry, whose times it gets in the end.
    Explicit(Time, Option<Time>),
    /// As the parent of an entry: the layers below may know its attributes.
    Implied,
    /// As the parent of an entry, over a whiteout: those below do not count.
    Made,
}

#[derive(Debug)]
pub(super) struct Places<'a> {
    pub root: BorrowedFd<'a>,
    /// All folders made, by [`Parent::path`].
    pub folders: BTreeMap<Vec<u8>, Folder>,
    /// The folder of the last entry, by its name in the archive: the next one's too, mostly.
    last: Option<(Vec<u8>, Rc<Parent>)>,
    /// Bytes that `folders` takes, and may.
    memory: usize,
    most: usize,
    steps: u64,
    /// A whiteout gave way to a folder.
    pub replaced: bool,
}

/// The names of a path, cleaned as at a root: no empty ones, no "." and "..".
pub(super) fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts
}

impl<'a> Places<'a> {
    /// `most`: see [`super::Limits::folders`].
    pub fn new(root: BorrowedFd<'a>, most: usize) -> Places<'a> {
        Places {
            root,
            folders: BTreeMap::new(),
            last: None,
            memory: 0,
            most,
            steps: 0,
            replaced: false,
        }
    }

    fn insert(&mut self, path: Vec<u8>, folder: Folder) -> Result<(), Fault> {
        if path.len() > MAX_PATH {
            return Err(Fault::Step("make its folder", Errno::NAMETOOLONG));
        }
        let size = path.len() + FOLDER;
        if self.folders.insert(path, folder).is_none() {
            self.memory += size;
        }
        if self.memory > self.most {
            return Err(Fault::TooManyFolders(self.most));
        }
        Ok(())
    }

    fn remove(&mut self, path: &[u8]) {
        if self.folders.remove(path).is_some() {
            self.memory -= path.len() + FOLDER;
        }
    }

    /// The folder of a cleaned path, made if it is not there.
    pub fn parent(&mut self, path: &[u8]) -> Result<Rc<Parent>, Fault> {
        if let Some((asked, parent)) = &self.last
            && asked == path
        {
            return Ok(Rc::clone(parent));
        }
        let parent = Rc::new(self.resolve(path, true)?.ok_or(Fault::NoFolder(path.to_vec()))?);
        self.last = Some((path.to_vec(), Rc::clone(&parent)));
        Ok(parent)
    }

    /// The folder of a cleaned path, if it is there.
    pub fn find(&mut self, path: &[u8]) -> Result<Option<Rc<Parent>>, Fault> {
        if let Some((asked, parent)) = &self.last
            && asked == path
        {
            return Ok(Some(Rc::clone(parent)));
        }
        Ok(self.resolve(path, false)?.map(Rc::new))
    }

    /// Notes a folder that an entry made; what comes next is likely in it.
    pub fn explicit(&mut self, path: Vec<u8>, fd: OwnedFd, entry: &Entry) -> Result<(), Fault> {
        self.insert(path.clone(), Folder::Explicit(entry.mtime, entry.atime))?;
        let parent = Parent {
            path,
            fd,
            setgid: entry.mode & 0o2000 != 0,
        };
        self.last = Some((clean(&entry.path).join(&b'/'), Rc::new(parent)));
        Ok(())
    }

    /// Something at `path` is replaced: what is known of it and below it is void.
    pub fn forget(&mut self, path: &[u8]) {
        self.last = None;
        self.remove(path);
        let below = [path, b"/"].concat();
        let behind = [path, b"0"].concat();
        let keys: Vec<_> = self
            .folders
            .range(below..behind)
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.remove(&key);
        }
    }

    /// Opens a folder by [`Parent::path`] for reading; None when it is no folder any more.
    pub fn open(&self, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.open_with(path, flags)
    }

    fn open_with(&self, path: &[u8], flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(self.root, path, flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Finds a folder, in one system call when it is there and no symlink is on
    /// the way, else name by name. `make` makes what is missing.
    fn resolve(&mut self, path: &[u8], make: bool) -> Result<Option<Parent>, Fault> {
        const FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
        let open = step("open its folder");
        if let Some(fd) = self.open_with(path, FLAGS).map_err(&open)? {
            return parent(path.to_vec(), fd).map(Some);
        }
        let mut todo: Vec<Vec<u8>> = path.split(|&b| b == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut here = Vec::new();
        let mut fd = self.open_with(b"", FLAGS).map_err(&open)?;
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let Some(folder) = &fd else { return Ok(None) };
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(Fault::Step("follow the symlinks among its folders", Errno::LOOP));
            }
            if name.is_empty() || name == b"." {
                continue;
            }
            if name == b".." {
                here.truncate(here.iter().rposition(|&b| b == b'/').unwrap_or(0));
                fd = self.open_with(&here, FLAGS).map_err(&open)?;
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = match rustix::fs::openat(folder, &name[..], flags, Mode::empty()) {
                Ok(next) => Some(next),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(open(errno)),
            };
            let stat = match &next {
                Some(next) => Some(rustix::fs::fstat(next).map_err(&open)?),
                None => None,
            };
            let kind = stat.map(|stat| FileType::from_raw_mode(stat.st_mode));
            let whiteout =
                kind == Some(FileType::CharacterDevice) && stat.is_some_and(|stat| stat.st_rdev == 0);
            match (next, kind) {
                (Some(next), Some(FileType::Directory)) => {
                    here = join(&here, &name);
                    fd = Some(next);
                }
                (Some(next), Some(FileType::Symlink)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(open(Errno::LOOP));
                    }
                    let target = rustix::fs::readlinkat(&next, c"", Vec::new()).map_err(&open)?;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        here.clear();
                        fd = self.open_with(b"", FLAGS).map_err(&open)?;
                    }
                    todo.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
                }
                _ if !make => return Ok(None),
                (Some(_), _) if !whiteout => return Err(Fault::NoFolder(join(&here, &name))),
                _ => {
                    let made = make_folder(folder.as_fd(), &name, whiteout)?;
                    self.replaced |= whiteout;
                    here = join(&here, &name);
                    let how = if whiteout { Folder::Made } else { Folder::Implied };
                    self.insert(here.clone(), how)?;
                    fd = Some(made);
                }
            }
        }
        fd.map(|fd| parent(here, fd)).transpose()
    }
}

fn parent(path: Vec<u8>, fd: OwnedFd) -> Result<Parent, Fault> {
    let stat = rustix::fs::fstat(&fd).map_err(step("stat its folder"))?;
    Ok(Parent {
        path,
        fd,
        setgid: stat.st_mode & 0o2000 != 0,
    })
}

/// Makes a folder that has no entry (yet): 0755 root, whatever our umask and its parent's group.
fn make_folder(parent: BorrowedFd<'_>, name: &[u8], over_whiteout: bool) -> Result<OwnedFd, Fault> {
    let make = step("make its folder");
    if over_whiteout {
        rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(&make)?;
    }
    rustix::fs::mkdirat(parent, name, Mode::RWXU).map_err(&make)?;
    let name = std::ffi::CString::new(name).map_err(|_| make(Errno::INVAL))?;
    let fd = walk::open_folder(parent, &name).map_err(&make)?;
    attributes::set_owner_and_mode(fd.as_fd(), (0, 0), 0o755).map_err(&make)?;
    if over_whiteout {
        attributes::set_opaque(fd.as_fd()).map_err(&make)?;
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_as_at_a_root() {
        for (path, clean_path) in [
            ("a/b", "a/b"),
            ("./a//b/.", "a/b"),
            ("/a/../../b", "b"),
            ("../../etc/passwd", "etc/passwd"),
            ("./", ""),
            ("a/..", ""),
            ("...", "..."),
        ] {
            assert_eq!(
                clean(path.as_bytes()).join(&b'/'),
                clean_path.as_bytes(),
                "{path}"
            );
        }
    }
}
