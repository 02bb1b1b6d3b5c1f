//! Layers seen as overlayfs shows them, without a mount: upper over lower,
//! whiteouts and opaque folders honoured. For what berthd itself reads of an
//! image: users, volumes' content, attributes of folders. (A detached overlay
//! would do as well, but from Linux 6.8 on only when there are many layers; and
//! this needs no privilege and cannot leak.)
//!
//! Paths are names that an attacker chose. Each step is an openat2 below one
//! layer's root, without symlinks; symlinks are read and followed here, and end
//! at the image's root. Nothing but regular files is opened for reading.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io::Read,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::walk;
use crate::kind::{HasKind, Kind};

/// Symlinks followed for one path, as in the kernel.
const MAX_LINKS: usize = 40;
const OPAQUE: &str = "trusted.overlay.opaque";

/// Errors of looking into an image's layers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open layer {path}: {errno}")]
    Layer { path: PathBuf, errno: Errno },
    #[error("look up {path:?} in the image: {errno}")]
    Lookup { path: String, errno: Errno },
    #[error("{path:?} in the image is no regular file")]
    NoFile { path: String },
    #[error("{path:?} in the image is larger than {limit} bytes, the most that is read of it")]
    TooLarge { path: String, limit: u64 },
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Layer { .. } | Error::Lookup { .. } => Kind::Internal,
            Error::NoFile { .. } | Error::TooLarge { .. } => Kind::FailedPrecondition,
        }
    }
}

/// Reads a regular file of the image whose layers these are (top first; a
/// container's writable folder may be the first). None: there is no such file.
/// FIFOs, devices and folders are errors, and are never opened.
pub fn read_file(layers: &[PathBuf], path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Error> {
    let lookup = |errno| Error::Lookup {
        path: path.into(),
        errno,
    };
    let view = View::open(layers)?;
    let Some(node) = view.lookup(path.as_bytes()).map_err(lookup)? else {
        return Ok(None);
    };
    let Node::Other { fd, stat, .. } = node else {
        return Err(Error::NoFile { path: path.into() });
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::NoFile { path: path.into() });
    }
    let file = reopen(fd.as_fd()).map_err(lookup)?;
    let mut content = Vec::new();
    std::fs::File::from(file)
        .take(max_bytes.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(|source| lookup(Errno::from_io_error(&source).unwrap_or(Errno::IO)))?;
    if u64::try_from(content.len()).map_or(true, |length| length > max_bytes) {
        return Err(Error::TooLarge {
            path: path.into(),
            limit: max_bytes,
        });
    }
    Ok(Some(content))
}

/// Opens for reading what is open as O_PATH.
fn reopen(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(proc_path(fd), flags, Mode::empty())
}

fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A folder of the image: the layers that show something in it, top first.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    /// From the root, without symlinks; empty for the root.
    pub path: Vec<u8>,
    /// The first of them has the folder's attributes.
    pub layers: Vec<usize>,
}

/// What a path leads to.
#[derive(Debug)]
pub(super) enum Node {
    Folder(Folder),
    /// Open as O_PATH.
    Other {
        fd: OwnedFd,
        stat: Stat,
    },
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Child {
    /// A folder, with its layers.
    Folder(Vec<usize>),
    /// Anything else, in this layer.
    Other(usize),
}

/// The open layers of an image.
#[derive(Debug)]
pub(super) struct View {
    roots: Vec<OwnedFd>,
}

impl View {
    /// Opens layers, top first. Those below one with an opaque root are left out
    /// (which overlayfs would not do by itself).
    pub fn open(layers: &[PathBuf]) -> Result<View, Error> {
        let mut roots = Vec::with_capacity(layers.len());
        for path in layers {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| Error::Layer {
                path: path.clone(),
                errno,
            })?;
            let opaque = is_opaque(root.as_fd());
            roots.push(root);
            if opaque {
                break;
            }
        }
        Ok(View { roots })
    }

    pub fn root(&self) -> Folder {
        Folder {
            path: Vec::new(),
            layers: (0..self.roots.len()).collect(),
        }
    }

    /// Opens what one layer has at a path without symlinks.
    pub fn open_at(&self, layer: usize, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let root = self.roots.get(layer).ok_or(Errno::NOENT)?;
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
    }

