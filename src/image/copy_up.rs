//! Copies what an image has at the path of a volume into the volume's folder.

use std::{
    collections::HashMap,
    ffi::CStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timestamps, Uid},
    io::Errno,
};

use super::{
    attributes::Attributes,
    view::{self, Child, Folder, Node, View, join},
};
use crate::kind::{HasKind, Kind};

/// Bytes asked of copy_file_range at a time, so that a kill is not held up.
const STRETCH: u64 = 64 << 20;

/// Errors of copying a volume's content; `path` is in the image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    View(#[from] view::Error),
    #[error("make volume folder {path}: {errno}")]
    Destination { path: PathBuf, errno: Errno },
    #[error("the image has a volume at {path:?}, but there is no folder: the image is built wrong")]
    NoFolder { path: String },
    #[error("copy {path:?} of the image into its volume: {step}: {errno}")]
    Copy {
        path: String,
        step: &'static str,
        errno: Errno,
    },
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::View(error) => error.kind(),
            Error::NoFolder { .. } => Kind::FailedPrecondition,
            Error::Destination {
                errno: Errno::NOSPC | Errno::DQUOT,
                ..
            }
            | Error::Copy {
                errno: Errno::NOSPC | Errno::DQUOT,
                ..
            } => Kind::ResourceExhausted,
            Error::Destination { .. } | Error::Copy { .. } => Kind::Internal,
        }
    }
}

/// Copies the folder `path` of the image (its layers top first), with owners,
/// modes, times and extended attributes, its own too, into `dest`, which is made
/// if missing and should be empty. If the image has nothing there, `dest` is an
/// empty folder, 0755 root. Half a copy is left when it fails.
pub fn copy_up(layers: &[PathBuf], path: &str, dest: &Path) -> Result<(), Error> {
    let target = destination(dest).map_err(|errno| Error::Destination {
        path: dest.into(),
        errno,
    })?;
    let view = View::open(layers)?;
    let failed = |step, errno| Error::Copy {
        path: path.into(),
        step,
        errno,
    };
    let top = match view
        .lookup(path.as_bytes())
        .map_err(|errno| failed("find it", errno))?
    {
        None => return Ok(()),
        Some(Node::Other { .. }) => return Err(Error::NoFolder { path: path.into() }),
        Some(Node::Folder(folder)) => folder,
    };
    let mut copy = Copy {
        view: &view,
        target,
        links: HashMap::new(),
        times: Vec::new(),
    };
    let mut todo = vec![(top, Vec::new())];
    while let Some((folder, relative)) = todo.pop() {
        let named = |(step, errno)| Error::Copy {
            path: String::from_utf8_lossy(&folder.path).into_owned(),
            step,
            errno,
        };
        copy.folder(&folder, relative, &mut todo).map_err(named)?;
    }
    copy.finish().map_err(|errno| failed("set folders' times", errno))
}

fn destination(dest: &Path) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdir(dest, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dest, flags, Mode::empty())?;
    rustix::fs::fchown(&fd, Some(Uid::ROOT), Some(Gid::ROOT))?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))?;
    Ok(fd)
}

/// The step that failed, and how.
type Failure = (&'static str, Errno);

fn step(step: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| (step, errno)
}

struct Copy<'a> {
    view: &'a View,
    target: OwnedFd,
    /// Files with several names, by layer and inode: the first copy.
    links: HashMap<(usize, u64), Vec<u8>>,
    /// Times of folders, for when nothing is made in them any more.
    times: Vec<(Vec<u8>, Timestamps)>,
}

