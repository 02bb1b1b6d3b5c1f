//! berthd dies and comes back: containers run on, their logs flow on, and what
//! ended in between is known with its code.

use std::time::{Duration, Instant};

use e2e::{Result, Story, client::log_lines, cri};

#[tokio::test]
async fn containers_do_not_notice() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server is not ours to kill");
        return Ok(());
    }
    let client = story.client.clone();
    let script = "i=0; while :; do i=$((i+1)); echo $i; usleep 2000; done";
    let pod = client.run_pod("survivor").await?;
    let counting = client.run(&pod, story.script("counting", script)).await?;
    let ending = client
        .run(&pod, story.script("ending", "sleep 0.5; exit 7"))
        .await?;
    let created = client.create(&pod, story.script("created", "sleep 1000")).await?;
    let stopped = client.run_pod("stopped").await?;
    client.stop_pod(&stopped.id).await?;
    let before = (client.status(&counting).await?, client.pod_status(&pod.id).await?);
    let pid = client
        .sh(&counting, "echo $PPID; cat /proc/1/stat | cut -d' ' -f22")
        .await?;

    story.node.kill()?;
    let path = before.0.log_path.clone();
    let lines = log_lines(&path)?.len();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(log_lines(&path)?.len() > lines + 50, "the log stands still");

    let begin = Instant::now();
    story.node.launch().await?;
    let client = story.node.client().await?;
    let listed = client.containers(None).await?;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let state = |id: &str| listed.iter().find(|c| c.id == id).map(|c| c.state());
    assert_eq!(state(&counting), Some(cri::ContainerState::ContainerRunning));
    assert_eq!(state(&ending), Some(cri::ContainerState::ContainerExited));
    assert_eq!(state(&created), Some(cri::ContainerState::ContainerCreated));
    let status = client.status(&ending).await?;
    assert_eq!((status.exit_code, &*status.reason), (7, "Error"));
    assert!(status.finished_at > status.started_at);
    assert_eq!(client.status(&counting).await?, before.0);
    assert_eq!(client.pod_status(&pod.id).await?, before.1);
    assert_eq!(
        client.pod_status(&stopped.id).await?.state(),
        cri::PodSandboxState::SandboxNotready
    );
    assert!(client.image(&story.image.tag).await?.is_some());

    // It is the same process, and everything can be done with it as before.
    assert_eq!(
        client
            .sh(&counting, "echo $PPID; cat /proc/1/stat | cut -d' ' -f22")
            .await?,
        pid
    );
    client.start(&created).await?;
    assert_eq!(client.sh(&created, "echo started").await?, "started");
    client.stop(&counting, 0).await?;
    let numbers = log_lines(&path)?;
    for (number, line) in (1..).zip(&numbers) {
        assert_eq!(line.content, number.to_string(), "a line is lost or twice");
    }
    story.client = client;
    story.finish().await
}

#[tokio::test]
async fn an_exit_is_heard_after_the_restart() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server is not ours to kill");
        return Ok(());
    }
    let (_, id) = story.sleeper("heard").await?;
    story.node.kill()?;
    story.node.launch().await?;
    story.client = story.node.client().await?;
    story.client.stop(&id, 0).await?;
    let status = story.client.wait_exit(&id).await?;
    assert_eq!(status.exit_code, 137);
    story.finish().await
}

#[tokio::test]
async fn a_kill_in_the_middle_of_starts_leaves_nothing() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server is not ours to kill");
        return Ok(());
    }
    for round in 0..8u64 {
        let client = story.client.clone();
        let pods: Vec<_> = (0..4)
            .map(|number| {
                let (client, image) = (client.clone(), story.image.tag.clone());
                tokio::spawn(async move {
                    let pod = client.run_pod(&format!("r{round}-{number}")).await?;
                    let config = client.script("c", &image, "sleep 1000");
                    client.run(&pod, config).await
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(2 + 7 * round)).await;
        story.node.kill()?;
        for pod in pods {
            // Whatever the client was told, nothing may be left of it below.
            let _ = pod.await?;
        }
        story.node.launch().await?;
        story.client = story.node.client().await?;
        story.client.remove_everything().await?;
        assert!(story.client.pods(None).await?.is_empty());
    }
    story.finish().await
}

#[tokio::test]
async fn a_polite_end_leaves_containers_running() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server is not ours to stop");
        return Ok(());
    }
    let (_, id) = story.sleeper("polite").await?;
    story.node.stop().await?;
    story.node.launch().await?;
    story.client = story.node.client().await?;
    assert_eq!(
        story.client.status(&id).await?.state(),
        cri::ContainerState::ContainerRunning
    );
    assert_eq!(story.client.sh(&id, "echo here").await?, "here");
    story.finish().await
}

#[tokio::test]
async fn a_pod_whose_namespaces_are_gone_is_not_ready() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server's folders are not ours to change");
        return Ok(());
    }
    let pod = story.client.run_pod("rebooted").await?;
    story.node.kill()?;
    let pinned = story.node.state().join("sandboxes").join(&pod.id).join("ns");
    for name in ["net", "ipc", "uts"] {
        let path = pinned.join(name);
        let done = std::process::Command::new("umount").arg(&path).status()?;
        assert!(done.success(), "umount {}", path.display());
    }
    story.node.launch().await?;
    story.client = story.node.client().await?;
    let status = story.client.pod_status(&pod.id).await?;
    assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
    assert_eq!(status.network.unwrap_or_default().ip, "");
    story.finish().await
}
