//! How much of the disk a tree takes: of layers, and of containers' writable folders.

use std::{
    collections::HashSet,
    ffi::CStr,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use super::walk::{Visitor, walk};
use crate::kind::{HasKind, Kind};

/// What a tree takes, its top folder counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on the disk (blocks, not lengths).
    pub bytes: u64,
    /// Files, folders, links, devices; what has several names counts once.
    pub inodes: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("measure the disk usage of {path}: {errno}")]
pub struct Error {
    pub path: PathBuf,
    pub errno: Errno,
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self.errno {
            Errno::NOENT => Kind::NotFound,
            _ => Kind::Internal,
        }
    }
}

/// Measures the tree at `path`, on its filesystem only. It may change meanwhile:
/// what vanishes is not counted.
pub fn usage(path: &Path) -> Result<Usage, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .and_then(usage_at)
        .map_err(|errno| Error {
            path: path.into(),
            errno,
        })
}

/// As [`usage`], of an open folder (not O_PATH).
pub(super) fn usage_at(top: OwnedFd) -> Result<Usage, Errno> {
    let stat = rustix::fs::fstat(&top)?;
    let mut count = Count {
        usage: Usage::default(),
        device: stat.st_dev,
        linked: HashSet::new(),
    };
    count.add(&stat);
    walk(top, &mut count)?;
    Ok(count.usage)
}

struct Count {
    usage: Usage,
    device: u64,
    /// Inodes with several names that were counted.
    linked: HashSet<u64>,
}

impl Count {
    fn add(&mut self, stat: &Stat) {
        self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        self.usage.inodes += 1;
    }
}

impl Visitor for Count {
    fn leaf(&mut self, folder: BorrowedFd<'_>, name: &CStr, _kind: FileType) -> Result<(), Errno> {
        let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        // A file may be a mount point too.
        if stat.st_dev == self.device && (stat.st_nlink < 2 || self.linked.insert(stat.st_ino)) {
            self.add(&stat);
        }
        Ok(())
    }

    fn enter(&mut self, _: &CStr, _: BorrowedFd<'_>, stat: &Stat) -> Result<bool, Errno> {
        self.add(stat);
        Ok(true)
    }

    fn leave(&mut self, _: BorrowedFd<'_>, _: &CStr) -> Result<(), Errno> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_and_links_once() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        let empty = usage(top).unwrap();
        std::fs::write(top.join("file"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(top.join("file"), top.join("link")).unwrap();
        std::os::unix::fs::symlink("/", top.join("root")).unwrap();
        let holes = std::fs::File::create(top.join("holes")).unwrap();
        holes.set_len(1 << 30).unwrap();
        let full = usage(top).unwrap();
        assert_eq!(full.inodes - empty.inodes, 3);
        assert!(
            (100_000..200_000).contains(&(full.bytes - empty.bytes)),
            "{full:?}"
        );
        assert_eq!(usage(&top.join("none")).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn a_tree_that_changes_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().to_path_buf();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let churn = std::thread::spawn({
            let (top, stop) = (top.clone(), stop.clone());
            move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for n in 0..20 {
                        std::fs::create_dir_all(top.join(format!("a{n}/b/c"))).unwrap();
                        std::fs::write(top.join(format!("a{n}/b/c/f")), "x").unwrap();
                        std::fs::remove_dir_all(top.join(format!("a{n}"))).unwrap();
                    }
                }
            }
        });
        for _ in 0..300 {
            usage(&top).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        churn.join().unwrap();
    }
}
