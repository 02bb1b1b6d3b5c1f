//! The stream below the reader: buffered, counted, limited.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read},
};

use super::Error;

/// Headers and small files come out of this buffer; larger reads pass it by.
const BUFFER: usize = 64 << 10;

pub(super) struct Input<R> {
    reader: BufReader<R>,
    position: u64,
    limit: u64,
}

impl<R> fmt::Debug for Input<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Input at {}", self.position)
    }
}

impl<R: Read> Input<R> {
    pub fn new(reader: R, limit: u64) -> Input<R> {
        Input {
            reader: BufReader::with_capacity(BUFFER, reader),
            position: 0,
            limit,
        }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    /// Fills all of `buffer`.
    pub fn fill(&mut self, buffer: &mut [u8], inside: &'static str) -> Result<(), Error> {
        if buffer.is_empty() || self.fill_or_end(buffer, inside)? {
            return Ok(());
        }
        Err(self.truncated(inside))
    }

    /// Fills all of `buffer`, or answers false when the stream ends before it.
    pub fn fill_or_end(&mut self, buffer: &mut [u8], inside: &'static str) -> Result<bool, Error> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(self.truncated(inside)),
                Ok(read) => {
                    filled += read;
                    self.advance(read)?;
                }
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
        Ok(true)
    }

    /// Passes over `rest` bytes, which must be there.
    pub fn skip(&mut self, mut rest: u64, inside: &'static str) -> Result<(), Error> {
        while rest > 0 {
            let skipped = self.consume(rest)?;
            if skipped == 0 {
                return Err(self.truncated(inside));
            }
            rest -= skipped;
        }
        Ok(())
    }

    /// Reads to the end of the stream.
    pub fn drain(&mut self) -> Result<(), Error> {
        while self.consume(u64::MAX)? > 0 {}
        Ok(())
    }

    fn consume(&mut self, most: u64) -> Result<u64, Error> {
        let length = loop {
            match self.reader.fill_buf() {
                Ok(bytes) => break usize::try_from(most).map_or(bytes.len(), |most| bytes.len().min(most)),
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(source)),
            }
        };
        self.reader.consume(length);
        self.advance(length)?;
        Ok(u64::try_from(length).unwrap_or(u64::MAX))
    }

    fn advance(&mut self, bytes: usize) -> Result<(), Error> {
        self.position = self
            .position
            .saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        if self.position > self.limit {
            return Err(Error::TooLong { limit: self.limit });
        }
        Ok(())
    }

    fn truncated(&self, inside: &'static str) -> Error {
        Error::Truncated {
            at: self.position,
            inside,
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Read {
            at: self.position,
            source,
        }
    }
}
