//! The log file that the shim writes.

use std::fs;

use berth::cli::Stream;
use e2e::{Result, Story, client::log_lines, cri};

#[tokio::test]
async fn every_line_has_time_stream_and_tag() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("format").await?;
    let id = client
        .run(
            &pod,
            story.script("c", "echo out; echo err >&2; echo; printf unfinished"),
        )
        .await?;
    let path = client.wait_exit(&id).await?.log_path;
    let lines = log_lines(&path)?;
    let of = |stream: Stream| -> Vec<_> {
        let of = lines.iter().filter(|line| line.stream == stream);
        of.map(|line| (&*line.content, line.partial)).collect()
    };
    assert_eq!(of(Stream::Stderr), [("err", false)]);
    let out = of(Stream::Stdout);
    assert_eq!(out[..2], [("out", false), ("", false)]);
    assert_eq!(out[2].0, "unfinished");
    let times: Vec<_> = lines.iter().map(|line| &line.time).collect();
    for time in &times {
        // 2026-11-22T07:00:00.123456789Z, or with an offset.
        assert!(time.len() >= 30 && time.as_bytes()[10] == b'T', "{time}");
    }
    assert!(times.is_sorted(), "{times:?}");
    assert!(fs::metadata(&path)?.file_type().is_file());
    story.finish().await
}

#[tokio::test]
async fn long_lines_are_cut_into_parts() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("long").await?;
    let id = client
        .run(
            &pod,
            story.script("c", "head -c 50000 /dev/zero | tr '\\0' x; echo; echo next"),
        )
        .await?;
    let lines = log_lines(client.wait_exit(&id).await?.log_path)?;
    let (last, parts) = lines.split_last().expect("lines");
    assert_eq!((&*last.content, last.partial), ("next", false));
    assert!(parts.len() >= 2 && parts[..parts.len() - 1].iter().all(|part| part.partial));
    assert!(!parts[parts.len() - 1].partial);
    assert!(parts.iter().all(|part| part.content.len() <= 16 << 10));
    let whole: String = parts.iter().map(|part| &*part.content).collect();
    assert_eq!(whole, "x".repeat(50_000));
    story.finish().await
}

#[tokio::test]
async fn a_hundred_thousand_lines_arrive_whole_and_in_order() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("flood").await?;
    let id = client.run(&pod, story.script("c", "seq 1 100000")).await?;
    let lines = log_lines(client.wait_exit(&id).await?.log_path)?;
    assert_eq!(lines.len(), 100_000);
    for (number, line) in (1..).zip(&lines) {
        assert_eq!(line.content, number.to_string());
    }
    story.finish().await
}

#[tokio::test]
async fn a_reopened_log_goes_on_in_a_new_file() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("reopen").await?;
    let script = "i=0; while :; do i=$((i+1)); echo $i; usleep 500; done";
    let id = client.run(&pod, story.script("c", script)).await?;
    let path = client.status(&id).await?.log_path;
    let mut old = Vec::new();
    for turn in 0..3 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let rotated = format!("{path}.{turn}");
        fs::rename(&path, &rotated)?;
        let request = cri::ReopenContainerLogRequest {
            container_id: id.clone(),
        };
        client.runtime.clone().reopen_container_log(request).await?;
        assert!(fs::exists(&path)?, "the new file is there when the call returns");
        old.push((fs::metadata(&rotated)?.len(), rotated));
    }
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    client.stop(&id, 0).await?;
    let mut lines = Vec::new();
    for (length, rotated) in &old {
        assert_eq!(
            fs::metadata(rotated)?.len(),
            *length,
            "{rotated} grows after the reopening"
        );
        lines.extend(log_lines(rotated)?);
    }
    lines.extend(log_lines(&path)?);
    for (number, line) in (1..).zip(&lines) {
        assert_eq!(line.content, number.to_string(), "a line is lost or twice");
    }
    story.finish().await
}
