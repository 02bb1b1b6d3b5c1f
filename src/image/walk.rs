//! Walks over a tree by descriptors: of any depth, with few of them open, never
//! through a symlink and never onto another filesystem.

use std::{
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat},
    io::Errno,
};

/// Folders kept open at a time. Those further up are found again by "..", and
/// checked to be the ones they were.
const OPEN: usize = 48;

/// What a walk does at each place.
pub(super) trait Visitor {
    /// Something in `folder` that is no folder.
    fn leaf(&mut self, folder: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<(), Errno>;

    /// A folder, before what is in it; `stat` is its own. False: it is passed over.
    fn enter(&mut self, name: &CStr, folder: BorrowedFd<'_>, stat: &Stat) -> Result<bool, Errno>;

    /// A folder, after what was in it; `parent` is where its name is.
    fn leave(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno>;
}

struct Level {
    /// None: given up for others deeper down.
    fd: Option<OwnedFd>,
    id: (u64, u64),
    name: CString,
    folders: Vec<CString>,
}

/// Opens a folder by one name, not through a symlink.
pub(super) fn open_folder(parent: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOATIME;
    match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        // Only the owner may ask for NOATIME.
        Err(Errno::PERM) => rustix::fs::openat(parent, name, flags - OFlags::NOATIME, Mode::empty()),
        other => other,
    }
}

/// Names in a folder and their kinds, "." and ".." left out.
pub(super) fn read_folder(
    folder: BorrowedFd<'_>,
    mut f: impl FnMut(&CStr, FileType) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 16 << 10];
    let mut entries = RawDir::new(folder, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            // The folder was removed since it was opened.
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            // Some filesystems don't say.
            FileType::Unknown => match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            },
            kind => kind,
        };
        f(name, kind)?;
    }
    Ok(())
}

/// Walks everything below `top` (which itself is neither entered nor left).
/// What vanishes meanwhile is passed over.
pub(super) fn walk(top: OwnedFd, visitor: &mut dyn Visitor) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(&top)?;
    let device = stat.st_dev;
    let mut levels = vec![level(top, &stat, CString::default(), visitor)?];
    loop {
        let depth = levels.len();
        let Some(current) = levels.last_mut() else {
            return Ok(());
        };
        if let Some(name) = current.folders.pop() {
            let Some(parent) = &current.fd else {
                return Err(Errno::BADF);
            };
            let folder = match open_folder(parent, &name) {
                Ok(folder) => folder,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(errno),
            };
            let stat = rustix::fs::fstat(&folder)?;
            if stat.st_dev != device || !visitor.enter(&name, folder.as_fd(), &stat)? {
                continue;
            }
            let next = level(folder, &stat, name, visitor)?;
            levels.push(next);
            if depth >= OPEN {
                levels[depth - OPEN].fd = None;
            }
            continue;
        }
        let Some(done) = levels.pop() else { return Ok(()) };
        let Some(parent) = levels.last_mut() else {
            return Ok(());
        };
        if parent.fd.is_none() {
            parent.fd = above(&done, parent.id)?;
        }
        match &parent.fd {
            Some(fd) => visitor.leave(fd.as_fd(), &done.name)?,
            // It was moved away: nothing of its old parents can be found from it.
            None => return Ok(()),
        }
    }
}

/// The folder above, if it is still the one it was.
fn above(level: &Level, id: (u64, u64)) -> Result<Option<OwnedFd>, Errno> {
    let Some(fd) = &level.fd else { return Ok(None) };
    let fd = match open_folder(fd, c"..") {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let stat = rustix::fs::fstat(&fd)?;
    Ok(((stat.st_dev, stat.st_ino) == id).then_some(fd))
}

fn level(fd: OwnedFd, stat: &Stat, name: CString, visitor: &mut dyn Visitor) -> Result<Level, Errno> {
    let mut folders = Vec::new();
    read_folder(fd.as_fd(), |name, kind| {
        if kind == FileType::Directory {
            folders.push(name.to_owned());
            return Ok(());
        }
        visitor.leaf(fd.as_fd(), name, kind)
    })?;
    Ok(Level {
        fd: Some(fd),
        id: (stat.st_dev, stat.st_ino),
        name,
        folders,
    })
}

/// Removes a folder, all below it and nothing else: links are not followed, and a
/// tree may be deeper than there are descriptors or stack. Missing is fine.
pub fn remove_all(path: &Path) -> io::Result<()> {
    let wrong = || io::Error::other("has no parent folder");
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(wrong());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let name = CString::new(name.as_encoded_bytes()).map_err(|_| wrong())?;
    Ok(remove_tree(parent.as_fd(), &name)?)
}

/// Removes the folder `name` in `parent` and all in it. Missing is fine.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let top = match open_folder(parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    walk(top, &mut Remove)?;
    gone(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR))
}

struct Remove;

impl Visitor for Remove {
    fn leaf(&mut self, folder: BorrowedFd<'_>, name: &CStr, _kind: FileType) -> Result<(), Errno> {
        gone(rustix::fs::unlinkat(folder, name, AtFlags::empty()))
    }

    fn enter(&mut self, _: &CStr, _: BorrowedFd<'_>, _: &Stat) -> Result<bool, Errno> {
        Ok(true)
    }

    fn leave(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        gone(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR))
    }
}

/// Gone already is as good.
fn gone(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// A chain of folders far deeper than a path or a descriptor table goes.
    fn deep(top: &std::path::Path, depth: usize) {
        let mut fd: OwnedFd = std::fs::File::open(top).unwrap().into();
        for _ in 0..depth {
            rustix::fs::mkdirat(&fd, "d", Mode::RWXU).unwrap();
            fd = open_folder(&fd, c"d").unwrap();
            rustix::fs::mknodat(&fd, "f", FileType::RegularFile, Mode::RUSR, 0).unwrap();
        }
    }

    #[test]
    fn trees_of_any_depth_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        deep(&dir.path().join("tree"), 5000);
        let parent = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(
            crate::image::usage::usage(&dir.path().join("tree"))
                .unwrap()
                .inodes,
            10001
        );
        remove_tree(parent.as_fd(), c"tree").unwrap();
        remove_tree(parent.as_fd(), c"tree").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, kept) = (dir.path().join("tree"), dir.path().join("kept"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("a/link")).unwrap();
        let parent = std::fs::File::open(dir.path()).unwrap();
        remove_tree(parent.as_fd(), c"tree").unwrap();
        assert!(!tree.exists());
        assert!(kept.join("file").exists());
    }
}
