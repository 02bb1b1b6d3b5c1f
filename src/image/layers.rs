//! The layer store ROOT/layers (signatures first; bodies follow).

use std::{
    collections::HashSet,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::unpack::Unpacked;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("layers")]
    Layers,
}

/// The open store; share it by reference or Arc, all methods take `&self`.
#[derive(Debug)]
pub struct Layers;

/// A layer being unpacked: `ROOT/layers/tmp-N`. Dropped without commit, it is removed.
#[derive(Debug)]
pub struct Ingest {
    dir: OwnedFd,
    path: PathBuf,
}

impl Ingest {
    pub fn dir(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.dir)
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A committed layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub number: u64,
    pub path: PathBuf,
    /// See [`Layers::variant`].
    pub variant: String,
}

impl Layers {
    /// Opens or makes `path` (ROOT/layers, 0700). `used` is the highest number in the records (0: none):
    /// no number up to it is given out again. Removes nothing: call [`Layers::sweep`].
    pub fn open(_path: &Path, _used: u64) -> Result<Layers, Error> {
        unimplemented!()
    }
    pub fn path(&self, _number: u64) -> PathBuf {
        unimplemented!()
    }
    pub fn begin(&self) -> Result<Ingest, Error> {
        unimplemented!()
    }
    /// What the folders `implied` get from `lowers` (top first), as a hex digest; "" when nothing is
    /// taken over (no implied folders, or none of them is below): key of the records beside the diff id.
    pub fn variant(&self, _implied: &[PathBuf], _lowers: &[PathBuf]) -> Result<String, Error> {
        unimplemented!()
    }
    /// Gives implied folders what those below have, and renames tmp-N to N. Not synced: [`Layers::sync`].
    pub fn commit(&self, _ingest: Ingest, _unpacked: &Unpacked, _lowers: &[PathBuf]) -> Result<Layer, Error> {
        unimplemented!()
    }
    /// Another variant of a committed layer, made of hard links to its files: nothing is fetched again.
    pub fn derive(&self, _from: u64, _implied: &[PathBuf], _lowers: &[PathBuf]) -> Result<Layer, Error> {
        unimplemented!()
    }
    /// All that was committed is on the disk when this returns (one syncfs; call once per image,
    /// before `Store::durable`).
    pub fn sync(&self) -> Result<(), Error> {
        unimplemented!()
    }
    /// Removes a layer: renamed to trash-N first. Missing is fine.
    pub fn remove(&self, _number: u64) -> Result<(), Error> {
        unimplemented!()
    }
    /// Removes what an earlier process left: tmp-*, trash-*, and layers not in `known`. May take long:
    /// run it beside the start. Goes on after errors and returns them.
    pub fn sweep(&self, _known: &HashSet<u64>) -> Vec<Error> {
        unimplemented!()
    }
}
