//! Sparse files: where the stored bytes belong in the file. GNU tar has written
//! them in four ways; all end as a list of segments.

use super::{
    header::{self, BLOCK, number},
    pax::digits,
};

/// Bytes of the file that are stored; between segments are holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// Most segments of one file: what a map of 1 MiB holds at its shortest.
const MAX_SEGMENTS: usize = 1 << 18;

/// GNU.sparse.* records of a pax header.
#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
    version: (Option<u64>, Option<u64>),
    /// Offsets and lengths in turn (formats 0.0 and 0.1).
    numbers: Option<Vec<u64>>,
}

/// Where the map of a sparse file is.
pub(super) enum Map {
    /// Not a sparse file.
    None,
    /// Known from the header (formats 0.0 and 0.1).
    Known(Vec<Segment>),
    /// At the head of the data (format 1.0).
    InData,
}

impl Sparse {
    /// Takes one record; `key` is without "GNU.sparse.".
    pub fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        const PROBLEM: &str = "a sparse record of its pax header is not a number";
        let one = || digits(value).ok_or(PROBLEM);
        match key {
            b"name" if value.contains(&0) => return Err("a name in its pax header has a NUL"),
            b"name" => self.name = (!value.is_empty()).then(|| value.to_vec()),
            b"size" | b"realsize" => self.size = Some(one()?),
            b"major" => self.version.0 = Some(one()?),
            b"minor" => self.version.1 = Some(one()?),
            b"map" => {
                let mut numbers = Vec::new();
                for part in value.split(|&b| b == b',').filter(|part| !part.is_empty()) {
                    numbers.push(digits(part).ok_or(PROBLEM)?);
                }
                self.numbers = Some(numbers);
            }
            b"offset" | b"numbytes" => {
                let numbers = self.numbers.get_or_insert_default();
                let expected: &[u8] = if numbers.len().is_multiple_of(2) {
                    b"offset"
                } else {
                    b"numbytes"
                };
                if key != expected {
                    return Err("the sparse records of its pax header are out of order");
                }
                numbers.push(one()?);
            }
            // numblocks: the map tells as much.
            _ => {}
        }
        Ok(())
    }

    pub fn map(&self) -> Result<Map, &'static str> {
        match (self.version, &self.numbers) {
            ((None, None), None) => Ok(Map::None),
            ((Some(1), Some(0)), _) => Ok(Map::InData),
            ((None | Some(0), None | Some(0 | 1)), Some(numbers)) => segments(numbers).map(Map::Known),
            ((Some(0), Some(0 | 1)), None) => Ok(Map::Known(Vec::new())),
            _ => Err("its sparse format is unknown"),
        }
    }
}

fn segments(numbers: &[u64]) -> Result<Vec<Segment>, &'static str> {
    if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > MAX_SEGMENTS {
        return Err("its sparse map is malformed or too long");
    }
    Ok(numbers
        .chunks_exact(2)
        .map(|pair| Segment {
            offset: pair[0],
            length: pair[1],
        })
        .collect())
}

/// A map of format 1.0, which stands in the blocks at the head of the data:
/// lines with the count, then with the offset and the length of each segment.
#[derive(Default)]
pub(super) struct MapInData {
    line: Vec<u8>,
    count: Option<usize>,
    numbers: Vec<u64>,
}

impl MapInData {
    /// Takes the next block. None: the map goes on in the one after.
    pub fn add(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Segment>>, &'static str> {
        const PROBLEM: &str = "the sparse map before its data is malformed";
        for &byte in block {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > 20 {
                    return Err(PROBLEM);
                }
                continue;
            }
            let number = digits(&self.line).ok_or(PROBLEM)?;
            self.line.clear();
            let count = match self.count {
                Some(count) => {
                    self.numbers.push(number);
                    count
                }
                None => {
                    let count = usize::try_from(number).ok().filter(|&n| n <= MAX_SEGMENTS);
                    let count = count.ok_or("its sparse map is malformed or too long")?;
                    *self.count.insert(count)
                }
            };
            if self.numbers.len() == count * 2 {
                return segments(&self.numbers).map(Some);
            }
        }
        Ok(None)
    }
}

/// Takes the entries of an old GNU header or extension block (`slots` of them
/// from `start`), up to the first empty one.
pub(super) fn old_gnu(
    block: &[u8; BLOCK],
    start: usize,
    slots: usize,
    into: &mut Vec<Segment>,
) -> Result<(), &'static str> {
    const PROBLEM: &str = "its old GNU sparse map is malformed";
    for slot in block[start..start + slots * 24].chunks_exact(24) {
        if header::text(slot).is_empty() {
            break;
        }
        if into.len() >= MAX_SEGMENTS {
            return Err("its sparse map is malformed or too long");
        }
        let half = |field| number(field).and_then(|n| u64::try_from(n).ok()).ok_or(PROBLEM);
        into.push(Segment {
            offset: half(&slot[..12])?,
            length: half(&slot[12..])?,
        });
    }
    Ok(())
}

/// Segments must go upwards without overlap, end within the file, and be all of
/// what is stored: otherwise readers would differ in where the next header is.
pub(super) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), &'static str> {
    const PROBLEM: &str = "its sparse map does not fit its size or its data";
    let (mut end, mut sum) = (0u64, 0u64);
    for segment in segments {
        if segment.offset < end {
            return Err(PROBLEM);
        }
        end = segment.offset.checked_add(segment.length).ok_or(PROBLEM)?;
        sum = sum.checked_add(segment.length).ok_or(PROBLEM)?;
    }
    if end > size || sum != stored {
        return Err(PROBLEM);
    }
    Ok(())
}
