//! A streaming tar reader. It touches no path and trusts nothing.
//!
//! Reads V7, ustar, pax, star and GNU archives: long names, pax records, base-256
//! numbers, the four sparse formats. It is as strict as Go's reader, which
//! containerd uses, where readers are known to differ: the size that decides
//! where the next header stands is, for data and for skipping alike, the pax one
//! if there is one (RUSTSEC-2026-0068, CVE-2025-62518), and never applies to the
//! extended headers between; links, folders and devices have no data.
//!
//! Headers are bounded by [`Limits`], so memory is too (CVE-2025-58183).

mod header;
mod input;
mod pax;
mod sparse;
#[cfg(test)]
pub(crate) mod tests;

use std::io::{self, Read};

use header::{BLOCK, Header};
use input::Input;
use pax::Extended;
use sparse::Map;
pub use sparse::Segment;

/// Errors of an archive; `at` is the offset of the header concerned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the archive at byte {at}: {source}")]
    Read { at: u64, source: io::Error },
    #[error("the archive is truncated: it ends at byte {at}, inside {inside}")]
    Truncated { at: u64, inside: &'static str },
    #[error("the archive is longer than {limit} bytes, the limit of a layer: raise image.max_layer_bytes")]
    TooLong { limit: u64 },
    #[error("archive entry at byte {at}: {problem}")]
    Malformed { at: u64, problem: &'static str },
    #[error("archive entry {name:?} at byte {at} is of the unknown type {flag:?}")]
    UnknownType { at: u64, name: String, flag: char },
}

/// Bounds of what headers may hold. The defaults are the kernel's own, where it has one.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the whole archive.
    pub archive: u64,
    /// Bytes of one extended header or long name.
    pub header: usize,
    /// Bytes of a path or link target.
    pub name: usize,
    /// Extended attributes of one entry, and the bytes of one's name and value.
    pub xattrs: usize,
    pub xattr_name: usize,
    pub xattr_value: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            archive: u64::MAX,
            header: 1 << 20,
            name: 4095,
            xattrs: 256,
            xattr_name: 255,
            xattr_value: 65536,
        }
    }
}

/// A point in time: seconds since 1970, and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    pub seconds: i64,
    /// Below 1,000,000,000.
    pub nanoseconds: u32,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Folder,
    Fifo,
}

/// One entry, extended headers applied. Names are as the archive has them:
/// absolute, with "..", whatever.
#[derive(Clone, Debug)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Target of a symlink, path of a hard link's other name.
    pub link: Vec<u8>,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of the file, with its holes.
    pub size: u64,
    pub mtime: Time,
    pub atime: Option<Time>,
    /// Major and minor number.
    pub device: (u32, u32),
    /// Names and values, each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Bytes of a file that [`Archive::read`] put into the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where in the file they belong.
    pub offset: u64,
    pub length: usize,
}

/// An archive being read: [`Archive::next`] gives the next entry, [`Archive::read`] its data.
#[derive(Debug)]
pub struct Archive<R> {
    input: Input<R>,
    limits: Limits,
    global: Extended,
    /// Offset of the last header.
    at: u64,
    /// What is unread of the current entry, in reverse order, and its padding.
    segments: Vec<Segment>,
    padding: u64,
    /// Data that belongs to no file (of a GNU dumpdir, or a file that is a folder).
    junk: u64,
    ended: bool,
}

impl<R: Read> Archive<R> {
    pub fn new(reader: R, limits: Limits) -> Archive<R> {
        Archive {
            input: Input::new(reader, limits.archive),
            limits,
            global: Extended::default(),
            at: 0,
            segments: Vec::new(),
            padding: 0,
            junk: 0,
            ended: false,
        }
    }

