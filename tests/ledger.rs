//! The ledger of the interface: `e2e/fields.tsv` has a row for every field of
//! `proto/cri-v1-wire.tsv`, with what Berth does and the story that shows it.

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

/// In the column of the test, where there is none.
const UNTESTED: &str = "untested";

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
fn every_test_that_is_named_exists() {
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in rows() {
        if !DOES.contains(&row.does) {
            wrong.push(format!("line {}: {:?} is none of {DOES:?}", row.line, row.does));
        }
        if row.test == UNTESTED {
            continue;
        }
        let Some((file, function)) = row.test.split_once("::") else {
            wrong.push(format!("line {}: {:?} is not FILE::FUNCTION", row.line, row.test));
            continue;
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("e2e/tests")
            .join(format!("{file}.rs"));
        let text = files
            .entry(file)
            .or_insert_with(|| fs::read_to_string(path).unwrap_or_default());
        if !text.contains(&format!("fn {function}(")) {
            wrong.push(format!("line {}: there is no test {}", row.line, row.test));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Told, not held: the issue that ends the work on the interface wants none.
#[test]
fn how_much_is_shown() {
    let mut counts: BTreeMap<(&str, bool), usize> = BTreeMap::new();
    for row in rows() {
        *counts.entry((row.does, row.test != UNTESTED)).or_default() += 1;
    }
    for ((does, shown), count) in counts {
        println!(
            "{count:4} {does}, {}",
            if shown { "with a test" } else { UNTESTED }
        );
    }
}
