//! Layers as they are compressed: gzip (of several members, with zeros after the
//! last), zstd (of several frames), or not at all. The first bytes decide; media
//! types are wrong too often.

use std::io::{self, BufRead, Cursor, Read};

use flate2::bufread::GzDecoder;

/// Largest zstd window, as a power of two (128 MiB, what `zstd --long` makes):
/// the most memory that an attacker's frame can ask for.
const ZSTD_WINDOW_LOG: u32 = 27;

/// The uncompressed stream of `source`.
pub fn decompress<'a>(mut source: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0; 4];
    let mut filled = 0;
    while filled < magic.len() {
        match source.read(&mut magic[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    let whole = Cursor::new(magic).take(filled as u64).chain(source);
    match &magic[..filled] {
        [0x1f, 0x8b, ..] => Ok(Box::new(Members::new(whole))),
        // A zstd frame, or a skippable one before it.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Ok(Box::new(decoder))
        }
        [0xfd, b'7', b'z', b'X'] => Err(unknown("xz")),
        [b'B', b'Z', b'h', _] => Err(unknown("bzip2")),
        _ => Ok(Box::new(whole)),
    }
}

fn unknown(format: &str) -> io::Error {
    let message = format!("the layer is compressed with {format}; gzip, zstd and none are supported");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// The members of a gzip stream, one after the other.
struct Members<R: BufRead>(Option<GzDecoder<R>>);

impl<R: BufRead> Members<R> {
    fn new(source: R) -> Members<R> {
        Members(Some(GzDecoder::new(source)))
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.0 {
            let n = decoder.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            let Some(decoder) = self.0.take() else { break };
            let mut rest = decoder.into_inner();
            // Some tools pad the stream with zeros, to a block of a tape.
            let mut padded = false;
            let next = loop {
                let bytes = rest.fill_buf()?;
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                match bytes.get(zeros) {
                    Some(next) => break Some(*next),
                    None if bytes.is_empty() => break None,
                    None => {
                        padded = true;
                        rest.consume(zeros);
                    }
                }
            };
            let starts_at_once = !padded && rest.fill_buf()?.first() == Some(&0x1f);
            match next {
                None => return Ok(0),
                Some(_) if starts_at_once => self.0 = Some(GzDecoder::new(rest)),
                Some(_) => {
                    let message = "there is something else behind the gzip stream";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;
    use std::io::{BufReader, Write as _};

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8], chunk: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(BufReader::with_capacity(chunk, bytes))?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn every_form_in_every_cut() {
        let text: Vec<u8> = (0..5000u32).flat_map(|n| n.to_le_bytes()).collect();
        let (a, b) = text.split_at(777);
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd(&text)].concat();
        for stream in [
            text.clone(),
            gzip(&text),
            [gzip(a), gzip(b)].concat(),
            [gzip(a), gzip(b), vec![0; 3000]].concat(),
            zstd(&text),
            [zstd(a), zstd(b)].concat(),
            skippable,
        ] {
            for chunk in [1, 7, 64 << 10] {
                assert!(read(&stream, chunk).unwrap() == text);
            }
        }
        assert_eq!(read(b"", 8).unwrap(), b"");
        assert_eq!(read(b"ab", 8).unwrap(), b"ab");
    }

    #[test]
    fn damage_is_an_error() {
        let whole = gzip(&[7; 9000]);
        assert!(read(&whole[..whole.len() - 3], 64).is_err());
        assert!(read(&[&whole[..], b"junk"].concat(), 64).is_err());
        assert!(read(&[&whole[..], &[0; 5], b"junk"].concat(), 4).is_err());
        let mut flipped = whole.clone();
        let last = flipped.len() - 5;
        flipped[last] ^= 1;
        assert!(read(&flipped, 64).is_err());
        let frame = zstd::encode_all(&[7; 9000][..], 1).unwrap();
        assert!(read(&frame[..frame.len() - 1], 64).is_err());
        assert!(read(b"\xfd7zXZ\0", 64).unwrap_err().to_string().contains("xz"));
    }

    proptest! {
        #[test]
        fn any_bytes_end(kind in 0..3usize, body in proptest::collection::vec(any::<u8>(), 0..400)) {
            let magic: &[u8] = [&b""[..], b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"][kind];
            let bytes = [magic, &body].concat();
            let mut out = Vec::new();
            if let Ok(reader) = decompress(&bytes[..]) {
                let _ = reader.take(1 << 20).read_to_end(&mut out);
            }
        }
    }
}
