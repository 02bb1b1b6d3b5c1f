//! Applies one layer's tar stream to a folder of its own, in overlayfs's form.
//!
//! Where an entry may go, and why nothing gets out of the folder: [`place`].
//! What differs between tools is done as containerd does it:
//!
//! - Names are cleaned ("./", a leading "/" and ".." mean what they mean at a
//!   root); parents that are symlinks of this layer are followed within it.
//! - An entry for the layer's root itself is passed over: the container's root
//!   folder is its own.
//! - A later entry replaces an earlier one of the same name; only a folder over
//!   a folder is merged.
//! - Access times are the later of the archive's access and change times.
//!
//! Whiteouts apply to the layers below, never to this one, in whatever order
//! entries come: where this layer has a folder of the hidden name, that becomes
//! opaque. aufs's own files (`.wh..wh.*`) are passed over.

mod attributes;
#[cfg(test)]
mod bombs;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
#[cfg(test)]
mod hostile;
#[cfg(test)]
pub(super) mod oracle;
mod place;
#[cfg(test)]
mod tests;

use std::{
    ffi::CString,
    fmt,
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::PathBuf,
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Stat, makedev},
    io::Errno,
};

use super::{
    seal::{Contents, Seal},
    tar::{self, Archive, Entry},
    usage, walk,
};
use crate::kind::{HasKind, Kind};
use place::{Folder, Parent, Places};

/// Bytes written at a time.
const BUFFER: usize = 256 << 10;
const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Bounds of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the uncompressed stream, all of it; 0: no limit.
    pub bytes: u64,
    /// Entries of the archive; 0: no limit.
    pub entries: u64,
    /// Bytes of memory for the folders that are made: their times wait for the end, and
    /// an archive of nothing but folders with long names compresses to nearly nothing.
    pub folders: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            bytes: 0,
            entries: 0,
            folders: 128 << 20,
        }
    }
}

/// What a layer became on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes on the disk (blocks, not lengths), the layer's root folder not counted.
    pub bytes: u64,
    /// Files, folders, links, devices and whiteouts; what has several names once.
    pub inodes: u64,
    /// Folders that the archive had no entry for, relative, parents first. They
    /// are 0755 root, of 1970; [`super::layers::Layers::commit`] corrects them.
    pub implied: Vec<PathBuf>,
    /// Extended attributes of the archive that were not set: overlayfs's own,
    /// labels of another host, and kinds that the filesystem does not have.
    pub skipped_xattrs: u64,
    /// The root folder is opaque. overlayfs does not look for that at a root:
    /// layers below this one must be left out instead.
    pub opaque_root: bool,
    /// Of the folder as it was unpacked.
    pub seal: Seal,
}

/// Errors of unpacking; `path` is the entry's, as the archive has it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Archive(#[from] tar::Error),
    #[error("it has more than {limit} entries, the limit of a layer: raise image.max_layer_entries")]
    TooManyEntries { limit: u64 },
    #[error("unpack {path:?}: the paths of the layer's folders take more than {limit} bytes")]
    TooManyFolders { path: String, limit: usize },
    #[error("unpack {path:?}: {step}: {errno}")]
    Apply {
        path: String,
        step: &'static str,
        errno: Errno,
    },
    #[error(
        "unpack {path:?}: hard link to {target:?}, which is not in this layer: \
         the builder of the image must put the file into the layer too"
    )]
    LinkTarget { path: String, target: String },
    #[error("unpack {path:?}: hard link to {target:?}, which is a folder")]
    LinkToFolder { path: String, target: String },
    #[error("unpack {path:?}: {parent:?}, which should hold it, is no folder")]
    NoFolder { path: String, parent: String },
    #[error("unpack {path:?}: a whiteout must hide a name")]
    Whiteout { path: String },
    #[error("finish the folders of the layer: {errno}")]
    Finish { errno: Errno },
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Archive(tar::Error::Read { .. }) => Kind::Unavailable,
            Error::Archive(tar::Error::TooLong { .. })
            | Error::TooManyEntries { .. }
            | Error::TooManyFolders { .. } => Kind::ResourceExhausted,
            Error::Apply {
                errno: Errno::NOSPC | Errno::DQUOT,
                ..
            } => Kind::ResourceExhausted,
            // What no filesystem, or not this one, can hold.
            Error::Apply {
                errno: Errno::NAMETOOLONG | Errno::LOOP | Errno::FBIG,
                ..
            } => Kind::DataLoss,
            Error::Apply { .. } | Error::Finish { .. } => Kind::Internal,
            Error::Archive(_)
            | Error::LinkTarget { .. }
            | Error::LinkToFolder { .. }
            | Error::NoFolder { .. }
            | Error::Whiteout { .. } => Kind::DataLoss,
        }
    }
}

