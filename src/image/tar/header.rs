//! One 512-byte header block: fields and numbers, nothing about their meaning.

/// Size of a block; headers and data are padded to it.
pub(super) const BLOCK: usize = 512;

/// A header block's fields as they stand, without what extended headers change.
#[derive(Debug)]
pub(super) struct Header {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub flag: u8,
    pub mode: u32,
    pub uid: i64,
    pub gid: i64,
    pub size: u64,
    pub mtime: i64,
    /// GNU and star headers carry it.
    pub atime: Option<i64>,
    pub device: (u32, u32),
    pub gnu: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// Parses a block; the error says which field is wrong.
pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Header, &'static str> {
    if !checksum_holds(block) {
        return Err("its header checksum does not hold");
    }
    let format = match (&block[257..263], &block[263..265]) {
        (b"ustar\0", _) if &block[508..512] == b"tar\0" => Format::Star,
        // Some writers leave the version empty; the magic alone decides.
        (b"ustar\0", _) => Format::Ustar,
        (b"ustar ", b" \0") => Format::Gnu,
        _ => Format::V7,
    };
    let mut header = Header {
        name: text(&block[0..100]).to_vec(),
        link: text(&block[157..257]).to_vec(),
        flag: block[156],
        // Writers put the file type in here too; only the permission bits count.
        mode: u32::try_from(number(&block[100..108]).ok_or("its mode is not a number")? & 0o7777)
            .unwrap_or(0),
        uid: number(&block[108..116]).ok_or("its uid is not a number")?,
        gid: number(&block[116..124]).ok_or("its gid is not a number")?,
        size: number(&block[124..136])
            .and_then(|n| u64::try_from(n).ok())
            .ok_or("its size is negative or not a number")?,
        mtime: number(&block[136..148]).ok_or("its mtime is not a number")?,
        atime: None,
        device: (0, 0),
        gnu: format == Format::Gnu,
    };
    if format == Format::V7 {
        return Ok(header);
    }
    if matches!(header.flag, b'3' | b'4') {
        let device = |field| number(field).and_then(|n| u32::try_from(n).ok());
        header.device = (
            device(&block[329..337]).ok_or("its device number is out of range")?,
            device(&block[337..345]).ok_or("its device number is out of range")?,
        );
    }
    let prefix = match format {
        Format::Ustar => text(&block[345..500]),
        Format::Star => text(&block[345..476]),
        Format::V7 | Format::Gnu => b"",
    };
    if !prefix.is_empty() {
        header.name = [prefix, b"/", &header.name].concat();
    }
    header.atime = match format {
        Format::Star => number(&block[476..488]).filter(|&t| t != 0),
        Format::Gnu => number(&block[345..357]).filter(|&t| t != 0),
        Format::V7 | Format::Ustar => None,
    };
    Ok(header)
}

/// The sum over all bytes with the checksum field as spaces. Old writers summed
/// signed bytes, so either sum is good.
fn checksum_holds(block: &[u8; BLOCK]) -> bool {
    let Some(stored) = number(&block[148..156]) else {
        return false;
    };
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    stored == unsigned || stored == signed
}

/// A field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or(field)
}

/// A number: octal text, or big-endian two's complement behind a first bit set
/// (GNU's base-256). An empty field is zero. None for anything else, and for
/// what does not fit.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(&first) if first & 0x80 != 0 => {
            let negative = first & 0x40 != 0;
            // The marker bit gives way to a copy of the sign bit.
            let first = if negative { first } else { first & 0x7f };
            let mut value: i128 = if negative { -1 } else { 0 };
            for byte in std::iter::once(first).chain(field[1..].iter().copied()) {
                value = (value << 8) | i128::from(byte);
                i64::try_from(value).ok()?;
            }
            i64::try_from(value).ok()
        }
        _ => {
            let blank = |b: &u8| *b == b' ' || *b == 0;
            let start = field.iter().position(|b| !blank(b)).unwrap_or(field.len());
            let digits = field[start..].split(blank).next().unwrap_or(&[]);
            let mut value: i64 = 0;
            for &digit in digits {
                if !(b'0'..=b'7').contains(&digit) {
                    return None;
                }
                value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
            }
            Some(value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_gnu_tar_writes_them() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"0000008\0"), None);
        assert_eq!(number(b"-000001\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(
            number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]),
            Some(-2)
        );
        let mut widest = [0u8; 12];
        widest[0] = 0x80;
        widest[4] = 0x7f;
        widest[5..].fill(0xff);
        assert_eq!(number(&widest), Some(i64::MAX));
        widest[3] = 1;
        assert_eq!(number(&widest), None);
        assert_eq!(number(b"777777777777"), Some(0o777_777_777_777));
    }
}
