//! Extended headers (POSIX pax): records of text that overrule a header's fields.

use super::{Limits, Time, sparse::Sparse};

/// What extended headers say about the next entry. The global header's values
/// are the start, an entry's own records go over them; a record with an empty
/// value takes a value back.
#[derive(Clone, Debug, Default)]
pub(super) struct Extended {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub mtime: Option<Time>,
    pub atime: Option<Time>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// Records of an 'x' header.
pub(super) fn local(data: &[u8], global: &Extended, limits: &Limits) -> Result<Extended, &'static str> {
    let mut extended = global.clone();
    for record in Records(data) {
        let (key, value) = record?;
        extended.apply(key, value, limits)?;
    }
    Ok(extended)
}

/// Records of a 'g' header, over those of earlier ones. What can only be true
/// of one file is refused: readers differ in what they make of it, and an
/// archive must not be two things to two readers (CVE-2025-62518 is of this kind).
pub(super) fn global(data: &[u8], into: &mut Extended, limits: &Limits) -> Result<(), &'static str> {
    for record in Records(data) {
        let (key, value) = record?;
        if matches!(key, b"path" | b"linkpath" | b"size")
            || key.starts_with(b"GNU.sparse.")
            || key.starts_with(b"SCHILY.xattr.")
        {
            return Err("a global header sets what belongs to one file");
        }
        into.apply(key, value, limits)?;
    }
    Ok(())
}

impl Extended {
    fn apply(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), &'static str> {
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = decimal(value, "its pax size is not a number")?,
            b"uid" => self.uid = id(value, "its pax uid is not a number")?,
            b"gid" => self.gid = id(value, "its pax gid is not a number")?,
            b"mtime" => self.mtime = time(value)?,
            b"atime" => self.atime = time(value)?,
            _ => {
                if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(attribute, value, limits)?;
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.record(key, value)?;
                }
                // Others are comments to us: names of users (ids count),
                // ctime (not settable), LIBARCHIVE.xattr (a second copy, in
                // another encoding, of SCHILY.xattr).
            }
        }
        Ok(())
    }

    fn xattr(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), &'static str> {
        if key.is_empty() || key.len() > limits.xattr_name || value.len() > limits.xattr_value {
            return Err("an extended attribute is longer than the kernel takes");
        }
        self.xattrs.retain(|(known, _)| known != key);
        if self.xattrs.len() >= limits.xattrs {
            return Err("it has too many extended attributes");
        }
        self.xattrs.push((key.to_vec(), value.to_vec()));
        Ok(())
    }
}

/// Records "LENGTH KEY=VALUE\n", LENGTH counting itself.
struct Records<'a>(&'a [u8]);

type Record<'a> = (&'a [u8], &'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = split(self.0);
        self.0 = match record {
            Some((_, rest)) => rest,
            None => &[],
        };
        Some(
            record
                .map(|(record, _)| record)
                .ok_or("its pax header has a malformed record"),
        )
    }
}

fn split(data: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = data.iter().take(20).position(|&b| b == b' ')?;
    let length = usize::try_from(digits(&data[..space])?).ok()?;
    let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&b| b == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some(((key, value), &data[length..]))
}

fn name(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    if value.contains(&0) {
        return Err("a name in its pax header has a NUL");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

/// Digits only: no sign, no space. None when empty or over 63 bits.
pub(super) fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut value: u64 = 0;
    for digit in text {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    i64::try_from(value).is_ok().then_some(value)
}

fn decimal(value: &[u8], problem: &'static str) -> Result<Option<u64>, &'static str> {
    if value.is_empty() {
        return Ok(None);
    }
    digits(value).map(Some).ok_or(problem)
}

fn id(value: &[u8], problem: &'static str) -> Result<Option<i64>, &'static str> {
    Ok(decimal(value, problem)?.and_then(|n| i64::try_from(n).ok()))
}

/// Seconds with a sign and any number of decimals; those beyond nanoseconds are dropped.
fn time(value: &[u8]) -> Result<Option<Time>, &'static str> {
    if value.is_empty() {
        return Ok(None);
    }
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |&b| b == b'.');
    let seconds = parts.next().and_then(digits).and_then(|n| i64::try_from(n).ok());
    let fraction = parts.next().unwrap_or(b"");
    let (Some(seconds), true) = (seconds, fraction.iter().all(u8::is_ascii_digit)) else {
        return Err("a time in its pax header is not a number");
    };
    let mut nanoseconds: u32 = 0;
    for at in 0..9 {
        nanoseconds = nanoseconds * 10 + u32::from(fraction.get(at).map_or(0, |d| d - b'0'));
    }
    Ok(Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time {
            seconds: -seconds,
            nanoseconds,
        },
        // -1.25 s is 0.75 s after -2 s.
        (true, _) => Time {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &[u8]) -> Result<Extended, &'static str> {
        local(data, &Extended::default(), &Limits::default())
    }

    #[test]
    fn records_count_their_own_length() {
        let extended = parse(b"12 path=abc\n20 mtime=-1.25000000\n").unwrap_err();
        assert!(extended.contains("malformed"), "{extended}");
        let extended = parse(b"12 path=abc\n15 mtime=-1.25\n11 uid=123\n").unwrap();
        assert_eq!(extended.path.as_deref(), Some(&b"abc"[..]));
        assert_eq!(
            extended.mtime,
            Some(Time {
                seconds: -2,
                nanoseconds: 750_000_000
            })
        );
        assert_eq!(extended.uid, Some(123));
    }

    #[test]
    fn malformed_records_are_refused() {
        for data in [
            &b"5 a=b\n"[..],
            b"99 a=b\n",
            b" a=b\n",
            b"6 a=b ",
            b"6 abcd\n",
            b"6 =bb\n",
            b"18446744073709551616 a=b\n",
            b"0 a=b\n",
            b"-6 a=b\n",
            b"11 size=-1\n",
            b"27 size=99999999999999999999\n",
            b"13 path=a\0bc\n",
        ] {
            assert!(parse(data).is_err(), "{:?}", String::from_utf8_lossy(data));
        }
    }

    #[test]
    fn global_headers_cannot_move_the_data() {
        let mut state = Extended::default();
        let limits = Limits::default();
        assert!(global(b"12 size=999\n", &mut state, &limits).is_err());
        global(b"11 uid=123\n", &mut state, &limits).unwrap();
        assert_eq!(local(b"", &state, &limits).unwrap().uid, Some(123));
        assert_eq!(local(b"7 uid=\n", &state, &limits).unwrap().uid, None);
    }
}
