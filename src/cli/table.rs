//! Aligned columns, sizes and ages for people.

use std::{
    io::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use super::Error;

/// Writes to standard output; unlike `print!` it returns the error of a closed pipe.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|source| Error::Io {
            step: "write output",
            source,
        })
}

/// Lines with columns as wide as their widest cell, three spaces between.
pub fn format(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = line(&widths, header.iter().copied());
    for row in rows {
        text.push_str(&line(&widths, row.iter().map(String::as_str)));
    }
    text
}

fn line<'a>(widths: &[usize], cells: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for (width, cell) in widths.iter().zip(cells) {
        text.push_str(&format!("{cell:<width$}   "));
    }
    format!("{}\n", text.trim_end())
}

/// Decimal units, as registries count: "4.2MB".
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut unit = 0;
    let mut scale: u64 = 1;
    while bytes / scale >= 1000 && unit + 1 < UNITS.len() {
        scale *= 1000;
        unit += 1;
    }
    let (whole, tenth) = (bytes / scale, bytes % scale * 10 / scale);
    if unit == 0 || whole >= 100 {
        format!("{whole}{}", UNITS[unit])
    } else {
        format!("{whole}.{tenth}{}", UNITS[unit])
    }
}

/// Time since `nanoseconds` after the epoch, in the largest unit that fits: "3 minutes".
pub fn age(nanoseconds: i64) -> String {
    let then = u64::try_from(nanoseconds).unwrap_or_default() / 1_000_000_000;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    duration(now.saturating_sub(then))
}

fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    for (length, name) in UNITS {
        let count = seconds / length;
        if count >= 1 {
            return format!("{count} {name}{}", if count == 1 { "" } else { "s" });
        }
    }
    "less than a second".into()
}

/// The start of an id that people can type: 12 hex digits, without "sha256:".
pub fn short(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id)
}

/// An image by what people called it; an id is shortened.
pub fn short_image(name: &str) -> &str {
    if name.starts_with("sha256:") {
        short(name)
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_without_trailing_blanks() {
        let rows = vec![vec!["a".into(), "bcd".into()], vec!["longer".into(), "e".into()]];
        assert_eq!(
            format(&["X", "Y"], &rows),
            "X        Y\na        bcd\nlonger   e\n"
        );
    }

    #[test]
    fn sizes_have_three_digits_at_most() {
        let sizes = [0, 999, 1000, 4_260_000, 123_456_789, 7_000_000_000_000];
        let words = sizes.map(size);
        assert_eq!(words, ["0B", "999B", "1.0kB", "4.2MB", "123MB", "7.0TB"]);
    }

    #[test]
    fn ages_are_in_the_largest_unit() {
        let words = [0, 1, 59, 60, 7_300, 200_000].map(duration);
        assert_eq!(
            words,
            [
                "less than a second",
                "1 second",
                "59 seconds",
                "1 minute",
                "2 hours",
                "2 days"
            ]
        );
    }
}
