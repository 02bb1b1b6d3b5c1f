//! The layer store: `ROOT/layers`, one folder a layer, ready for overlayfs.
//!
//! ```text
//! begin        commit            remove
//!   tmp-N  ------------->  N  ------------->  trash-N  ----> gone
//!     |  fixed up, renamed        renamed first
//!     +-- dropped: removed
//! ```
//!
//! Which N is which layer only the records know. A crash leaves `tmp-N`,
//! `trash-N`, or an N that no record names; [`Layers::sweep`] removes them.
//! Numbers are short, so that hundreds of lower folders fit into a mount's options.
//!
//! A layer's archive may lack entries for parents of its files. overlayfs shows
//! the uppermost folder's owner, mode and times, so such a folder must have
//! those of the one it covers. That makes a layer's folder depend on the layers
//! below: the same archive over others may need another [`Layers::variant`].

mod ahead;
mod derive;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags},
    io::Errno,
};
use sha2::{Digest, Sha256};

use self::ahead::Ahead;
use super::{
    attributes::Attributes,
    unpack::Unpacked,
    view::{self, Folder, Node, View},
    walk,
};
use crate::kind::{HasKind, Kind};

/// Errors of the layer store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open layer store {path}: {errno}")]
    Open { path: PathBuf, errno: Errno },
    #[error("{step} {path}: {errno}")]
    Layer {
        step: &'static str,
        path: PathBuf,
        errno: Errno,
    },
    #[error(transparent)]
    View(#[from] view::Error),
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Open {
                errno: Errno::NOSPC | Errno::DQUOT,
                ..
            }
            | Error::Layer {
                errno: Errno::NOSPC | Errno::DQUOT,
                ..
            } => Kind::ResourceExhausted,
            Error::Open { .. } | Error::Layer { .. } => Kind::Internal,
            Error::View(error) => error.kind(),
        }
    }
}

/// The open store. All methods may be called side by side; those that touch
/// layers block on the disk.
#[derive(Debug)]
pub struct Layers {
    path: PathBuf,
    fd: OwnedFd,
    ahead: Arc<Ahead>,
    /// The last number given out.
    last: AtomicU64,
    /// The last number that an earlier process may have given out.
    inherited: u64,
}

/// A layer that is being unpacked into `tmp-N`; dropped without [`Layers::commit`], it is removed.
#[derive(Debug)]
pub struct Ingest {
    number: u64,
    path: PathBuf,
    dir: OwnedFd,
    ahead: Arc<Ahead>,
    /// The store's folder; None when committed.
    store: Option<OwnedFd>,
}

/// A committed layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub number: u64,
    /// `ROOT/layers/N`.
    pub path: PathBuf,
    /// See [`Layers::variant`].
    pub variant: String,
    /// What it takes of the disk; of a derived layer, without the files that it shares.
    pub bytes: u64,
    pub inodes: u64,
}

/// What an implied folder gets from below.
type Correction<'a> = (&'a Path, Attributes);

