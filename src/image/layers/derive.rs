//! A layer's tree made anew, with hard links to its files.

use std::{
    collections::HashSet,
    ffi::CStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, Stat, Timestamps, XattrFlags},
    io::Errno,
};

use super::{Attributes, Unpacked, open_inside};
use crate::image::{
    view::{self, join},
    walk::{self, Visitor},
};

/// Fills `target` with the tree `from`. Folders get the attributes of theirs,
/// but those in `implied` are as if just unpacked.
pub(super) fn link(from: OwnedFd, target: BorrowedFd<'_>, implied: &[PathBuf]) -> Result<Unpacked, Errno> {
    let opaque_root = view::is_opaque(from.as_fd());
    let mut link = Link {
        target,
        here: target.try_clone_to_owned().map_err(|_| Errno::MFILE)?,
        path: Vec::new(),
        implied: implied.iter().map(|path| path.as_os_str().as_bytes()).collect(),
        times: Vec::new(),
        unpacked: Unpacked {
            implied: implied.to_vec(),
            opaque_root,
            ..Unpacked::default()
        },
    };
    if opaque_root {
        set_opaque(target)?;
    }
    walk::walk(from, &mut link)?;
    for (path, times) in link.times.iter().rev() {
        rustix::fs::futimens(open_inside(target, path)?, times)?;
    }
    Ok(link.unpacked)
}

fn set_opaque(folder: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fsetxattr(folder, c"trusted.overlay.opaque", b"y", XattrFlags::empty())
}

struct Link<'a> {
    target: BorrowedFd<'a>,
    /// The folder of the target that the walk is in, and its path.
    here: OwnedFd,
    path: Vec<u8>,
    implied: HashSet<&'a [u8]>,
    times: Vec<(Vec<u8>, Timestamps)>,
    unpacked: Unpacked,
}

impl Visitor for Link<'_> {
    fn leaf(&mut self, folder: BorrowedFd<'_>, name: &CStr, _kind: FileType) -> Result<(), Errno> {
        rustix::fs::linkat(folder, name, &self.here, name, AtFlags::empty())
    }

    fn enter(&mut self, name: &CStr, folder: BorrowedFd<'_>, stat: &Stat) -> Result<bool, Errno> {
        rustix::fs::mkdirat(&self.here, name, Mode::RWXU)?;
        self.here = walk::open_folder(&self.here, name)?;
        self.path = join(&self.path, name.to_bytes());
        let mut attributes = Attributes::of(folder)?;
        if self.implied.contains(&self.path[..]) {
            attributes = Attributes {
                uid: 0,
                gid: 0,
                mode: 0o755,
                mtime: (0, 0),
                xattrs: Vec::new(),
            };
        }
        attributes.apply(self.here.as_fd())?;
        if view::is_opaque(folder) {
            set_opaque(self.here.as_fd())?;
        }
        self.times.push((self.path.clone(), attributes.times()));
        self.unpacked.inodes += 1;
        self.unpacked.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        Ok(true)
    }

    fn leave(&mut self, _parent: BorrowedFd<'_>, _name: &CStr) -> Result<(), Errno> {
        self.path
            .truncate(self.path.iter().rposition(|&b| b == b'/').unwrap_or(0));
        self.here = open_inside(self.target, &self.path)?;
        Ok(())
    }
}
