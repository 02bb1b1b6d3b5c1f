//! Lines of the CRI log format, pure:
//!
//! ```text
//! 2026-11-22T07:35:01.000000042Z stdout F what the program wrote
//! ```
//!
//! The tag is `F` for a line that ended with a newline and `P` for a piece: the
//! contents, with a newline after each `F`, are what the program wrote, byte for
//! byte. Two kinds of pieces exist, as with containerd: of a line over
//! [`MAX_LINE`], and a last line that had no newline when its stream ended.

/// Bytes of content after which a line is cut; containerd's default.
pub const MAX_LINE: usize = 16 * 1024;

/// Where a line was written to. What comes from a terminal is standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    Full,
    Partial,
}

/// Cuts one stream into lines. Holds the start of a line whose end has not come.
#[derive(Debug, Default)]
pub struct Splitter {
    carry: Vec<u8>,
    /// A terminal writes CR LF for each LF of the program: the CR is dropped.
    terminal: bool,
}

impl Splitter {
    pub fn new(terminal: bool) -> Splitter {
        Splitter {
            carry: Vec::new(),
            terminal,
        }
    }

    /// Takes what was read and gives each line to `emit`, its content in two parts.
    pub fn feed(&mut self, bytes: &[u8], mut emit: impl FnMut(Tag, [&[u8]; 2])) {
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            let mut line = self.cut(line, &mut emit);
            if self.terminal {
                match line.split_last() {
                    Some((b'\r', shorter)) => line = shorter,
                    None if self.carry.last() == Some(&b'\r') => {
                        self.carry.pop();
                    }
                    _ => {}
                }
            }
            emit(Tag::Full, [&self.carry, line]);
            self.carry = Vec::new();
        }
        let rest = self.cut(rest, &mut emit);
        self.carry.extend_from_slice(rest);
    }

    /// Emits pieces while what is held and `line` are too long; the rest of `line`.
    fn cut<'a>(&mut self, mut line: &'a [u8], emit: &mut impl FnMut(Tag, [&[u8]; 2])) -> &'a [u8] {
        while self.carry.len() + line.len() > MAX_LINE {
            let (piece, rest) = line.split_at(MAX_LINE - self.carry.len());
            emit(Tag::Partial, [&self.carry, piece]);
            self.carry = Vec::new();
            line = rest;
        }
        line
    }

    /// The stream has ended: emits what is held.
    pub fn finish(&mut self, mut emit: impl FnMut(Tag, [&[u8]; 2])) {
        if !self.carry.is_empty() {
            emit(Tag::Partial, [&self.carry, &[]]);
            self.carry = Vec::new();
        }
    }
}

/// Time stamps: RFC 3339 in UTC with nanoseconds, always 30 bytes. Each is later
/// than the one before, for collectors take equal stamps for the same line.
#[derive(Debug)]
pub struct Stamps {
    last: i64,
    second: i64,
    text: [u8; 30],
}

/// How far stamps may run ahead of the clock to stay apart, nanoseconds. A clock
/// that was set back further is followed.
const AHEAD: i64 = 1_000_000_000;

impl Default for Stamps {
    fn default() -> Stamps {
        Stamps {
            last: i64::MIN,
            second: i64::MIN,
            text: *b"0000-00-00T00:00:00.000000000Z",
        }
    }
}

impl Stamps {
    /// The stamp for a line read at `now`, nanoseconds since the epoch.
    pub fn next(&mut self, now: i64) -> &[u8; 30] {
        let time = if now <= self.last && now > self.last.saturating_sub(AHEAD) {
            self.last.saturating_add(1)
        } else {
            now
        };
        let next = time == self.last.saturating_add(1);
        self.last = time;
        // The lines of one read are a nanosecond apart: most of a flood's stamps.
        if next && increment(&mut self.text[20..29]) {
            return &self.text;
        }
        let second = time.div_euclid(1_000_000_000);
        if second != self.second {
            self.second = second;
            let days = second.div_euclid(86_400);
            let (year, month, day) = civil(days);
            let of_day = second.rem_euclid(86_400);
            digits(&mut self.text[0..4], year);
            digits(&mut self.text[5..7], month);
            digits(&mut self.text[8..10], day);
            digits(&mut self.text[11..13], of_day / 3600);
            digits(&mut self.text[14..16], of_day / 60 % 60);
            digits(&mut self.text[17..19], of_day % 60);
        }
        digits(&mut self.text[20..29], time.rem_euclid(1_000_000_000));
        &self.text
    }
}