impl Layers {
    /// Opens or makes the store (0700). `used` is the highest number in the
    /// records: none up to it is given out again, even if its folder is gone.
    /// Nothing is removed: call [`Layers::sweep`], beside the start.
    pub fn open(path: &Path, used: u64) -> Result<Layers, Error> {
        let open = |errno| Error::Open {
            path: path.into(),
            errno,
        };
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(open(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(open)?;
        let mut last = used;
        walk::read_folder(fd.as_fd(), |name, _| {
            last = last.max(number(name).map_or(0, |(_, number)| number));
            Ok(())
        })
        .map_err(open)?;
        Ok(Layers {
            path: path.into(),
            ahead: Ahead::new(&fd).map_err(open)?,
            fd,
            last: AtomicU64::new(last),
            inherited: last,
        })
    }

    /// The folder of layer `number`, whether it is there or not.
    pub fn path(&self, number: u64) -> PathBuf {
        self.path.join(number.to_string())
    }

    /// Opens the folder of layer `number`.
    pub fn folder(&self, number: u64) -> Result<OwnedFd, Errno> {
        let name = CString::new(number.to_string()).unwrap_or_default();
        walk::open_folder(&self.fd, &name)
    }

    /// Whether the folder of layer `number` is there.
    pub fn holds(&self, number: u64) -> bool {
        rustix::fs::statat(&self.fd, number.to_string(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// Starts a layer.
    pub fn begin(&self) -> Result<Ingest, Error> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("tmp-{number}");
        let path = self.path.join(&name);
        let failed = |errno| Error::Layer {
            step: "make layer folder",
            path: path.clone(),
            errno,
        };
        let store = self.fd.try_clone().map_err(|_| failed(Errno::MFILE))?;
        rustix::fs::mkdirat(&self.fd, &name, Mode::RWXU).map_err(failed)?;
        let dir = rustix::fs::openat(
            &self.fd,
            &name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .and_then(|dir| {
            // Processes of every user walk through it, as the root of their files.
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755))?;
            Ok(dir)
        })
        .map_err(failed)?;
        Ok(Ingest {
            number,
            path,
            dir,
            ahead: Arc::clone(&self.ahead),
            store: Some(store),
        })
    }

    /// What the implied folders of a layer get from `lowers` (top first), as a
    /// digest in hex. Empty when there is nothing to get. The records keep it
    /// with the layer: layers of one diff id and one variant are the same.
    pub fn variant(&self, implied: &[PathBuf], lowers: &[PathBuf]) -> Result<String, Error> {
        Ok(digest(&corrections(implied, lowers)?))
    }

    /// Finishes a layer: its implied folders get what those below have, and it
    /// gets its name. All lower layers must have been committed. It is not on the
    /// disk for sure before [`Layers::sync`].
    pub fn commit(
        &self,
        mut ingest: Ingest,
        unpacked: &Unpacked,
        lowers: &[PathBuf],
    ) -> Result<Layer, Error> {
        let corrections = corrections(&unpacked.implied, lowers)?;
        for (path, attributes) in &corrections {
            correct(ingest.dir.as_fd(), path, attributes).map_err(|errno| Error::Layer {
                step: "set attributes of folder",
                path: ingest.path.join(path),
                errno,
            })?;
        }
        let number = ingest.number;
        let name = number.to_string();
        rustix::fs::renameat_with(
            &self.fd,
            format!("tmp-{number}"),
            &self.fd,
            &name,
            RenameFlags::NOREPLACE,
        )
        .map_err(|errno| Error::Layer {
            step: "rename finished layer",
            path: ingest.path.clone(),
            errno,
        })?;
        ingest.store = None;
        Ok(Layer {
            number,
            path: self.path(number),
            variant: digest(&corrections),
            bytes: unpacked.bytes,
            inodes: unpacked.inodes,
        })
    }

    /// Makes another variant of layer `from` for other `lowers`: folders of its
    /// own, files as hard links to those of `from`. Nothing is fetched or copied.
    pub fn derive(&self, from: u64, implied: &[PathBuf], lowers: &[PathBuf]) -> Result<Layer, Error> {
        let failed = |errno| Error::Layer {
            step: "link the files of layer",
            path: self.path(from),
            errno,
        };
        let ingest = self.begin()?;
        let top = self.folder(from).map_err(failed)?;
        let unpacked = derive::link(top, ingest.dir(), implied).map_err(failed)?;
        self.commit(ingest, &unpacked, lowers)
    }

    /// Returns when all that was committed is on the disk. One syncfs: call it
    /// once for an image, before the image is recorded.
    pub fn sync(&self) -> Result<(), Error> {
        rustix::fs::syncfs(&self.fd).map_err(|errno| Error::Layer {
            step: "sync the filesystem of",
            path: self.path.clone(),
            errno,
        })
    }

    /// Removes a layer, which no overlay may be using. Missing is fine.
    pub fn remove(&self, number: u64) -> Result<(), Error> {
        let trash = format!("trash-{number}");
        match rustix::fs::renameat(&self.fd, number.to_string(), &self.fd, &trash) {
            // It may have been renamed before a crash.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => {
                return Err(Error::Layer {
                    step: "remove layer",
                    path: self.path(number),
                    errno,
                });
            }
        }
        self.discard(&trash)
    }

    /// Removes what earlier processes left: half-made layers, half-removed ones,
    /// and those that are not in `known`. Goes on after errors, and returns them.
    /// Layers begun since [`Layers::open`] are left alone.
    pub fn sweep(&self, known: &HashSet<u64>) -> Vec<Error> {
        let mut left = Vec::new();
        let read = walk::open_folder(&self.fd, c".").and_then(|fd| {
            walk::read_folder(fd.as_fd(), |name, _| {
                if let Some((kind, number)) = number(name)
                    && number <= self.inherited
                {
                    left.push((kind, number));
                }
                Ok(())
            })
        });
        let mut errors = Vec::new();
        if let Err(errno) = read {
            errors.push(Error::Open {
                path: self.path.clone(),
                errno,
            });
        }
        for (kind, number) in left {
            let removed = match kind {
                "" if known.contains(&number) => Ok(()),
                "" => self.remove(number),
                _ => self.discard(&format!("{kind}{number}")),
            };
            errors.extend(removed.err());
        }
        errors
    }

    fn discard(&self, name: &str) -> Result<(), Error> {
        discard(self.fd.as_fd(), name).map_err(|errno| Error::Layer {
            step: "remove layer folder",
            path: self.path.join(name),
            errno,
        })
    }
}

impl Ingest {
    /// So many bytes were unpacked into it since the last call.
    pub fn unpacked(&self, bytes: u64) {
        self.ahead.unpacked(bytes);
    }

    /// The empty folder to unpack into.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if let Some(store) = &self.store {
            // What cannot be removed now, the next start's sweep removes.
            let _ = discard(store.as_fd(), &format!("tmp-{}", self.number));
        }
    }
}