/// What went wrong with an entry, before its name is put to it.
#[derive(Debug)]
enum Fault {
    Archive(tar::Error),
    Step(&'static str, Errno),
    LinkTarget,
    LinkToFolder,
    NoFolder(Vec<u8>),
    TooManyFolders(usize),
    Whiteout,
}

impl From<tar::Error> for Fault {
    fn from(error: tar::Error) -> Fault {
        Fault::Archive(error)
    }
}

/// Names the system call that failed.
fn step(step: &'static str) -> impl Fn(Errno) -> Fault {
    move |errno| Fault::Step(step, errno)
}

/// Reads a tar stream (uncompressed) to its very end and fills `dir`, an empty
/// folder that nobody else writes to. Nothing is synced.
pub fn unpack(reader: &mut dyn Read, dir: BorrowedFd<'_>, limits: &Limits) -> Result<Unpacked, Error> {
    let archive = tar::Limits {
        archive: if limits.bytes == 0 { u64::MAX } else { limits.bytes },
        ..tar::Limits::default()
    };
    let mut unpacker = Unpacker {
        archive: Archive::new(reader, archive),
        places: Places::new(dir, limits.folders),
        buffer: vec![0; BUFFER],
        unpacked: Unpacked::default(),
        contents: Contents::default(),
        ours: (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        ),
        replaced: false,
    };
    let mut entries = 0;
    while let Some(entry) = unpacker.archive.next()? {
        entries += 1;
        if limits.entries > 0 && entries > limits.entries {
            return Err(Error::TooManyEntries {
                limit: limits.entries,
            });
        }
        unpacker.apply(&entry).map_err(|fault| named(fault, &entry))?;
    }
    unpacker.finish()
}

fn named(fault: Fault, entry: &Entry) -> Error {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let path = text(&entry.path);
    match fault {
        Fault::Archive(error) => Error::Archive(error),
        Fault::Step(step, errno) => Error::Apply { path, step, errno },
        Fault::LinkTarget => Error::LinkTarget {
            path,
            target: text(&entry.link),
        },
        Fault::LinkToFolder => Error::LinkToFolder {
            path,
            target: text(&entry.link),
        },
        Fault::NoFolder(parent) => Error::NoFolder {
            path,
            parent: text(&parent),
        },
        Fault::TooManyFolders(limit) => Error::TooManyFolders { path, limit },
        Fault::Whiteout => Error::Whiteout { path },
    }
}

struct Unpacker<'a, R> {
    archive: Archive<R>,
    places: Places<'a>,
    buffer: Vec<u8>,
    unpacked: Unpacked,
    contents: Contents,
    /// Owner and group that new files have by themselves.
    ours: (u32, u32),
    /// Something was replaced, so what was counted is not what is there.
    replaced: bool,
}

impl<R> fmt::Debug for Unpacker<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unpacker")
    }
}

