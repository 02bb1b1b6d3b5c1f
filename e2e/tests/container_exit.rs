//! How containers end: codes, reasons, signals, grace, and the whole tree with them.

use std::time::{Duration, Instant};

use e2e::{Image, Result, Story, cri, kernel};
use serde_json::json;

#[tokio::test]
async fn codes_and_reasons() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("codes").await?;
    for (name, script, code, reason) in [
        ("good", "exit 0", 0, "Completed"),
        ("bad", "exit 42", 42, "Error"),
        ("killed", "kill -9 $$", 137, "Error"),
        ("aborted", "kill -6 $$", 134, "Error"),
    ] {
        // The first process of a namespace is only killed from outside: a child does it.
        let script = if script.starts_with("kill") {
            format!("sh -c '{script}'; exit $?")
        } else {
            script.into()
        };
        let id = client.run(&pod, story.script(name, &script)).await?;
        let status = client.wait_exit(&id).await?;
        assert_eq!((status.exit_code, &*status.reason), (code, reason), "{name}");
        assert!(
            status.started_at > 0 && (status.finished_at >= status.started_at || story.node.is_peer()),
            "{status:?}"
        );
    }
    story.finish().await
}

#[tokio::test]
async fn the_stop_signal_is_the_images_or_the_requests() -> Result {
    let mut story = Story::begin().await?;
    let image = story
        .image(
            Image::busybox().config(json!({"StopSignal": "SIGUSR1"})),
            "usr1:1",
        )
        .await?;
    let client = &story.client;
    let pod = client.run_pod("signals").await?;
    let script = "trap 'echo usr1; exit 10' USR1; trap 'echo usr2; exit 12' USR2; trap 'echo term; exit 15' TERM; \
        echo ready; while :; do sleep 0.05; done";
    let mut cases = vec![
        (client.script("image", &image.tag, script), 10),
        (story.script("term", script), 15),
    ];
    if !story.node.is_peer() {
        let mut config = client.script("request", &image.tag, script);
        config.set_stop_signal(cri::Signal::Sigusr2);
        cases.push((config, 12));
    }
    for (config, code) in cases {
        let id = client.run(&pod, config).await?;
        ready(&story, &id).await?;
        let begin = Instant::now();
        client.stop(&id, 20).await?;
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert_eq!(client.status(&id).await?.exit_code, code);
    }
    story.finish().await
}

/// Waits until the script has set its traps.
async fn ready(story: &Story, id: &str) -> Result {
    let path = story.client.status(id).await?.log_path;
    let deadline = Instant::now() + Duration::from_secs(5);
    while !std::fs::read_to_string(&path)
        .unwrap_or_default()
        .contains("ready")
    {
        assert!(Instant::now() < deadline, "not ready: {path}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::test]
async fn who_does_not_listen_is_killed_after_the_grace() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("deaf").await?;
    let id = client
        .run(
            &pod,
            story.script("c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"),
        )
        .await?;
    ready(&story, &id).await?;
    let begin = Instant::now();
    client.stop(&id, 1).await?;
    let took = begin.elapsed();
    assert!(
        took >= Duration::from_millis(950) && took < Duration::from_secs(5),
        "{took:?}"
    );
    let status = client.status(&id).await?;
    assert_eq!((status.exit_code, &*status.reason), (137, "Error"));
    story.finish().await
}

#[tokio::test]
async fn nothing_of_a_container_outlives_it() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("tree").await?;
    let mark = format!("{}", 500_000 + std::process::id());
    let script =
        format!("for i in 1 2 3; do setsid sleep {mark} >/dev/null 2>&1 & done; echo ready; sleep 1000");
    let id = client.run(&pod, story.script("c", &script)).await?;
    ready(&story, &id).await?;
    let sleeping = || {
        kernel::output("pgrep", &["-fx", &format!("sleep {mark}")])
            .lines()
            .count()
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while sleeping() < 3 {
        assert!(Instant::now() < deadline, "{} of 3", sleeping());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.stop(&id, 0).await?;
    assert_eq!(sleeping(), 0);
    story.finish().await
}
