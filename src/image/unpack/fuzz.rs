//! Archives and layers, whatever they hold.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::*;
use crate::image::{decompress::decompress, tar::Kind, usage::usage};

const BLOCK: usize = 512;

/// A reader that gives a few bytes at a time.
struct Dripping<'a>(&'a [u8], usize);

impl Read for Dripping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(self.1);
        self.0.read(&mut buffer[..most])
    }
}

/// The bytes with right checksums in all that looks like a header: else nearly every
/// change would end there.
fn sealed(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for block in data.chunks_exact_mut(BLOCK) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    data
}

/// Entries stay within the limits, data within the file and the archive, and all is
/// the same however the stream is cut.
pub fn tar(data: &[u8]) {
    let sealed = sealed(data);
    for data in [data, &sealed] {
        let whole = entries(data, data.len().max(1));
        assert_eq!(whole, entries(data, 1 + data.len() % 700));
        assert!(whole.len() <= data.len() / BLOCK + 1);
        if data == sealed {
            break;
        }
    }
}

/// What an archive says, a line for each entry, and its error.
fn entries(data: &[u8], piece: usize) -> Vec<String> {
    let limits = tar::Limits {
        archive: data.len() as u64,
        header: 64 << 10,
        name: 1000,
        xattrs: 8,
        xattr_name: 255,
        xattr_value: 4096,
    };
    let mut archive = Archive::new(Dripping(data, piece), limits);
    let mut lines = Vec::new();
    let mut buffer = vec![0; 1 + piece % 4096];
    let mut stored = 0;
    loop {
        let entry = match archive.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => {
                assert!(matches!(archive.next(), Ok(None)), "it goes on after its end");
                return lines;
            }
            Err(error) => {
                lines.push(error.to_string());
                return lines;
            }
        };
        assert!(entry.path.len() <= limits.name && entry.link.len() <= limits.name);
        assert!(entry.uid != u32::MAX && entry.gid != u32::MAX && entry.mode <= 0o7777);
        assert!(entry.mtime.nanoseconds < 1_000_000_000);
        assert!(entry.xattrs.len() <= limits.xattrs);
        for (name, value) in &entry.xattrs {
            assert!(!name.is_empty() && name.len() <= limits.xattr_name && value.len() <= limits.xattr_value);
        }
        let (mut end, mut sum) = (0, 0u64);
        loop {
            match archive.read(&mut buffer) {
                Ok(Some(chunk)) => {
                    assert!(chunk.length > 0 && chunk.offset >= end && entry.kind == Kind::File);
                    end = chunk.offset + chunk.length as u64;
                    assert!(end <= entry.size, "data behind the end of the file");
                    stored += chunk.length;
                    for (at, byte) in (chunk.offset..).zip(&buffer[..chunk.length]) {
                        sum = sum.wrapping_mul(31).wrapping_add(at ^ u64::from(*byte));
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    lines.push(error.to_string());
                    return lines;
                }
            }
        }
        assert!(stored <= data.len(), "more data than bytes");
        lines.push(format!("{entry:?} {sum}"));
    }
}

/// A folder for a layer beside one that must stay as it is; in memory.
struct Arena(PathBuf);

impl Arena {
    fn new() -> Arena {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() {
            shm.to_owned()
        } else {
            std::env::temp_dir()
        };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let arena = Arena(base.join(format!("berth-fuzz-{}-{number}", std::process::id())));
        let made = [arena.layer(), arena.outside()]
            .into_iter()
            .try_for_each(fs::create_dir_all)
            .and_then(|()| fs::write(arena.outside().join("secret"), "secret"));
        made.expect("make a folder for the layer");
        arena
    }

    fn layer(&self) -> PathBuf {
        self.0.join("layer")
    }

    fn outside(&self) -> PathBuf {
        self.0.join("outside")
    }

    fn check(&self) {
        let names = |path: &Path| fs::read_dir(path).expect("it is there").count();
        assert_eq!(
            (names(&self.0), names(&self.outside())),
            (2, 1),
            "something got out"
        );
        let secret = fs::read(self.outside().join("secret")).expect("it is there");
        assert_eq!(secret, b"secret");
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let name = self
            .0
            .file_name()
            .and_then(|name| CString::new(name.as_encoded_bytes()).ok());
        if let (Some(Ok(parent)), Some(name)) = (self.0.parent().map(fs::File::open), name) {
            let _ = walk::remove_tree(parent.as_fd(), &name);
        }
    }
}

/// A layer, compressed or not, stays in its folder, and is counted as it is there.
pub fn layer(data: &[u8]) {
    let data = sealed(data);
    let limits = Limits {
        bytes: 2 << 20,
        entries: 1000,
        ..Limits::default()
    };
    let arena = Arena::new();
    let dir = fs::File::open(arena.layer()).expect("it is there");
    let Ok(mut stream) = decompress(&data[..]) else {
        return;
    };
    let result = unpack(&mut *stream, dir.as_fd(), &limits);
    arena.check();
    match result {
        Ok(unpacked) => {
            let there = usage(&arena.layer()).expect("it is there");
            assert_eq!(unpacked.inodes, there.inodes - 1, "{unpacked:?}");
            for path in &unpacked.implied {
                let plain = path
                    .components()
                    .all(|part| matches!(part, std::path::Component::Normal(_)));
                assert!(plain, "{path:?}");
                let found = fs::symlink_metadata(arena.layer().join(path)).expect("it is there");
                assert!(found.is_dir(), "{path:?}");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
