//! The ledger of the interface: `e2e/fields.tsv` has a row for every field of
//! `proto/cri-v1-wire.tsv`, with what Berth does and the story that shows it: one
//! that would fail if the field were ignored, or told wrongly.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const WIRE: &str = include_str!("../proto/cri-v1-wire.tsv");
const LEDGER: &str = include_str!("../e2e/fields.tsv");

/// What can be said of a field:
/// * `honoured`: of a request, and it does what the interface says;
/// * `reported`: of an answer, and it is filled;
/// * `refused`: a request that sets it fails with the reason;
/// * `informational`: it has no effect on Linux, or is only given back;
/// * `later`: its RPC or feature is not there yet, and answers so.
const DOES: [&str; 5] = ["honoured", "reported", "refused", "informational", "later"];

#[derive(Debug)]
struct Row<'a> {
    line: usize,
    field: (&'a str, &'a str),
    does: &'a str,
    test: &'a str,
}

fn rows() -> Vec<Row<'static>> {
    let cells = |(number, line): (usize, &'static str)| {
        let cells: Vec<&str> = line.split('\t').collect();
        let [message, field, does, test, _note] = cells[..] else {
            panic!("e2e/fields.tsv:{}: not five columns: {line:?}", number + 1);
        };
        Row {
            line: number + 1,
            field: (message, field),
            does,
            test,
        }
    };
    LEDGER.lines().enumerate().skip(1).map(cells).collect()
}

#[test]
fn every_field_has_one_row() {
    let wire: BTreeSet<(&str, &str)> = WIRE
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .filter(|cells| cells[0] == "field")
        .map(|cells| (cells[1], cells[2]))
        .collect();
    let mut told = BTreeSet::new();
    for row in rows() {
        assert!(
            told.insert(row.field),
            "line {}: {:?} is there twice",
            row.line,
            row.field
        );
    }
    let missing: Vec<_> = wire.difference(&told).collect();
    let unknown: Vec<_> = told.difference(&wire).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "missing {missing:?}, unknown {unknown:?}"
    );
    assert_eq!(told.len(), 478);
}

#[test]
fn every_field_has_a_test_that_exists() {
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in rows() {
        let mut say = |what: String| wrong.push(format!("line {}: {:?}: {what}", row.line, row.field));
        if !DOES.contains(&row.does) {
            say(format!("{:?} is none of {DOES:?}", row.does));
        }
        let Some((file, function)) = row.test.split_once("::") else {
            say(format!("{:?} is not FILE::FUNCTION", row.test));
            continue;
        };
        let text = files.entry(file).or_insert_with(|| story(file));
        if !is_test(text, function) {
            say(format!("there is no test {}", row.test));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn story(file: &str) -> String {
    let stories = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/tests");
    fs::read_to_string(stories.join(format!("{file}.rs"))).unwrap_or_default()
}

/// Whether the text has this function and marks it as a test; not one that is ignored.
fn is_test(text: &str, function: &str) -> bool {
    let lines: Vec<&str> = text.lines().collect();
    let head = format!("fn {function}(");
    let Some(at) = lines
        .iter()
        .position(|line| line.starts_with(&head) || line.starts_with(&format!("async {head}")))
    else {
        return false;
    };
    let attributes = || lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
    let marked = |mark: &str| attributes().any(|line| line.contains(mark));
    (marked("#[test]") || marked("#[tokio::test")) && !marked("#[ignore")
}

#[test]
fn what_counts_as_a_test() {
    let text = "#[tokio::test]\nasync fn a() {}\nasync fn b() {}\n#[test]\n#[ignore]\nfn c() {}\n#[test]\nfn d() {}\n";
    let found = ["a", "b", "c", "d", "e"].map(|name| is_test(text, name));
    assert_eq!(found, [true, false, false, true, false]);
}

/// Told, so that a run says what there is.
#[test]
fn how_much_is_done() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows() {
        *counts.entry(row.does).or_default() += 1;
    }
    for (does, count) in counts {
        println!("{count:4} {does}");
    }
}