/// Year, month and day of a day since the epoch, by the Gregorian calendar: years
/// are counted from March, so that the leap day is a year's last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

/// Adds one to a number in digits; false, and nothing is to be read from it, when there is
/// no room for that.
fn increment(place: &mut [u8]) -> bool {
    for digit in place.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return true;
        }
        *digit = b'0';
    }
    false
}

fn digits(place: &mut [u8], mut number: i64) {
    for byte in place.iter_mut().rev() {
        *byte = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(pieces: &[&[u8]], terminal: bool) -> Vec<(Tag, Vec<u8>)> {
        let mut splitter = Splitter::new(terminal);
        let mut lines = Vec::new();
        for piece in pieces {
            splitter.feed(piece, |tag, parts| lines.push((tag, parts.concat())));
        }
        splitter.finish(|tag, parts| lines.push((tag, parts.concat())));
        lines
    }

    #[test]
    fn lines_and_a_last_one_without_newline() {
        assert_eq!(
            split(&[b"a\nb", b"c\n\nlast"], false),
            [
                (Tag::Full, b"a".to_vec()),
                (Tag::Full, b"bc".to_vec()),
                (Tag::Full, Vec::new()),
                (Tag::Partial, b"last".to_vec())
            ]
        );
        assert_eq!(split(&[b""], false), []);
    }

    #[test]
    fn cut_at_the_limit_and_not_before() {
        let mut line = vec![b'x'; MAX_LINE];
        line.push(b'\n');
        assert_eq!(split(&[&line], false), [(Tag::Full, vec![b'x'; MAX_LINE])]);
        line.insert(0, b'y');
        let lines = split(&[&line[..7], &line[7..]], false);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].0, lines[0].1.len()), (Tag::Partial, MAX_LINE));
        assert_eq!(lines[1], (Tag::Full, b"x".to_vec()));
    }

    #[test]
    fn the_terminals_carriage_return_is_dropped() {
        assert_eq!(split(&[b"a\r\n"], true), [(Tag::Full, b"a".to_vec())]);
        assert_eq!(split(&[b"a\r", b"\n"], true), [(Tag::Full, b"a".to_vec())]);
        assert_eq!(split(&[b"a\r\n"], false), [(Tag::Full, b"a\r".to_vec())]);
    }

    proptest! {
        #[test]
        fn contents_are_what_was_written(
            pieces in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![3 => Just(b'a'), 1 => Just(b'\n'), 1 => any::<u8>()], 0..9000),
                0..8,
            ),
        ) {
            let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let mut back = Vec::new();
            for (tag, content) in split(&slices, false) {
                prop_assert!(content.len() <= MAX_LINE && !content.contains(&b'\n'));
                back.extend(content);
                if tag == Tag::Full {
                    back.push(b'\n');
                }
            }
            prop_assert_eq!(back, pieces.concat());
        }

        #[test]
        fn stamps_grow(times in proptest::collection::vec(0i64..2000, 1..50)) {
            let mut stamps = Stamps::default();
            let texts: Vec<[u8; 30]> = times.iter().map(|time| *stamps.next(*time)).collect();
            prop_assert!(texts.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn known_stamps() {
        let mut stamps = Stamps::default();
        let mut stamp = |now: i64| String::from_utf8(stamps.next(now).to_vec()).unwrap();
        assert_eq!(stamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(stamp(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(stamp(951_782_400_000_000_001), "2000-02-29T00:00:00.000000002Z");
        assert_eq!(stamp(1_795_332_901_999_999_999), "2026-11-22T07:35:01.999999999Z");
        assert_eq!(stamp(1_798_761_599_000_000_000), "2026-12-31T23:59:59.000000000Z");
        // The clock was set back.
        assert_eq!(stamp(4_107_542_400_000_000_000), "2100-03-01T00:00:00.000000000Z");
        assert_eq!(stamp(1_000_000_000), "1970-01-01T00:00:01.000000000Z");
        // One more each time, over the end of a second.
        assert_eq!(stamp(1_999_999_998), "1970-01-01T00:00:01.999999998Z");
        assert_eq!(stamp(1_999_999_998), "1970-01-01T00:00:01.999999999Z");
        assert_eq!(stamp(1_999_999_998), "1970-01-01T00:00:02.000000000Z");
        assert_eq!(stamp(1_999_999_998), "1970-01-01T00:00:02.000000001Z");
    }
}