    /// One name in a folder; a symlink is not followed.
    pub fn child(&self, folder: &Folder, name: &[u8]) -> Result<Option<Node>, Errno> {
        let path = join(&folder.path, name);
        let mut layers = Vec::new();
        for (at, &layer) in folder.layers.iter().enumerate() {
            let fd = match self.open_at(layer, &path, OFlags::PATH) {
                Ok(fd) => fd,
                // LOOP, NOTDIR: a running container moved things about meanwhile.
                Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => continue,
                Err(errno) => return Err(errno),
            };
            let stat = rustix::fs::fstat(&fd)?;
            let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_folder && layers.is_empty() {
                return Ok((!is_whiteout(&stat)).then_some(Node::Other { fd, stat }));
            }
            if !is_folder {
                break;
            }
            layers.push(layer);
            if at + 1 < folder.layers.len() && is_opaque(fd.as_fd()) {
                break;
            }
        }
        Ok((!layers.is_empty()).then_some(Node::Folder(Folder { path, layers })))
    }

    /// A path in the image, every symlink followed, also the last.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<Node>, Errno> {
        let parts =
            |path: &[u8]| -> Vec<Vec<u8>> { path.split(|&b| b == b'/').rev().map(<[u8]>::to_vec).collect() };
        let mut todo = parts(path);
        let mut here = self.root();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    let end = here.path.iter().rposition(|&b| b == b'/').unwrap_or(0);
                    let above = here.path[..end].to_vec();
                    here = match self.folder(&above)? {
                        Some(folder) => folder,
                        None => return Ok(None),
                    };
                    continue;
                }
                _ => {}
            }
            match self.child(&here, &name)? {
                None => return Ok(None),
                Some(Node::Folder(folder)) => here = folder,
                Some(Node::Other { fd, stat }) => {
                    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                        let more = todo.iter().any(|part| !part.is_empty());
                        return Ok((!more).then_some(Node::Other { fd, stat }));
                    }
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = rustix::fs::readlinkat(&fd, c"", Vec::new())?;
                    if target.as_bytes().starts_with(b"/") {
                        here = self.root();
                    }
                    todo.extend(parts(target.as_bytes()));
                }
            }
        }
        Ok(Some(Node::Folder(here)))
    }

    /// The folder at a path, no symlink followed.
    pub fn folder(&self, path: &[u8]) -> Result<Option<Folder>, Errno> {
        let mut here = self.root();
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            here = match self.child(&here, name)? {
                Some(Node::Folder(folder)) => folder,
                _ => return Ok(None),
            };
        }
        Ok(Some(here))
    }

    /// What is in a folder, by name.
    pub fn children(&self, folder: &Folder) -> Result<BTreeMap<CString, Child>, Errno> {
        /// What is known of a name so far; `open`: lower layers may add to it.
        struct Seen {
            child: Option<Child>,
            open: bool,
        }
        let mut names: BTreeMap<CString, Seen> = BTreeMap::new();
        for (at, &layer) in folder.layers.iter().enumerate() {
            let last = at + 1 == folder.layers.len();
            let fd = self.open_at(layer, &folder.path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            walk::read_folder(fd.as_fd(), |name, kind| {
                let seen = names.entry(name.to_owned()).or_insert(Seen {
                    child: None,
                    open: true,
                });
                if !seen.open {
                    return Ok(());
                }
                if kind != FileType::Directory {
                    let hides = kind == FileType::CharacterDevice
                        && is_whiteout(&rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)?);
                    if seen.child.is_none() && !hides {
                        seen.child = Some(Child::Other(layer));
                    }
                    seen.open = false;
                    return Ok(());
                }
                match &mut seen.child {
                    Some(Child::Folder(layers)) => layers.push(layer),
                    _ => seen.child = Some(Child::Folder(vec![layer])),
                }
                if !last {
                    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    seen.open = !is_opaque(rustix::fs::openat(&fd, name, flags, Mode::empty())?.as_fd());
                }
                Ok(())
            })?;
        }
        Ok(names
            .into_iter()
            .filter_map(|(name, seen)| Some((name, seen.child?)))
            .collect())
    }
}

pub(super) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() {
        return name.to_vec();
    }
    [folder, b"/", name].concat()
}

/// overlayfs's mark that a name of the layers below is gone.
fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(super) fn is_opaque(folder: BorrowedFd<'_>) -> bool {
    let mut value = [0u8; 2];
    matches!(
        rustix::fs::getxattr(proc_path(folder), OPAQUE, &mut value[..]),
        Ok(1) if value[0] == b'y'
    )
}

/// Whether a layer's root folder is opaque: see [`super::unpack::Unpacked::opaque_root`].
pub fn has_opaque_root(layer: &Path) -> Result<bool, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(layer, flags, Mode::empty()).map_err(|errno| Error::Layer {
        path: layer.into(),
        errno,
    })?;
    Ok(is_opaque(root.as_fd()))
}
