//! Output and logs: floods that nobody reads, and log files that are not what they were
//! (the class of CVE-2022-23471, 2022-31030, 2025-64329, 2026-53489).

use std::{
    fs,
    os::unix::fs::{FileTypeExt, symlink},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use e2e::{Client, Result, Story, client::log_lines, cri, kernel};

const SOON: Duration = Duration::from_secs(20);

async fn reopen(client: &Client, id: &str) -> Result<(), tonic::Status> {
    let request = cri::ReopenContainerLogRequest {
        container_id: id.into(),
    };
    client.runtime.clone().reopen_container_log(request).await?;
    Ok(())
}

/// Waits until a log has this line.
async fn logged(path: &Path, wanted: &str) -> Result {
    let deadline = Instant::now() + SOON;
    while !fs::read_to_string(path).unwrap_or_default().contains(wanted) {
        ensure!(
            Instant::now() < deadline,
            "{wanted:?} is not in {}",
            path.display()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Whoever can write to the log folder makes the log something else before the
/// container starts. Nothing behind it is written, and no call hangs.
#[tokio::test]
async fn a_log_that_is_something_else() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("log").await?;
    let folder = Path::new(&pod.config.log_directory);
    let secret = story.node.path().join("logs/secret");
    fs::write(&secret, "as it was")?;
    symlink(&secret, folder.join("link.log"))?;
    symlink("absent", folder.join("dangling.log"))?;
    fs::create_dir(folder.join("folder.log"))?;
    kernel::output("mkfifo", &[&folder.join("fifo.log").to_string_lossy()]);
    ensure!(fs::metadata(folder.join("fifo.log"))?.file_type().is_fifo());
    for name in ["link", "dangling", "folder", "fifo"] {
        let begin = Instant::now();
        let error = client
            .run(&pod, story.script(name, "echo leaked"))
            .await
            .unwrap_err();
        assert!(error.message().contains(&format!("{name}.log")), "{error}");
        assert!(begin.elapsed() < SOON, "{name}: {:?}", begin.elapsed());
    }
    assert_eq!(fs::read_to_string(&secret)?, "as it was");
    assert!(!folder.join("absent").exists());
    for (path, name) in [
        ("../secret", "up"),
        ("a/../../secret", "over"),
        ("..", "parent"),
        ("a/", "slash"),
        ("a\0b", "nul"),
    ] {
        let mut config = story.script(name, "echo leaked");
        config.log_path = path.into();
        let error = client.create(&pod, config).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{path:?}: {error}");
    }
    assert_eq!(fs::read_to_string(&secret)?, "as it was");
    story.finish().await
}

/// The same while it runs: the shim opens nothing but a file of its own, and the
/// container's lines go on where they went.
#[tokio::test]
async fn a_log_that_is_replaced_before_it_is_reopened() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("reopen").await?;
    let script = "i=0; while :; do i=$((i+1)); echo line $i; usleep 20000; done";
    let id = client.run(&pod, story.script("c", script)).await?;
    let path = client.status(&id).await?.log_path;
    let (path, old) = (Path::new(&path), format!("{path}.old"));
    let secret = story.node.path().join("logs/secret");
    fs::write(&secret, "as it was")?;
    logged(path, "line 1\n").await?;
    fs::rename(path, &old)?;
    for kind in ["link", "folder", "fifo"] {
        match kind {
            "link" => symlink(&secret, path)?,
            "folder" => fs::create_dir(path)?,
            _ => drop(kernel::output("mkfifo", &[&path.to_string_lossy()])),
        }
        let begin = Instant::now();
        let error = reopen(client, &id).await.unwrap_err();
        eprintln!("{kind}: {error}");
        assert!(begin.elapsed() < SOON, "{kind}: {:?}", begin.elapsed());
        if kind == "folder" {
            fs::remove_dir(path)?;
        } else {
            fs::remove_file(path)?;
        }
    }
    let (before, _) = (
        log_lines(&old)?.len(),
        assert_eq!(fs::read_to_string(&secret)?, "as it was"),
    );
    logged(Path::new(&old), &format!("line {}\n", before + 2)).await?;
    reopen(client, &id).await?;
    logged(path, "line ").await?;
    client.stop(&id, 0).await?;
    // No line was lost.
    let all = log_lines(&old)?.into_iter().chain(log_lines(path)?);
    for (number, line) in (1..).zip(all) {
        assert_eq!(line.content, format!("line {number}"));
    }
    story.finish().await
}

/// Gigabytes onto a disk that has no room: the container runs on, calls are answered,
/// and neither disk nor memory fill.
#[tokio::test]
async fn floods_of_output() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let disk = story.node.path().join("logs/small");
    fs::create_dir(&disk)?;
    let shown = disk.to_string_lossy().into_owned();
    kernel::output("mount", &["-t", "tmpfs", "-o", "size=4m", "e2e", &shown]);
    let result = flood(&story, client, &disk).await;
    client.remove_everything().await?;
    kernel::output("umount", &["-l", &shown]);
    result?;
    story.finish().await
}

async fn flood(story: &Story, client: &Client, disk: &Path) -> Result {
    let mut config = client.pod_config("flood");
    config.log_directory = disk.to_string_lossy().into_owned();
    let pod = client.run_pod_with(config).await?;
    let mut ids = Vec::new();
    for (name, script) in [
        ("lines", "exec yes"),
        ("bytes", "while :; do echo; done"),
        ("endless", "exec cat /dev/zero"),
        ("errors", "exec yes something longer >&2"),
    ] {
        ids.push(client.run(&pod, story.script(name, script)).await?);
    }
    let deadline = Instant::now() + SOON;
    let free = || -> Result<u64> {
        let stat = rustix::fs::statvfs(disk)?;
        Ok(stat.f_bavail * stat.f_frsize)
    };
    while free()? > 64 << 10 {
        ensure!(Instant::now() < deadline, "{} bytes are still free", free()?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for id in &ids {
        let begin = Instant::now();
        assert_eq!(client.sh(id, "echo here").await?, "here");
        assert_eq!(
            client.status(id).await?.state(),
            cri::ContainerState::ContainerRunning
        );
        client.stop(id, 1).await?;
        assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    }
    // A shim holds no more than what it reads at a time.
    for name in ["lines", "bytes", "endless", "errors"] {
        // Every line is whole.
        log_lines(disk.join(format!("{name}.log")))?;
    }
    Ok(())
}

/// Of an exec that writes without end a bounded part is kept, and its time ends it.
#[tokio::test]
async fn an_exec_that_writes_for_ever() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (_, id) = story.sleeper("writer").await?;
    let before = memory(&story)?;
    let begin = Instant::now();
    let error = client.exec_within(&id, &["yes"], 2).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    let grown = memory(&story)?.saturating_sub(before);
    assert!(grown < 128 << 20, "berthd grew by {grown} bytes");
    assert_eq!(client.sh(&id, "echo here").await?, "here");
    story.finish().await
}

/// Private memory of berthd.
fn memory(story: &Story) -> Result<u64> {
    kernel::private_memory(story.node.pid().unwrap_or_default())
}