    /// The next entry; what is unread of the one before is skipped. At the end of
    /// the archive the rest of the stream is read, so that a digest taken of it
    /// covers all, and the answer is None.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Entry>, Error> {
        if self.ended {
            return Ok(None);
        }
        self.skip_rest()?;
        let mut extended: Option<Extended> = None;
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.at = self.input.position();
            let Some(block) = self.header_block()? else {
                if extended.is_some() || long_name.is_some() || long_link.is_some() {
                    return Err(Error::Truncated {
                        at: self.at,
                        inside: "the headers of an entry",
                    });
                }
                self.ended = true;
                return Ok(None);
            };
            let header = header::parse(&block).map_err(|problem| self.malformed(problem))?;
            match header.flag {
                b'x' => {
                    let data = self.meta(header.size)?;
                    let parsed = pax::local(&data, &self.global, &self.limits);
                    extended = Some(parsed.map_err(|problem| self.malformed(problem))?);
                }
                b'g' => {
                    let data = self.meta(header.size)?;
                    let parsed = pax::global(&data, &mut self.global, &self.limits);
                    parsed.map_err(|problem| self.malformed(problem))?;
                }
                b'L' => long_name = Some(header::text(&self.meta(header.size)?).to_vec()),
                b'K' => long_link = Some(header::text(&self.meta(header.size)?).to_vec()),
                // A volume's label names the archive, no file.
                b'V' => {
                    self.junk = header.size;
                    self.padding = padding(header.size);
                    self.skip_rest()?;
                }
                _ => {
                    let mut extended = extended.unwrap_or_else(|| self.global.clone());
                    if (long_name.is_some() && extended.path.is_some())
                        || (long_link.is_some() && extended.link.is_some())
                    {
                        return Err(self.malformed("it has both a pax and a GNU long name"));
                    }
                    extended.path = extended.path.or(long_name);
                    extended.link = extended.link.or(long_link);
                    return self.entry(&block, header, extended).map(Some);
                }
            }
        }
    }

    /// Data of the current entry: fills `buffer` from one stretch of the file, as
    /// far as that goes. None: no data is left.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<Option<Chunk>, Error> {
        let Some(segment) = self.segments.last_mut() else {
            return Ok(None);
        };
        let length = usize::try_from(segment.length).map_or(buffer.len(), |n| n.min(buffer.len()));
        self.input.fill(&mut buffer[..length], "a file's data")?;
        let chunk = Chunk {
            offset: segment.offset,
            length,
        };
        let read = u64::try_from(length).unwrap_or(u64::MAX);
        segment.offset += read;
        segment.length -= read;
        if segment.length == 0 {
            self.segments.pop();
        }
        Ok(Some(chunk))
    }

    /// The next header block; None at the end: two blocks of zeros, or no more
    /// bytes (which, as Go does, counts as an end even without zeros).
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0u8; BLOCK];
        if !self.input.fill_or_end(&mut block, "a header")? {
            return Ok(None);
        }
        if block != [0u8; BLOCK] {
            return Ok(Some(block));
        }
        if self.input.fill_or_end(&mut block, "the end mark")? {
            if block != [0u8; BLOCK] {
                return Err(self.malformed("a block of zeros stands alone before it"));
            }
            self.input.drain()?;
        }
        Ok(None)
    }

    /// The whole data of an extended header or long name.
    fn meta(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let length = usize::try_from(size)
            .ok()
            .filter(|&n| n <= self.limits.header)
            .ok_or_else(|| self.malformed("its extended header is larger than the limit"))?;
        let mut data = vec![0; length];
        self.input.fill(&mut data, "an extended header")?;
        self.input.skip(padding(size), "an extended header")?;
        Ok(data)
    }

    fn skip_rest(&mut self) -> Result<(), Error> {
        let stored = self.segments.drain(..).map(|segment| segment.length).sum::<u64>();
        let rest = stored.saturating_add(std::mem::take(&mut self.junk));
        self.input.skip(rest, "a file's data")?;
        self.input
            .skip(std::mem::take(&mut self.padding), "the padding after a file")
    }

    fn malformed(&self, problem: &'static str) -> Error {
        Error::Malformed { at: self.at, problem }
    }

    /// Puts header and extended headers together, and sets up what is to be read.
    fn entry(&mut self, block: &[u8; BLOCK], header: Header, extended: Extended) -> Result<Entry, Error> {
        let path = extended.sparse.name.clone().or(extended.path.clone());
        let path = path.unwrap_or(header.name);
        let link = extended.link.clone().unwrap_or(header.link);
        let kind = match header.flag {
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' | b'D' => Kind::Folder,
            b'6' => Kind::Fifo,
            flag => {
                return Err(Error::UnknownType {
                    at: self.at,
                    name: String::from_utf8_lossy(&path).into_owned(),
                    flag: char::from(flag),
                });
            }
        };
        if path.len() > self.limits.name || link.len() > self.limits.name {
            return Err(self.malformed("its name or link target is longer than the kernel takes"));
        }
        // The highest number means "leave as it is" to chown.
        let id = |ours: Option<i64>, theirs| {
            u32::try_from(ours.unwrap_or(theirs))
                .ok()
                .filter(|&id| id != u32::MAX)
        };
        let owner = (id(extended.uid, header.uid), id(extended.gid, header.gid));
        let (Some(uid), Some(gid)) = owner else {
            return Err(self.malformed("its owner or group is out of range"));
        };
        let whole = |seconds| Time {
            seconds,
            nanoseconds: 0,
        };
        let mut entry = Entry {
            path,
            kind,
            link,
            mode: header.mode,
            uid,
            gid,
            size: 0,
            mtime: extended.mtime.unwrap_or(whole(header.mtime)),
            atime: extended.atime.or(header.atime.map(whole)),
            device: header.device,
            xattrs: Vec::new(),
        };
        let stored = extended.size.unwrap_or(header.size);
        if i64::try_from(stored).is_err() {
            return Err(self.malformed("its size is out of range"));
        }
        if kind == Kind::File && entry.path.ends_with(b"/") {
            // From before folders had a type of their own.
            entry.kind = Kind::Folder;
        }
        if kind == Kind::File && entry.kind == Kind::File {
            let old_gnu = header.flag == b'S' && header.gnu;
            entry.size = self.file(block, old_gnu, stored, &extended)?;
        } else if kind == Kind::File || header.flag == b'D' {
            self.junk = stored;
            self.padding = padding(stored);
        }
        entry.xattrs = extended.xattrs;
        Ok(entry)
    }

    /// Finds where a file's stored bytes belong; answers its size.
    fn file(
        &mut self,
        block: &[u8; BLOCK],
        old_gnu: bool,
        stored: u64,
        extended: &Extended,
    ) -> Result<u64, Error> {
        self.padding = padding(stored);
        let map = if old_gnu {
            Map::Known(self.old_gnu_map(block)?)
        } else {
            extended.sparse.map().map_err(|problem| self.malformed(problem))?
        };
        let (mut segments, mut stored, mut size) = (Vec::new(), stored, stored);
        let sparse = !matches!(map, Map::None);
        match map {
            Map::None => segments.push(Segment {
                offset: 0,
                length: stored,
            }),
            Map::Known(known) => segments = known,
            Map::InData => (segments, stored) = self.map_in_data(stored)?,
        }
        if sparse {
            let real = if old_gnu {
                header::number(&block[483..495]).and_then(|n| u64::try_from(n).ok())
            } else {
                extended.sparse.size
            };
            size = real.ok_or_else(|| self.malformed("a sparse file does not say its size"))?;
            sparse::check(&segments, size, stored).map_err(|problem| self.malformed(problem))?;
        }
        segments.retain(|segment| segment.length > 0);
        segments.reverse();
        self.segments = segments;
        Ok(size)
    }

    /// The map of an old GNU sparse file: four entries in the header, then blocks
    /// of 21 between it and the data.
    fn old_gnu_map(&mut self, block: &[u8; BLOCK]) -> Result<Vec<Segment>, Error> {
        let mut segments = Vec::new();
        sparse::old_gnu(block, 386, 4, &mut segments).map_err(|problem| self.malformed(problem))?;
        let mut more = block[482] != 0;
        let mut extensions = 0usize;
        while more {
            extensions += 1;
            if extensions * BLOCK > self.limits.header {
                return Err(self.malformed("its sparse map is malformed or too long"));
            }
            let mut next = [0u8; BLOCK];
            self.input.fill(&mut next, "a sparse map")?;
            sparse::old_gnu(&next, 0, 21, &mut segments).map_err(|problem| self.malformed(problem))?;
            more = next[504] != 0;
        }
        Ok(segments)
    }

    /// The map of format 1.0 from the head of the data, and how much data is left.
    fn map_in_data(&mut self, mut stored: u64) -> Result<(Vec<Segment>, u64), Error> {
        let mut map = sparse::MapInData::default();
        loop {
            stored = stored
                .checked_sub(BLOCK as u64)
                .ok_or_else(|| self.malformed("the sparse map before its data is malformed"))?;
            let mut block = [0u8; BLOCK];
            self.input.fill(&mut block, "a sparse map")?;
            if let Some(segments) = map.add(&block).map_err(|problem| self.malformed(problem))? {
                return Ok((segments, stored));
            }
        }
    }
}

/// Bytes from `size` to the next whole block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % (BLOCK as u64)
}
