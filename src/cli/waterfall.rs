//! Steps in time, as aligned text and as a picture.

use std::fmt::Write as _;

/// One step.
#[derive(Clone, Debug)]
pub struct Row {
    /// Whose step it is: the pod's, or a container's.
    pub who: String,
    pub what: String,
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// Microseconds.
    pub took: u64,
    pub note: String,
}

/// Rows in the order of their beginnings.
#[derive(Clone, Debug)]
pub struct Waterfall {
    title: String,
    rows: Vec<Row>,
    begin: i64,
    /// Microseconds from the first beginning to the last end; at least 1.
    length: u64,
}

/// Cells of a bar in text.
const CELLS: u64 = 40;

// Of the picture, in pixels.
const LABELS: u64 = 300;
const CHART: u64 = 520;
const TIMES: u64 = 150;
const TOP: u64 = 72;
const LINE: u64 = 24;

impl Waterfall {
    pub fn new(title: String, rows: Vec<Row>) -> Waterfall {
        let begin = rows.iter().map(|row| row.at).min().unwrap_or(0);
        let mut new = Waterfall {
            title,
            rows,
            begin,
            length: 1,
        };
        let ends = new.rows.iter().map(|row| new.offset(row) + row.took);
        new.length = ends.max().unwrap_or(1).max(1);
        new
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Microseconds from the first beginning.
    fn offset(&self, row: &Row) -> u64 {
        u64::try_from((row.at - self.begin) / 1000).unwrap_or(0)
    }

    fn heading(&self) -> String {
        format!("{}: {} to its last step", self.title, time(self.length))
    }

    /// Lines for a terminal.
    pub fn text(&self) -> String {
        let width = |cell: fn(&Row) -> &str, head: &str| {
            let widest = self.rows.iter().map(|row| cell(row).chars().count()).max();
            widest.unwrap_or(0).max(head.len())
        };
        let (who, what, note) = (
            width(|r| &r.who, "WHO"),
            width(|r| &r.what, "STEP"),
            width(|r| &r.note, ""),
        );
        let mut text = format!(
            "{}\n\n{:who$}  {:what$}  {:>9}  {:>9}  {:note$}\n",
            self.heading(),
            "WHO",
            "STEP",
            "BEGAN",
            "TOOK",
            ""
        )
        .trim_end()
        .to_owned();
        text.push('\n');
        for row in &self.rows {
            let offset = self.offset(row);
            let (before, cells) = self.bar(offset, row.took);
            let line = format!(
                "{:who$}  {:what$}  {:>9}  {:>9}  {:note$}  {}{}",
                row.who,
                row.what,
                time(offset),
                time(row.took),
                row.note,
                " ".repeat(before),
                "█".repeat(cells)
            );
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Cells before the bar, and of the bar, which has at least one.
    fn bar(&self, offset: u64, took: u64) -> (usize, usize) {
        let cell = |at: u64| at.saturating_mul(CELLS) / self.length;
        let before = cell(offset).min(CELLS - 1);
        let end = cell(offset + took).clamp(before + 1, CELLS);
        let number = |n: u64| usize::try_from(n).unwrap_or(0);
        (number(before), number(end - before))
    }

    /// A picture: one SVG file, with nothing outside of it needed.
    pub fn svg(&self) -> String {
        let width = LABELS + CHART + TIMES;
        let bottom = TOP + LINE * self.rows.len() as u64;
        let height = bottom + 16;
        let mut svg = format!(
            r##"<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">
<title>{0}</title>
<rect width="{width}" height="{height}" fill="#ffffff"/>
<text x="12" y="26" font-size="16" font-weight="bold" fill="#1a1a1a">{0}</text>
"##,
            escaped(&self.heading())
        );
        let pixel = |at: u64| LABELS + at.saturating_mul(CHART) / self.length;
        let step = tick(self.length);
        let mut at = 0;
        while at <= self.length {
            let x = pixel(at);
            // Writing to a string cannot fail.
            let _ = writeln!(
                svg,
                r##"<line x1="{x}" y1="{}" x2="{x}" y2="{bottom}" stroke="#dddddd"/><text x="{x}" y="{}" text-anchor="middle" font-size="11" fill="#666666">{}</text>"##,
                TOP - 12,
                TOP - 18,
                time(at)
            );
            at += step;
        }
        for (row, y) in self.rows.iter().zip((TOP..).step_by(24)) {
            let (begin, end) = (pixel(self.offset(row)), pixel(self.offset(row) + row.took));
            let mut took = time(row.took);
            if !row.note.is_empty() {
                let _ = write!(took, ", {}", row.note);
            }
            let baseline = y + 15;
            let _ = writeln!(
                svg,
                r##"<text x="12" y="{baseline}" fill="#1a1a1a">{}</text><rect x="{begin}" y="{}" width="{}" height="16" rx="2" fill="{}"/><text x="{}" y="{baseline}" fill="#444444">{}</text>"##,
                escaped(&shortened(&format!("{}: {}", row.who, row.what))),
                y + 2,
                (end - begin).max(2),
                colour(row),
                end.max(begin + 2) + 6,
                escaped(&took)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// Pulls wait for a registry, the pod's own steps and the containers' do not.
fn colour(row: &Row) -> &'static str {
    match (row.what.starts_with("pull"), row.who == "pod") {
        (true, _) => "#d98032",
        (_, true) => "#3b76b0",
        _ => "#4f9a52",
    }
}

/// What fits before the chart.
fn shortened(label: &str) -> String {
    const MOST: usize = 40;
    if label.chars().count() <= MOST {
        return label.to_owned();
    }
    let start: String = label.chars().take(MOST - 1).collect();
    format!("{start}…")
}

/// What may stand in an XML text: control characters may not, even escaped.
fn escaped(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// Microseconds between two lines of the axis: 1, 2 or 5 of a power of ten, at most
/// eight lines.
fn tick(length: u64) -> u64 {
    let mut power = 1;
    loop {
        for step in [power, power * 2, power * 5] {
            if length / step < 7 {
                return step;
            }
        }
        power *= 10;
    }
}

/// Microseconds for people.
fn time(micros: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "it is rounded anyway")]
    let count = micros as f64;
    match micros {
        0..10_000 => format!("{:.2} ms", count / 1e3),
        10_000..1_000_000 => format!("{:.1} ms", count / 1e3),
        _ => format!("{:.2} s", count / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(who: &str, what: &str, at: i64, took: u64) -> Row {
        Row {
            who: who.into(),
            what: what.into(),
            at,
            took,
            note: String::new(),
        }
    }

    fn sample() -> Waterfall {
        let rows = vec![
            row("pod", "network", 1_000_000_000, 20_000),
            row("main <1>", "start & go", 1_060_000_000, 40_000),
        ];
        Waterfall::new("pod default/web".into(), rows)
    }

    #[test]
    fn bars_stand_where_their_steps_are() {
        let text = sample().text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "pod default/web: 100.0 ms to its last step");
        assert_eq!(lines[2], "WHO       STEP            BEGAN       TOOK");
        let bar = |line: &str| {
            let before = line.chars().position(|c| c == '█').unwrap();
            (before, line.chars().filter(|c| *c == '█').count())
        };
        let (first, second) = (bar(lines[3]), bar(lines[4]));
        assert_eq!((first.1, second.1), (8, 16), "{text}");
        assert_eq!(second.0 - first.0, 24, "{text}");
    }

    #[test]
    fn the_picture_escapes_names() {
        let svg = sample().svg();
        assert!(svg.contains("main &lt;1&gt;: start &amp; go"), "{svg}");
        assert!(!svg.contains("<1>"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert_eq!(escaped("a\u{1}\"b"), "a\u{fffd}&quot;b");
    }

    #[test]
    fn times_and_ticks() {
        assert_eq!(
            [time(0), time(1_234), time(123_456), time(12_345_678)],
            ["0.00 ms", "1.23 ms", "123.5 ms", "12.35 s"]
        );
        assert_eq!([tick(1), tick(69), tick(70), tick(100_000)], [1, 10, 20, 20_000]);
    }

    #[test]
    fn no_rows_are_no_trouble() {
        let empty = Waterfall::new("x".into(), Vec::new());
        assert!(empty.is_empty());
        assert!(empty.svg().contains("</svg>") && empty.text().contains("WHO"));
    }
}
