//! The CRI log format: one entry a line, `TIME STREAM TAGS CONTENT`. The first
//! tag is P for a part of a longer line, F for a line or its last part.

/// Where the container wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// RFC 3339 with nanoseconds.
    pub time: &'a str,
    pub stream: Stream,
    /// The line goes on in the next entry of the same stream.
    pub partial: bool,
    /// Any bytes but a line feed.
    pub content: &'a [u8],
}

impl<'a> LogLine<'a> {
    /// Reads one entry, with or without its line feed; None when it is not one.
    pub fn parse(line: &'a [u8]) -> Option<LogLine<'a>> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(LogLine {
            time,
            stream,
            partial,
            content: parts.next()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read() {
        let line = LogLine::parse(b"2026-11-22T07:00:00.000000001Z stderr F a b \xff\n").unwrap();
        assert_eq!(line.time, "2026-11-22T07:00:00.000000001Z");
        assert_eq!((line.stream, line.partial), (Stream::Stderr, false));
        assert_eq!(line.content, b"a b \xff");
        let empty = LogLine::parse(b"2026-11-22T07:00:00Z stdout P:x ").unwrap();
        assert!(empty.partial && empty.content.is_empty());
    }

    #[test]
    fn what_is_no_entry_is_none() {
        for wrong in ["", "t", "t stdout", "t stdout F", "t stdin F x", "t stdout X x"] {
            assert_eq!(LogLine::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
