//! What is in the log file, to the byte.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{
    can_run,
    fixture::{Fixture, lines, shell},
};

#[tokio::test]
async fn content_is_exact() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new(r"printf 'a\n\nb\tc\r\nlast'");
    let shim = fixture.start().await;
    shim.wait().await.unwrap();
    assert_eq!(
        fixture.lines(),
        ["stdout F a", "stdout F ", "stdout F b\tc\r", "stdout P last"]
    );
    fixture.assert_gone().await;
}

#[tokio::test]
async fn a_hundred_thousand_lines_fast() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new("seq 1 100000; seq 1 1000 >&2");
    let shim = fixture.create().await;
    let began = Instant::now();
    shim.start().await.unwrap();
    shim.wait().await.unwrap();
    println!("100000 lines in {:?}", began.elapsed());
    let lines = fixture.lines();
    let stdout: Vec<String> = lines
        .iter()
        .filter(|line| line.starts_with("stdout"))
        .cloned()
        .collect();
    let wanted: Vec<String> = (1..=100_000).map(|number| format!("stdout F {number}")).collect();
    assert!(stdout == wanted, "{} lines of 100000", stdout.len());
    assert_eq!(lines.len(), 101_000);
    fixture.assert_gone().await;
}

#[tokio::test]
async fn long_lines_are_cut_at_16_kib() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new("head -c 40000 /dev/zero | cat; echo; echo end");
    let shim = fixture.start().await;
    shim.wait().await.unwrap();
    let lines = fixture.lines();
    let heads: Vec<(&str, usize)> = lines.iter().map(|line| (&line[..9], line.len() - 9)).collect();
    assert_eq!(
        heads,
        [
            ("stdout P ", 16384),
            ("stdout P ", 16384),
            ("stdout F ", 7232),
            ("stdout F ", 3)
        ]
    );
    fixture.assert_gone().await;
}

#[tokio::test]
async fn rotation_under_load_loses_nothing() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new("seq 1 300000");
    let shim = fixture.create().await;
    shim.start().await.unwrap();
    let mut files = Vec::new();
    for number in 0..10 {
        let old = fixture.path().join(format!("old.{number}"));
        fs::rename(&fixture.log, &old).unwrap();
        match shim.reopen_log().await {
            Ok(()) => {
                assert!(
                    fixture.log.exists(),
                    "the new file is there when the verb returns"
                );
                files.push((old.clone(), fs::metadata(&old).unwrap().len()));
            }
            // It has ended already.
            Err(error) => {
                assert!(error.is_gone(), "{error}");
                fs::rename(&old, &fixture.log).unwrap();
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    shim.wait().await.unwrap();
    println!("{} rotations", files.len());
    let mut seen = Vec::new();
    for (old, length) in &files {
        assert_eq!(fs::metadata(old).unwrap().len(), *length, "the old file grew");
        seen.extend(lines(old));
    }
    seen.extend(fixture.lines());
    let wanted: Vec<String> = (1..=300_000).map(|number| format!("stdout F {number}")).collect();
    assert!(seen == wanted, "{} lines of 300000", seen.len());
    fixture.assert_gone().await;
}

#[tokio::test]
async fn a_full_disk_does_not_stop_the_container() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new("seq 1 50000; exit 6");
    fixture.plan.log.as_mut().unwrap().path = "/dev/full".into();
    let shim = fixture.start().await;
    assert_eq!(shim.wait().await.unwrap().record.code, 6);
    let notes = fs::read_to_string(fixture.dir.join("shim.log")).unwrap();
    assert!(notes.contains("No space left on device"), "{notes}");
    assert!(notes.lines().count() < 4, "{notes}");
    fixture.assert_gone().await;
}

#[tokio::test]
async fn without_a_log_output_is_discarded() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new("seq 1 50000; exit 2");
    fixture.plan.log = None;
    let shim = fixture.start().await;
    assert_eq!(shim.wait().await.unwrap().record.code, 2);
    assert!(!fixture.log.exists());
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
}

#[tokio::test]
async fn a_terminal_is_logged_as_stdout_and_resized() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new(
        "stty size; echo oops >&2; while [ ! -e /go ]; do sleep 0.01; done; stty size; seq 1 5000",
    );
    let process = fixture.plan.process.as_mut().unwrap();
    process.terminal = true;
    (process.console_width, process.console_height) = (80, 24);
    let shim = fixture.start().await;
    fixture.await_log("oops").await;
    shim.resize(132, 43).await.unwrap();
    shim.exec_sync(&shell("echo > /go"), None, 0).await.unwrap();
    assert_eq!(shim.wait().await.unwrap().record.code, 0);
    let lines = fixture.lines();
    assert_eq!(lines[..3], ["stdout F 24 80", "stdout F oops", "stdout F 43 132"]);
    assert_eq!(lines.len(), 3 + 5000);
    assert_eq!(lines.last().unwrap(), "stdout F 5000");
    fixture.assert_gone().await;
}

#[tokio::test]
async fn the_input_stays_open_until_it_is_closed() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new("cat; echo end of input");
    fixture.plan.stdin = true;
    let shim = fixture.start().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fixture.lines(), [""; 0]);
    shim.close_stdin().await.unwrap();
    shim.wait().await.unwrap();
    assert_eq!(fixture.lines(), ["stdout F end of input"]);
    fixture.assert_gone().await;
}