impl Copy<'_> {
    /// Opens a copied folder. No symlink is on the way, but a volume is also
    /// somebody's to write to, later.
    fn open(&self, relative: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if relative.is_empty() { b"." } else { relative };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(&self.target, path, flags, Mode::empty(), resolve)
    }

    /// Copies one folder's attributes and what is in it; folders in it go to `todo`.
    fn folder(
        &mut self,
        folder: &Folder,
        relative: Vec<u8>,
        todo: &mut Vec<(Folder, Vec<u8>)>,
    ) -> Result<(), Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let target = self.open(&relative).map_err(step("open the copy"))?;
        let mut sources: HashMap<usize, OwnedFd> = HashMap::new();
        for &layer in &folder.layers {
            let fd = self
                .view
                .open_at(layer, &folder.path, flags)
                .map_err(step("open it"))?;
            sources.insert(layer, fd);
        }
        if let Some(first) = folder.layers.first().and_then(|layer| sources.get(layer)) {
            let attributes = Attributes::of(first.as_fd()).map_err(step("read its attributes"))?;
            attributes
                .apply(target.as_fd())
                .map_err(step("set its attributes"))?;
            self.times.push((relative.clone(), attributes.times()));
        }
        for (name, child) in self.view.children(folder).map_err(step("read the folder"))? {
            let place = join(&relative, name.as_bytes());
            match child {
                Child::Folder(layers) => {
                    rustix::fs::mkdirat(&target, &name, Mode::RWXU).map_err(step("make a folder"))?;
                    let path = join(&folder.path, name.as_bytes());
                    todo.push((Folder { path, layers }, place));
                }
                Child::Other(layer) => {
                    let Some(source) = sources.get(&layer) else {
                        continue;
                    };
                    self.other((layer, source.as_fd()), target.as_fd(), &name, place)?;
                }
            }
        }
        Ok(())
    }

    fn other(
        &mut self,
        (layer, source): (usize, BorrowedFd<'_>),
        target: BorrowedFd<'_>,
        name: &CStr,
        place: Vec<u8>,
    ) -> Result<(), Failure> {
        let stat =
            rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW).map_err(step("stat a file"))?;
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(layer, stat.st_ino)) {
                return rustix::fs::linkat(&self.target, &first[..], target, name, AtFlags::empty())
                    .map_err(step("make a hard link"));
            }
            self.links.insert((layer, stat.st_ino), place);
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => file(source, target, name).map_err(step("copy a file")),
            kind => node(source, target, name, kind, &stat).map_err(step("copy a symlink or device")),
        }
    }

    fn finish(self) -> Result<(), Errno> {
        for (relative, times) in self.times.iter().rev() {
            rustix::fs::futimens(self.open(relative)?, times)?;
        }
        Ok(())
    }
}

fn file(source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // NONBLOCK: should it be a FIFO by now, opening it must not wait.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = rustix::fs::openat(source, name, flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR)?;
    let size = u64::try_from(rustix::fs::fstat(&from)?.st_size).unwrap_or(0);
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(errno) => return Err(errno),
        };
        let end = rustix::fs::seek(&from, SeekFrom::Hole(start)).unwrap_or(size);
        stretch(&from, &to, start, end)?;
        at = end.max(start + 1);
    }
    rustix::fs::ftruncate(&to, size)?;
    let attributes = Attributes::of(from.as_fd())?;
    attributes.apply(to.as_fd())?;
    rustix::fs::futimens(&to, &attributes.times())
}

/// Copies bytes from `start` to `end`, sharing or in the kernel where it can.
fn stretch(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> Result<(), Errno> {
    let (mut at, mut out) = (start, start);
    let mut in_kernel = true;
    let mut buffer = Vec::new();
    while at < end {
        let most = (end - at).min(STRETCH);
        if in_kernel {
            let length = usize::try_from(most).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut out), length) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                    in_kernel = false;
                    buffer = vec![0u8; 256 << 10];
                }
                Err(errno) => return Err(errno),
            }
            continue;
        }
        let length = usize::try_from(most).map_or(buffer.len(), |most| most.min(buffer.len()));
        let read = rustix::io::pread(from, &mut buffer[..length], at)?;
        if read == 0 {
            return Ok(());
        }
        let written = rustix::io::pwrite(to, &buffer[..read], at)?;
        at += u64::try_from(written).unwrap_or(0);
    }
    Ok(())
}

fn node(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &CStr,
    kind: FileType,
    stat: &Stat,
) -> Result<(), Errno> {
    if kind == FileType::Symlink {
        let link = rustix::fs::readlinkat(source, name, Vec::new())?;
        rustix::fs::symlinkat(link, target, name)?;
    } else {
        rustix::fs::mknodat(target, name, kind, Mode::empty(), stat.st_rdev)?;
    }
    let attributes = Attributes::of_stat(stat);
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    rustix::fs::chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        // Made right here, in a folder nobody else has yet: it is no symlink.
        rustix::fs::chmodat(
            target,
            name,
            Mode::from_raw_mode(attributes.mode),
            AtFlags::empty(),
        )?;
    }
    rustix::fs::utimensat(target, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)
}
