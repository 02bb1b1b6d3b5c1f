//! `berthd purge` takes everything of one berthd away, when that one is not running.

use std::{
    fs,
    process::{Command, Output},
};

use e2e::{
    Node, Result, Story, kernel,
    node::{binary, stop_slice},
};

fn purge(node: &Node, arguments: &[&str]) -> Result<Output> {
    let output = Command::new(binary("berthd"))
        .args(["purge", "--config"])
        .arg(node.path().join("config.toml"))
        .arg("--root")
        .arg(node.root())
        .arg("--state")
        .arg(node.state())
        .args(arguments)
        .output()?;
    Ok(output)
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn nothing_is_left() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server is not purged");
        return story.finish().await;
    }
    let pod = story.client.run_pod("gentle").await?;
    let script = "trap 'echo told to stop; exit' TERM; echo ready; while :; do sleep 0.1; done";
    let gentle = story.client.run(&pod, story.script("gentle", script)).await?;
    story.sleeper("sleeper").await?;
    let log = story.client.status(&gentle).await?.log_path;
    while !fs::read_to_string(&log)?.contains("ready") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    let busy = purge(&story.node, &["--yes"])?;
    assert_eq!(busy.status.code(), Some(1));
    assert!(
        said(&busy).contains("is used by another berthd: stop it"),
        "{}",
        said(&busy)
    );
    story.node.kill()?;
    let listed = purge(&story.node, &[])?;
    assert_eq!(listed.status.code(), Some(1));
    assert!(
        said(&listed).ends_with("nothing is removed: --yes does it\n"),
        "{}",
        said(&listed)
    );
    let shims = |text: &str| text.lines().filter(|line| line.starts_with("shim")).count();
    assert_eq!(shims(&said(&listed)), 2, "{}", said(&listed));

    let done = purge(&story.node, &["--yes", "--grace", "5"])?;
    assert!(done.status.success(), "{}", said(&done));
    assert!(
        fs::read_to_string(&log)?.contains("told to stop"),
        "the stop signal comes first"
    );
    assert_eq!(kernel::pids(story.node.names())?, Vec::<u32>::new());
    assert!(!story.node.root().exists() && !story.node.state().exists());
    let again = purge(&story.node, &["--yes"])?;
    assert!(again.status.success(), "{}", said(&again));
    // Kernel and disk, looked at by somebody else than berthd.
    story.node.finish().await
}

#[tokio::test]
async fn damaged_records_take_force() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server is not purged");
        return story.finish().await;
    }
    // On the node's network: without records nobody could say that a bridge of a name
    // that somebody chose is ours.
    let mut config = story.client.pod_config("lost");
    let mut options = e2e::client::namespaces();
    options.network = e2e::cri::NamespaceMode::Node.into();
    e2e::client::pod_security(&mut config).namespace_options = Some(options);
    let pod = story.client.run_pod_with(config).await?;
    let sleeper = story.script("lost", "exec sleep 1000");
    story.client.run(&pod, sleeper).await?;
    story.node.kill()?;
    fs::write(story.node.root().join("berth.db"), "no database at all")?;
    for side in ["berth.db-wal", "berth.db-shm"] {
        let _ = fs::remove_file(story.node.root().join(side));
    }

    let refused = purge(&story.node, &["--yes"])?;
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("--force"), "{}", said(&refused));
    assert!(!kernel::pids(story.node.names())?.is_empty());
    let done = purge(&story.node, &["--yes", "--force"])?;
    assert!(done.status.success(), "{}", said(&done));
    assert!(!story.node.root().exists() && !story.node.state().exists());
    // The parent that the configuration names could be somebody else's.
    let parent = story.node.names().cgroup.clone();
    stop_slice(&parent);
    for root in kernel::hierarchies()? {
        let _ = fs::remove_dir(root.join(parent.trim_start_matches('/')));
    }
    story.node.finish().await
}
