//! Header blocks: name and value pairs, compressed with one zlib stream per
//! direction of a connection. Blocks must pass in the order of the wire.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{dictionary::dictionary, frame::Error};

/// Most bytes of one block when decompressed: far above what a client sends, far
/// below what a bomb wants.
pub const MAX_BLOCK: usize = 64 * 1024;
/// Most headers of one block.
pub const MAX_HEADERS: u32 = 256;

/// The headers of a stream; names in lower case, in the order of the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of the header; `name` in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(have, _)| have == name)?;
        // Several values are joined by NUL.
        value.split('\0').next()
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Headers {
    fn from(pairs: [(&str, &str); N]) -> Headers {
        Headers(
            pairs
                .iter()
                .map(|(n, v)| (n.to_string(), v.to_string()))
                .collect(),
        )
    }
}

/// The reading end of a connection's header compression.
#[derive(Debug)]
pub struct Decoder {
    zlib: Decompress,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder {
            zlib: Decompress::new(true),
        }
    }
}

impl Decoder {
    /// Reads one block. An error leaves the compression state undefined: the
    /// connection has to end.
    pub fn decode(&mut self, block: &[u8]) -> Result<Headers, Error> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, Error> {
        let mut output = Vec::with_capacity(1024);
        loop {
            let before = (self.zlib.total_in(), output.len());
            let result = self
                .zlib
                .decompress_vec(input, &mut output, FlushDecompress::Sync);
            let used = usize::try_from(self.zlib.total_in() - before.0).map_err(|_| Error::Compression)?;
            input = input.get(used..).ok_or(Error::Compression)?;
            match result {
                Ok(Status::Ok | Status::BufError) => {}
                Ok(Status::StreamEnd) => return Err(Error::Compression),
                Err(e) if e.needs_dictionary().is_some() => {
                    self.zlib
                        .set_dictionary(&dictionary())
                        .map_err(|_| Error::Compression)?;
                    continue;
                }
                Err(_) => return Err(Error::Compression),
            }
            if output.len() < output.capacity() {
                if input.is_empty() {
                    return Ok(output);
                }
                if used == 0 && output.len() == before.1 {
                    return Err(Error::Compression);
                }
            } else if output.len() >= MAX_BLOCK {
                return Err(Error::HeadersTooLarge);
            } else {
                output.reserve(output.len().min(MAX_BLOCK - output.len()));
            }
        }
    }
}

/// The writing end of a connection's header compression.
#[derive(Debug)]
pub struct Encoder {
    zlib: Compress,
}

impl Encoder {
    pub fn new() -> Result<Encoder, Error> {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&dictionary())
            .map_err(|_| Error::Compression)?;
        Ok(Encoder { zlib })
    }

    /// Writes one block.
    pub fn encode(&mut self, headers: &Headers) -> Result<Vec<u8>, Error> {
        let mut plain = Vec::new();
        put_length(&mut plain, headers.0.len())?;
        for text in headers.0.iter().flat_map(|(name, value)| [name, value]) {
            put_length(&mut plain, text.len())?;
            plain.extend_from_slice(text.as_bytes());
        }
        let mut output = Vec::with_capacity(plain.len() + 64);
        let mut input = plain.as_slice();
        loop {
            let before = self.zlib.total_in();
            self.zlib
                .compress_vec(input, &mut output, FlushCompress::Sync)
                .map_err(|_| Error::Compression)?;
            let used = usize::try_from(self.zlib.total_in() - before).map_err(|_| Error::Compression)?;
            input = &input[used..];
            if input.is_empty() && output.len() < output.capacity() {
                return Ok(output);
            }
            output.reserve(output.len().max(256));
        }
    }
}

fn put_length(output: &mut Vec<u8>, length: usize) -> Result<(), Error> {
    let length = u32::try_from(length).map_err(|_| Error::HeadersTooLarge)?;
    output.extend_from_slice(&length.to_be_bytes());
    Ok(())
}

/// Reads a decompressed block.
pub fn parse(mut block: &[u8]) -> Result<Headers, Error> {
    let count = take_length(&mut block)?;
    if count > MAX_HEADERS {
        return Err(Error::HeadersTooLarge);
    }
    let mut headers = Headers::default();
    for _ in 0..count {
        let name = take_text(&mut block)?.to_ascii_lowercase();
        let value = take_text(&mut block)?;
        if name.is_empty() || headers.0.iter().any(|(have, _)| *have == name) {
            return Err(Error::Headers);
        }
        headers.0.push((name, value));
    }
    Ok(headers)
}

fn take_length(block: &mut &[u8]) -> Result<u32, Error> {
    let (head, rest) = block.split_first_chunk::<4>().ok_or(Error::Headers)?;
    *block = rest;
    Ok(u32::from_be_bytes(*head))
}

fn take_text(block: &mut &[u8]) -> Result<String, Error> {
    let length = usize::try_from(take_length(block)?).map_err(|_| Error::Headers)?;
    let (text, rest) = block.split_at_checked(length).ok_or(Error::Headers)?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| Error::Headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_share_one_compression_stream() {
        let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::default());
        let mut sizes = Vec::new();
        for port in ["80", "80", "8080"] {
            let headers = Headers::from([("streamtype", "data"), ("port", port), ("requestid", "7")]);
            let block = encoder.encode(&headers).unwrap();
            sizes.push(block.len());
            assert_eq!(decoder.decode(&block).unwrap(), headers);
        }
        assert!(sizes[1] < sizes[0], "{sizes:?}");
    }

    #[test]
    fn an_empty_block_is_four_zeros() {
        let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::default());
        let block = encoder.encode(&Headers::default()).unwrap();
        assert_eq!(decoder.decode(&block).unwrap(), Headers::default());
    }

    #[test]
    fn a_bomb_is_stopped() {
        let bomb = "x".repeat(4 << 20);
        let block = Encoder::new()
            .unwrap()
            .encode(&Headers::from([("a", bomb.as_str())]))
            .unwrap();
        assert!(block.len() < MAX_BLOCK);
        assert!(matches!(
            Decoder::default().decode(&block),
            Err(Error::HeadersTooLarge)
        ));
    }

    #[test]
    fn duplicates_and_empty_names_are_errors() {
        for headers in [
            Headers::from([("a", "1"), ("A", "2")]),
            Headers::from([("", "1")]),
        ] {
            let block = Encoder::new().unwrap().encode(&headers).unwrap();
            assert!(matches!(Decoder::default().decode(&block), Err(Error::Headers)));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_block_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse(&bytes);
            let _ = Decoder::default().decode(&bytes);
            let mut decoder = Decoder::default();
            let block = Encoder::new().unwrap().encode(&Headers::from([("a", "b")])).unwrap();
            decoder.decode(&block).unwrap();
            let _ = decoder.decode(&bytes);
        }

        #[test]
        fn what_is_written_is_read(pairs in proptest::collection::btree_map("[a-z-]{1,12}", "[ -~]{0,300}", 0..9)) {
            let headers = Headers(pairs.into_iter().collect());
            let block = Encoder::new().unwrap().encode(&headers).unwrap();
            prop_assert_eq!(Decoder::default().decode(&block).unwrap(), headers);
        }
    }
}
