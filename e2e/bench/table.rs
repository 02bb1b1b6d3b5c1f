//! The tables as Markdown: p50 and p95 of each server, how many times Berth's each
//! peer's p50 is, and whether the goal is reached.

use std::fmt::Write;

use crate::{
    rounds::{Samples, percentile},
    rows::{self, Row, Unit},
};

/// What the others are compared with, and what goals are for.
pub const OURS: &str = "Berth";

pub fn print(samples: &Samples, columns: &[String]) -> String {
    let scale: Vec<Row> = rows::SCALE
        .iter()
        .flat_map(|row| samples.counts(row).into_iter().map(|pods| row.at(pods)))
        .collect();
    let mut text = table(samples, columns, rows::ALL, true);
    let scale = table(samples, columns, &scale, false);
    if !scale.is_empty() {
        text.push_str("\nScale: what a pod costs when there are so many.\n\n");
        text.push_str(&scale);
    }
    text
}

/// Empty without any figure.
fn table(samples: &Samples, columns: &[String], rows: &[Row], goals: bool) -> String {
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = columns.iter().map(|column| samples.sorted(row, column)).collect();
        if cells.iter().all(Vec::is_empty) {
            continue;
        }
        if text.is_empty() {
            head(&mut text, columns, goals);
        }
        let ours = columns.iter().position(|column| column == OURS);
        let ours = ours.and_then(|at| percentile(&cells[at], 50));
        line(&mut text, row, &cells, ours, goals);
    }
    text
}

fn head(text: &mut String, columns: &[String], goals: bool) {
    let mut titles = vec!["p50 (p95)".to_owned()];
    for (number, column) in columns.iter().enumerate() {
        titles.push(column.clone());
        if number > 0 {
            titles.push("ratio".to_owned());
        }
    }
    if goals {
        titles.extend(["goal".to_owned(), "reached".to_owned()]);
    }
    let _ = writeln!(text, "| {} |", titles.join(" | "));
    let _ = writeln!(text, "|{}", " --- |".repeat(titles.len()));
}

fn line(text: &mut String, row: &Row, cells: &[Vec<f64>], ours: Option<f64>, goals: bool) {
    let mut words = vec![match row.pods {
        0 => row.name.to_owned(),
        pods => format!("{}, {pods} pods", row.name),
    }];
    for (number, cell) in cells.iter().enumerate() {
        words.push(match (percentile(cell, 50), percentile(cell, 95)) {
            (Some(half), Some(most)) => format!("{} ({})", shown(row.unit, half), digits(most)),
            _ => "–".into(),
        });
        if number > 0 {
            words.push(ratio(row, ours, percentile(cell, 50)));
        }
    }
    if goals {
        let sign = if row.more_is_better() { "≥" } else { "≤" };
        words.push(
            row.goal
                .map_or("–".into(), |goal| format!("{sign} {}", shown(row.unit, goal))),
        );
        words.push(match ours.and_then(|value| row.reached(value)) {
            Some(true) => "yes".into(),
            Some(false) => "**no**".into(),
            None => "–".into(),
        });
    }
    let _ = writeln!(text, "| {} |", words.join(" | "));
}

/// How many times better we are.
fn ratio(row: &Row, ours: Option<f64>, theirs: Option<f64>) -> String {
    let (Some(ours), Some(theirs)) = (ours, theirs) else {
        return "–".into();
    };
    let times = if row.more_is_better() {
        ours / theirs
    } else {
        theirs / ours
    };
    if times.is_finite() {
        format!("{}×", digits(times))
    } else {
        "–".into()
    }
}

fn shown(unit: Unit, value: f64) -> String {
    let unit = match unit {
        Unit::Milliseconds => "ms",
        Unit::Micros => "µs",
        Unit::Seconds => "s",
        Unit::Mebibytes => "MiB",
        Unit::PodsPerSecond => "pods/s",
    };
    format!("{} {unit}", digits(value))
}

/// Three digits that count.
fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_figures_ratios_and_the_judgement() {
        let mut samples = Samples::default();
        samples.add("Berth", vec![(rows::EXEC, 1.5), (rows::BURST, 100.0)]);
        samples.add("peer", vec![(rows::EXEC, 45.0), (rows::BURST, 10.0)]);
        let text = print(&samples, &["Berth".into(), "peer".into()]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "| p50 (p95) | Berth | peer | ratio | goal | reached |");
        assert_eq!(
            lines[2],
            "| 50 pods, 8 at a time | 100 pods/s (100) | 10.0 pods/s (10.0) | 10.0× | ≥ 150 pods/s | **no** |"
        );
        assert_eq!(
            lines[3],
            "| ExecSync `true` | 1.50 ms (1.50) | 45.0 ms (45.0) | 30.0× | ≤ 2.00 ms | yes |"
        );
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn what_was_not_measured_has_no_ratio() {
        let mut samples = Samples::default();
        samples.add("peer", vec![(rows::ONE_MORE.at(10), 45.0)]);
        let text = print(&samples, &["Berth".into(), "peer".into()]);
        assert!(
            text.contains("| start of one more pod, 10 pods | – | 45.0 ms (45.0) | – |"),
            "{text}"
        );
    }
}
