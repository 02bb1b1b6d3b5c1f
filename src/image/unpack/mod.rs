//! Applies one layer's tar stream to a folder (signatures first; bodies follow).

use std::{io::Read, os::fd::BorrowedFd, path::PathBuf};

/// Bounds of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the uncompressed stream, all of it.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
}

/// What a layer became on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes on disk (`st_blocks` * 512).
    pub bytes: u64,
    /// Files, folders, links' inodes, devices and whiteouts; hard links once; without the layer's root.
    pub inodes: u64,
    /// Folders that the tar had no entry for (relative, parents before children), made 0755 root.
    pub implied: Vec<PathBuf>,
    /// Extended attributes that were not applied (overlay's own, SELinux labels, not supported here).
    pub skipped_xattrs: u64,
    /// The root folder is marked opaque: layers below this one must not be used under it.
    pub opaque_root: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("unpack")]
    Unpack,
}

/// Reads one tar stream (uncompressed) to its very end and fills `dir` (empty, already open).
pub fn unpack(_reader: &mut dyn Read, _dir: BorrowedFd<'_>, _limits: &Limits) -> Result<Unpacked, Error> {
    unimplemented!()
}
