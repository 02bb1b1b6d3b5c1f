//! Blobs on disk: `ROOT/blobs/sha256/HEX`, the manifests and configs of the
//! images. A file under its final name has reached the disk whole.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{digest::Digest, error::Error};

/// The folder of blobs.
#[derive(Debug)]
pub struct Blobs {
    dir: PathBuf,
}

impl Blobs {
    /// Opens or makes `ROOT/blobs/sha256`.
    pub fn open(root: &Path) -> Result<Blobs, Error> {
        let dir = root.join("blobs").join("sha256");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(io_error("make folder", &dir))?;
        Ok(Blobs { dir })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// Writes a blob, synced; one that is there whole stays. The name itself is
    /// safe after [`Blobs::sync`].
    pub fn write(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        if self.read(digest, bytes.len() as u64)?.is_some() {
            return Ok(());
        }
        let path = self.path(digest);
        let part = path.with_extension("part");
        let written = File::create(&part).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&part, &path)
        });
        written.map_err(|source| {
            let _ = fs::remove_file(&part);
            io_error("write blob", &path)(source)
        })
    }

    /// The names of written blobs have reached the disk when this returns.
    pub fn sync(&self) -> Result<(), Error> {
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io_error("sync folder", &self.dir))
    }

    /// A blob of at most `limit` bytes; `None` when it is missing, larger, or
    /// not what its name says (a power cut or a bad disk: it is fetched again).
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path(digest);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) if bytes.len() as u64 <= limit && Digest::of(&bytes) == *digest => Ok(Some(bytes)),
            Ok(_) => {
                tracing::warn!(path = %path.display(), "blob is damaged and not used");
                Ok(None)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error("read blob", &path)(e)),
        }
    }

    /// Removes all but `known` (hexadecimal digests); half-written ones too.
    pub fn sweep(&self, known: &HashSet<String>) -> Result<(), Error> {
        for name in self.names()? {
            if !known.contains(&name) {
                let path = self.dir.join(&name);
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(io_error("remove blob", &path)(e));
                    }
                    _ => tracing::debug!(blob = name, "removed"),
                }
            }
        }
        Ok(())
    }

    /// Bytes on disk and inodes, the folder's own included.
    pub fn usage(&self) -> Result<(u64, u64), Error> {
        let (mut bytes, mut inodes) = (0, 0);
        let own = fs::metadata(&self.dir).map_err(io_error("look at", &self.dir))?;
        let files = self
            .names()?
            .into_iter()
            .filter_map(|name| fs::symlink_metadata(self.dir.join(name)).ok());
        for metadata in std::iter::once(own).chain(files) {
            bytes += metadata.blocks() * 512;
            inodes += 1;
        }
        Ok((bytes, inodes))
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let entries = fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))?;
        let names: io::Result<Vec<String>> = entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect();
        names.map_err(io_error("list", &self.dir))
    }
}

/// An [`Error::Io`] of a step at a path.
pub fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        step,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_blob_is_not_there_and_can_be_written_again() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(root.path()).unwrap();
        let digest = Digest::of(b"content");
        blobs.write(&digest, b"content").unwrap();
        fs::write(blobs.path(&digest), b"conten\0").unwrap();
        assert_eq!(blobs.read(&digest, 100).unwrap(), None);
        blobs.write(&digest, b"content").unwrap();
        assert_eq!(blobs.read(&digest, 100).unwrap().unwrap(), b"content");
        assert_eq!(blobs.read(&digest, 6).unwrap(), None);
    }

    #[test]
    fn a_sweep_keeps_what_is_known() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(root.path()).unwrap();
        for text in ["a", "b"] {
            blobs
                .write(&Digest::of(text.as_bytes()), text.as_bytes())
                .unwrap();
        }
        fs::write(blobs.dir.join("x.part"), "").unwrap();
        blobs.sweep(&HashSet::from([Digest::of(b"a").hex()])).unwrap();
        assert_eq!(blobs.names().unwrap(), [Digest::of(b"a").hex()]);
        assert_eq!(blobs.usage().unwrap().1, 2);
    }
}