impl<R: Read> Unpacker<'_, R> {
    fn apply(&mut self, entry: &Entry) -> Result<(), Fault> {
        let parts = place::clean(&entry.path);
        let Some((name, folders)) = parts.split_last() else {
            return Ok(());
        };
        if parts.iter().any(|part| part.starts_with(AUFS) && *part != OPAQUE) {
            return Ok(());
        }
        let parent = self.places.parent(&folders.join(&b'/'))?;
        if *name == OPAQUE {
            return self.opaque(&parent);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&parent, hidden);
        }
        let name = CString::new(*name).map_err(|_| Fault::Step("take its name", Errno::INVAL))?;
        match self.make(entry, &parent, &name) {
            Err(Fault::Step(_, Errno::EXIST)) => self.replace(entry, &parent, &name),
            other => other,
        }
    }

    /// Makes the entry where nothing is yet (EXIST otherwise), its attributes too.
    fn make(&mut self, entry: &Entry, parent: &Parent, name: &CString) -> Result<(), Fault> {
        match entry.kind {
            tar::Kind::File => return self.file(entry, parent, name),
            tar::Kind::Folder => {
                rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU).map_err(step("make the folder"))?;
                return self.folder(entry, parent, name, false);
            }
            tar::Kind::HardLink => return self.hard_link(entry, parent, name),
            tar::Kind::Symlink => {
                rustix::fs::symlinkat(&entry.link[..], &parent.fd, name).map_err(step("make the symlink"))?;
            }
            tar::Kind::CharDevice => self.node(entry, parent, name, FileType::CharacterDevice)?,
            tar::Kind::BlockDevice => self.node(entry, parent, name, FileType::BlockDevice)?,
            tar::Kind::Fifo => self.node(entry, parent, name, FileType::Fifo)?,
        }
        self.unpacked.inodes += 1;
        let place = attributes::Place {
            parent: parent.fd.as_fd(),
            name,
        };
        place.apply(
            entry,
            self.is_owned(entry, parent),
            &mut self.unpacked.skipped_xattrs,
        )?;
        // A long target needs a block of its own.
        if entry.link.len() >= 60 {
            self.count(&place.stat()?);
        }
        Ok(())
    }

    fn node(&self, entry: &Entry, parent: &Parent, name: &CString, kind: FileType) -> Result<(), Fault> {
        let device = match kind {
            FileType::Fifo => 0,
            _ => makedev(entry.device.0, entry.device.1),
        };
        rustix::fs::mknodat(&parent.fd, name, kind, Mode::empty(), device)
            .map_err(step("make the device or FIFO"))
    }

    fn file(&mut self, entry: &Entry, parent: &Parent, name: &CString) -> Result<(), Fault> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(step("create the file"))?;
        let mut end = 0;
        while let Some(chunk) = self.archive.read(&mut self.buffer)? {
            let bytes = &self.buffer[..chunk.length];
            end = write(&file, bytes, chunk.offset)?;
            self.contents.update(chunk.offset, bytes);
        }
        self.contents.file(entry.size.max(end));
        if end < entry.size {
            rustix::fs::ftruncate(&file, entry.size).map_err(step("set the file's size"))?;
        }
        let owned = self.is_owned(entry, parent);
        attributes::apply_to_open(file.as_fd(), entry, owned, &mut self.unpacked.skipped_xattrs)?;
        attributes::set_times(file.as_fd(), entry)?;
        self.unpacked.inodes += 1;
        if end > 0 || !entry.xattrs.is_empty() {
            self.count(&rustix::fs::fstat(&file).map_err(step("stat the file"))?);
        }
        Ok(())
    }

    /// Gives a folder that is there its attributes; its times wait for the end.
    fn folder(&mut self, entry: &Entry, parent: &Parent, name: &CString, opaque: bool) -> Result<(), Fault> {
        let fd = walk::open_folder(&parent.fd, name).map_err(step("open the folder"))?;
        attributes::apply_to_open(fd.as_fd(), entry, false, &mut self.unpacked.skipped_xattrs)?;
        if opaque {
            attributes::set_opaque(fd.as_fd()).map_err(step("mark the folder opaque"))?;
        }
        self.places.explicit(parent.child(name.as_bytes()), fd, entry)
    }

    fn hard_link(&mut self, entry: &Entry, parent: &Parent, name: &CString) -> Result<(), Fault> {
        let parts = place::clean(&entry.link);
        let (target, folders) = parts.split_last().ok_or(Fault::LinkTarget)?;
        let target = CString::new(*target).map_err(|_| Fault::LinkTarget)?;
        let folder = self.places.find(&folders.join(&b'/'))?.ok_or(Fault::LinkTarget)?;
        let at = |parent, name| attributes::Place { parent, name };
        let place = at(parent.fd.as_fd(), name);
        match rustix::fs::linkat(&folder.fd, &target, &parent.fd, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Err(Fault::LinkTarget),
            Err(Errno::EXIST) => {
                // A link that is there already, perhaps to itself, must not be removed.
                let (old, new) = (place.stat()?, at(folder.fd.as_fd(), &target).stat()?);
                if old.st_ino != new.st_ino {
                    return Err(Fault::Step("make the hard link", Errno::EXIST));
                }
            }
            Err(Errno::PERM) if at(folder.fd.as_fd(), &target).is_folder()? => {
                return Err(Fault::LinkToFolder);
            }
            Err(errno) => return Err(Fault::Step("make the hard link", errno)),
        }
        place.apply_to_linked(entry, &mut self.unpacked.skipped_xattrs)
    }

    /// Makes the entry where something else is.
    fn replace(&mut self, entry: &Entry, parent: &Parent, name: &CString) -> Result<(), Fault> {
        let place = attributes::Place {
            parent: parent.fd.as_fd(),
            name,
        };
        let was_folder = FileType::from_raw_mode(place.stat()?.st_mode) == FileType::Directory;
        let is_folder = entry.kind == tar::Kind::Folder;
        if was_folder && is_folder {
            return self.folder(entry, parent, name, false);
        }
        self.replaced = true;
        self.places.forget(&parent.child(name.as_bytes()));
        if was_folder {
            walk::remove_tree(parent.fd.as_fd(), name).map_err(step("remove the folder it replaces"))?;
        } else {
            rustix::fs::unlinkat(&parent.fd, name, AtFlags::empty())
                .map_err(step("remove what it replaces"))?;
        }
        if is_folder {
            // What was here, a whiteout or a file, hid the folder of the layers below.
            rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU).map_err(step("make the folder"))?;
            return self.folder(entry, parent, name, true);
        }
        self.make(entry, parent, name)
    }

    fn opaque(&mut self, folder: &Rc<Parent>) -> Result<(), Fault> {
        self.unpacked.opaque_root |= folder.path.is_empty();
        attributes::set_opaque(folder.fd.as_fd()).map_err(step("mark the folder opaque"))
    }

    fn whiteout(&mut self, parent: &Parent, hidden: &[u8]) -> Result<(), Fault> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Fault::Whiteout);
        }
        match rustix::fs::mknodat(&parent.fd, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => self.unpacked.inodes += 1,
            // This layer's own thing hides what is below; a folder only when opaque.
            Err(Errno::EXIST) => {
                match walk::open_folder(&parent.fd, &CString::new(hidden).unwrap_or_default()) {
                    Ok(folder) => {
                        attributes::set_opaque(folder.as_fd()).map_err(step("mark the folder opaque"))?;
                    }
                    Err(Errno::NOTDIR | Errno::LOOP) => {}
                    Err(errno) => return Err(Fault::Step("open the folder", errno)),
                }
            }
            Err(errno) => return Err(Fault::Step("make the whiteout", errno)),
        }
        Ok(())
    }

    /// Whether a new file is the entry's owner's by itself.
    fn is_owned(&self, entry: &Entry, parent: &Parent) -> bool {
        self.ours == (entry.uid, entry.gid) && !parent.setgid
    }

    fn count(&mut self, stat: &Stat) {
        self.unpacked.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    }

    /// Sets the folders' times, now that nothing is made in them any more.
    fn finish(mut self) -> Result<Unpacked, Error> {
        let finish = |errno| Error::Finish { errno };
        let folders = std::mem::take(&mut self.places.folders);
        for (path, folder) in folders.iter().rev() {
            let Some(fd) = self.places.open(path).map_err(finish)? else {
                continue;
            };
            let times = match *folder {
                Folder::Explicit(mtime, atime) => attributes::times(mtime, atime),
                Folder::Implied | Folder::Made => attributes::times(tar::Time::default(), None),
            };
            rustix::fs::futimens(&fd, &times).map_err(finish)?;
            self.unpacked.inodes += 1;
            self.count(&rustix::fs::fstat(&fd).map_err(finish)?);
        }
        let implied = folders
            .into_iter()
            .filter(|(_, folder)| matches!(folder, Folder::Implied));
        self.unpacked.implied = implied
            .map(|(path, _)| PathBuf::from(std::ffi::OsString::from_vec(path)))
            .collect();
        if self.replaced || self.places.replaced {
            let top = walk::open_folder(self.places.root, c".").map_err(finish)?;
            let root = rustix::fs::fstat(&top).map_err(finish)?;
            let usage = usage::usage_at(top).map_err(finish)?;
            self.unpacked.bytes = usage.bytes - u64::try_from(root.st_blocks).unwrap_or(0) * 512;
            self.unpacked.inodes = usage.inodes - 1;
        }
        let top = walk::open_folder(self.places.root, c".").map_err(finish)?;
        let implied = &self.unpacked.implied;
        self.unpacked.seal = match self.replaced || self.contents.spoiled {
            true => Seal::of(top, implied),
            false => Seal::with(top, implied, &self.contents),
        }
        .map_err(finish)?;
        Ok(self.unpacked)
    }
}

/// Writes all of it; answers where it ends.
fn write(file: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> Result<u64, Fault> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(0) => return Err(Fault::Step("write the file", Errno::IO)),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += u64::try_from(written).unwrap_or(u64::MAX);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Fault::Step("write the file", errno)),
        }
    }
    Ok(offset)
}
