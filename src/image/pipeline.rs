//! One pass over a layer's bytes: compressed digest, decompression, diff id, tar
//! reader, folder. The transfer feeds it through a bounded channel from the
//! async side; everything here blocks, on a thread of its own.

use std::io::{self, BufRead, Read};

use hyper::body::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{
    decompress::decompress,
    digest::Digest,
    layers::Ingest,
    manifest::Descriptor,
    tar,
    unpack::{self, Limits, Unpacked},
};
use crate::kind::{HasKind as _, Kind};

/// Chunks of a body in flight between the connection and the disk, per layer.
/// With the connection's own buffer this bounds a layer's memory to about 2 MiB.
pub const CHANNEL: usize = 4;

/// Why a layer did not come out.
#[derive(Debug)]
pub enum Fault {
    /// The bytes are not those of the descriptor: another host may have them.
    Transfer(String),
    /// The bytes are right, and not what the image says about them.
    Image(String),
    /// The bytes are right (or the disk is not), and they cannot be unpacked.
    Unpack(unpack::Error),
}

/// Unpacks what comes through `chunks` into the folder of `ingest`, and verifies
/// size, digest and diff id.
pub fn run(
    chunks: mpsc::Receiver<Bytes>,
    ingest: &Ingest,
    layer: &Descriptor,
    diff_id: Digest,
    limits: &Limits,
) -> Result<Unpacked, Fault> {
    let mut source = Source {
        chunks,
        current: Bytes::new(),
        hasher: Sha256::new(),
        count: 0,
    };
    let mut hasher = Sha256::new();
    let passed = pass(&mut source, &mut hasher, ingest, limits);
    // Whether a stream that cannot be read is the registry's fault or the
    // image's is seen from its digest: it is read to its end. What went wrong on
    // our side is not changed by that.
    if passed.as_ref().err().is_none_or(Broken::is_of_data) {
        source.drain();
        source.verify(layer)?;
    }
    let unpacked = passed.map_err(|broken| match broken {
        Broken::Stream(error) => Fault::Image(format!("cannot be decompressed: {error}")),
        Broken::Archive(error) => Fault::Unpack(error),
    })?;
    let found = Digest::from_hasher(hasher);
    if found != diff_id {
        let message = format!("unpacks to diff id {found}, its config says {diff_id}");
        return Err(Fault::Image(message));
    }
    Ok(unpacked)
}

/// What broke the pass.
enum Broken {
    Stream(io::Error),
    Archive(unpack::Error),
}

impl Broken {
    fn is_of_data(&self) -> bool {
        match self {
            Broken::Stream(_) => true,
            Broken::Archive(error) => error.kind() == Kind::DataLoss,
        }
    }
}

fn pass(
    source: &mut Source,
    hasher: &mut Sha256,
    ingest: &Ingest,
    limits: &Limits,
) -> Result<Unpacked, Broken> {
    let reader = decompress(source).map_err(Broken::Stream)?;
    let mut plain = Plain {
        reader,
        hasher,
        ingest,
    };
    let unpacked = unpack::unpack(&mut plain, ingest.dir(), limits).map_err(|error| match error {
        // The channel never fails: an error of reading is the decompressor's.
        unpack::Error::Archive(tar::Error::Read { source, .. }) => Broken::Stream(source),
        error => Broken::Archive(error),
    })?;
    // The diff id is of the whole stream, what stands behind the archive included.
    io::copy(&mut plain, &mut io::sink()).map_err(Broken::Stream)?;
    Ok(unpacked)
}

/// The compressed bytes, hashed and counted as they come.
struct Source {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    hasher: Sha256,
    count: u64,
}

impl Source {
    fn drain(&mut self) {
        while let Ok([_, ..]) = self.fill_buf() {
            self.current.clear();
        }
    }

    fn verify(self, layer: &Descriptor) -> Result<(), Fault> {
        if self.count != layer.size {
            let message = format!("sent {} bytes instead of {}", self.count, layer.size);
            return Err(Fault::Transfer(message));
        }
        let found = Digest::from_hasher(self.hasher);
        if found != layer.digest {
            let message = format!("sent content of digest {found} instead of {}", layer.digest);
            return Err(Fault::Transfer(message));
        }
        Ok(())
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                None => break,
                Some(chunk) => {
                    self.hasher.update(&chunk);
                    self.count += chunk.len() as u64;
                    self.current = chunk;
                }
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, n: usize) {
        let _ = self.current.split_to(n);
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let n = available.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

/// A reader of the layer's archive, which hashes what it reads.
struct Plain<'a, R> {
    reader: R,
    hasher: &'a mut Sha256,
    ingest: &'a Ingest,
}

impl<R: Read> Read for Plain<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.ingest.unpacked(n as u64);
        Ok(n)
    }
}