fn discard(store: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    walk::remove_tree(store, &name)
}

/// The prefix and number of a folder of ours.
fn number(name: &CStr) -> Option<(&'static str, u64)> {
    let name = name.to_str().ok()?;
    for prefix in ["tmp-", "trash-", ""] {
        if let Some(number) = name.strip_prefix(prefix)
            && let Ok(number) = number.parse::<u64>()
        {
            return Some((prefix, number));
        }
    }
    None
}

/// Finds the implied folders in the layers below, as overlayfs would show them.
fn corrections<'a>(implied: &'a [PathBuf], lowers: &[PathBuf]) -> Result<Vec<Correction<'a>>, Error> {
    if implied.is_empty() || lowers.is_empty() {
        return Ok(Vec::new());
    }
    let view = View::open(lowers)?;
    let mut found = Vec::new();
    // Siblings follow each other: the folder that holds the last one is kept.
    let mut last: Option<(&Path, Option<Folder>)> = None;
    for path in implied {
        let failed = |errno| {
            Error::View(view::Error::Lookup {
                path: path.display().to_string(),
                errno,
            })
        };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            continue;
        };
        let holder = match last.take() {
            Some((known, holder)) if known == parent => holder,
            _ => view.folder(parent.as_os_str().as_bytes()).map_err(failed)?,
        };
        if let Some(holder) = &holder
            && let Some(Node::Folder(folder)) = view.child(holder, name.as_bytes()).map_err(failed)?
            && let Some(&layer) = folder.layers.first()
        {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let fd = view.open_at(layer, &folder.path, flags).map_err(failed)?;
            found.push((path.as_path(), Attributes::of(fd.as_fd()).map_err(failed)?));
        }
        last = Some((parent, holder));
    }
    Ok(found)
}

fn digest(corrections: &[Correction<'_>]) -> String {
    if corrections.is_empty() {
        return String::new();
    }
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(bytes);
    };
    for (path, attributes) in corrections {
        field(path.as_os_str().as_bytes());
        for number in [attributes.uid, attributes.gid, attributes.mode] {
            field(&number.to_le_bytes());
        }
        field(&attributes.mtime.0.to_le_bytes());
        field(&attributes.mtime.1.to_le_bytes());
        for (name, value) in &attributes.xattrs {
            field(name);
            field(value);
        }
        field(b"");
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn correct(layer: BorrowedFd<'_>, path: &Path, attributes: &Attributes) -> Result<(), Errno> {
    let fd = open_inside(layer, path.as_os_str().as_bytes())?;
    attributes.apply(fd.as_fd())?;
    rustix::fs::futimens(&fd, &attributes.times())
}

/// Opens a folder of a layer; no symlink is on the way to it.
fn open_inside(layer: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(layer, path, flags, Mode::empty(), resolve)
}
