//! The machine fails under berthd: a reboot, disks without room or inodes, no
//! descriptors left, a process that nothing can kill for a while, a shim that hangs.
//! What was running runs on, calls fail with words, and all works again afterwards.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use berth::{proto::plan::ExitRecord, shim::exit};
use e2e::{
    Client, Image, Node, Registry, Result, Story,
    client::log_lines,
    cri,
    kernel::{self, Child, fork_servers},
    tar::Entry,
};
use rustix::process::{Signal, kill_process, test_kill_process};
use tonic::Code;

/// Whether faults can be made for whoever serves here; says why not.
fn is_ours() -> bool {
    if std::env::var_os("E2E_PEER").is_some() {
        eprintln!("skipped: another server is not ours to disturb");
        return false;
    }
    true
}

/// A file system of so many bytes and inodes on a folder; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path, options: &str) -> Result<Small> {
        fs::create_dir_all(path)?;
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "small"])
            .arg(path)
            .status()?;
        ensure!(done.success(), "mount {}", path.display());
        Ok(Small(path.to_owned()))
    }

    /// Takes all room that is left.
    fn fill(&self) -> Result<PathBuf> {
        use std::io::Write;
        let path = self.0.join("ballast");
        let mut file = fs::File::create(&path)?;
        for size in [1 << 20, 4096, 1] {
            let chunk = vec![1; size];
            while file.write_all(&chunk).is_ok() {}
        }
        Ok(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        kernel::output("umount", &["-l", &self.0.to_string_lossy()]);
    }
}

async fn sleeper(client: &Client, image: &str, name: &str) -> Result<String> {
    let pod = client.run_pod(name).await?;
    Ok(client
        .run(&pod, client.script("c", image, "exec sleep 1000"))
        .await?)
}

async fn remove_all(client: &Client) -> Result {
    client.remove_everything().await?;
    for image in client.image_list().await? {
        client.remove_image(&image.id).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_reboot() -> Result {
    if !is_ours() {
        return Ok(());
    }
    let mut story = Story::begin().await?;
    let (pod, running) = story.sleeper("before").await?;
    let created = story.client.create(&pod, story.script("created", "true")).await?;
    story.node.reboot()?;
    story.node.launch().await?;
    story.client = story.node.client().await?;
    let client = &story.client;
    let status = client.pod_status(&pod.id).await?;
    assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
    for id in [&running, &created] {
        let status = client.status(id).await?;
        assert_eq!(status.state(), cri::ContainerState::ContainerExited, "{status:?}");
        assert_ne!(status.exit_code, 0);
    }
    // The kubelet makes the pod anew with the next attempt, and has the image still.
    let mut config = pod.config.clone();
    config.metadata.get_or_insert_default().attempt = 1;
    let again = client.run_pod_with(config).await?;
    let id = client.run(&again, story.script("c", "exec sleep 1000")).await?;
    assert_eq!(client.sh(&id, "echo here").await?, "here");
    story.finish().await
}

#[tokio::test]
async fn a_full_disk_under_the_root() -> Result {
    if !is_ours() {
        return Ok(());
    }
    no_room("size=24m", Small::fill).await
}

#[tokio::test]
async fn no_inodes_under_the_root() -> Result {
    if !is_ours() {
        return Ok(());
    }
    no_room("size=64m,nr_inodes=600", |small| {
        let folder = small.0.join("ballast");
        fs::create_dir(&folder)?;
        let mut number = 0;
        while fs::write(folder.join(number.to_string()), "").is_ok() {
            number += 1;
        }
        Ok(folder)
    })
    .await
}

async fn no_room(options: &str, fill: fn(&Small) -> Result<PathBuf>) -> Result {
    let registry = Registry::start().await?;
    let base = Image::busybox().push(&registry, "base:1").await?.tag;
    let other = Image::busybox().layer(&[Entry::file("other", vec![7; 300_000])]);
    let other = other.push(&registry, "other:1").await?.tag;
    let mut node = Node::prepare("")?;
    let small = Small::mount(&node.root(), options)?;
    node.launch().await?;
    let client = node.client().await?;
    client.pull(&base).await?;
    let id = sleeper(&client, &base, "before").await?;
    let ballast = fill(&small)?;

    let Err(error) = client.pull(&other).await else {
        anyhow::bail!("pulled onto a disk without room");
    };
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(
        error.message().contains("other") || error.message().contains("layer"),
        "{error}"
    );
    // What runs does not need the disk.
    assert_eq!(client.sh(&id, "echo here").await?, "here");
    let begin = Instant::now();
    let stopped = client.stop(&id, 0).await;
    assert!(begin.elapsed() < Duration::from_secs(60), "{stopped:?}");
    match fs::metadata(&ballast)?.is_dir() {
        true => fs::remove_dir_all(&ballast)?,
        false => fs::remove_file(&ballast)?,
    }
    client.stop(&id, 0).await?;
    let status = client.wait_exit(&id).await?;
    assert_eq!(status.exit_code, 137, "{status:?}");
    client.pull(&other).await?;
    sleeper(&client, &other, "after").await?;
    remove_all(&client).await?;
    node.stop().await?;
    assert_eq!(fs::read_dir(node.root().join("layers"))?.count(), 0);
    drop(small);
    node.finish().await
}

#[tokio::test]
async fn a_full_disk_under_the_logs() -> Result {
    if !is_ours() {
        return Ok(());
    }
    let story = Story::begin().await?;
    let client = &story.client;
    let mut config = client.pod_config("logs");
    let folder = PathBuf::from(&config.log_directory);
    let small = Small::mount(&folder, "size=256k")?;
    config.log_directory = folder.to_string_lossy().into_owned();
    let pod = client.run_pod_with(config).await?;
    // Far more than there is room for; `done` shows that it was not held up.
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i of many; i=$((i+1)); done; touch /done; \
                  while [ ! -e /more ]; do sleep 0.05; done; echo last; exec sleep 1000";
    let id = client.run(&pod, story.script("c", script)).await?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while client.exec(&id, &["test", "-e", "/done"]).await?.code != 0 {
        ensure!(Instant::now() < deadline, "the container is held up by its log");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Room again, as by a rotation: the log goes on.
    let path = folder.join("c.log");
    fs::rename(&path, folder.join("c.log.1"))?;
    fs::remove_file(folder.join("c.log.1"))?;
    let request = cri::ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    client.runtime.clone().reopen_container_log(request).await?;
    client.sh(&id, "touch /more").await?;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let lines = log_lines(&path).unwrap_or_default();
        if lines.iter().any(|line| line.content == "last") {
            break;
        }
        ensure!(Instant::now() < deadline, "the log does not go on: {lines:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client.stop_pod(&pod.id).await?;
    client.remove_pod(&pod.id).await?;
    drop(small);
    story.finish().await
}

#[tokio::test]
async fn no_descriptors_left() -> Result {
    if !is_ours() {
        return Ok(());
    }
    let story = Story::begin().await?;
    let client = &story.client;
    let (_, id) = story.sleeper("before").await?;
    let pid = story.node.pid().context("berthd runs")?;
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let limit = |number: usize| -> Result {
        let done = Command::new("prlimit")
            .args(["--pid", &pid.to_string(), &format!("--nofile={number}:")])
            .status()?;
        ensure!(done.success(), "prlimit");
        Ok(())
    };
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let soft = line
        .and_then(|line| line.split_whitespace().nth(3))
        .context("the limit")?;
    // Room for a connection, and for half a pod at most.
    limit(open + 2)?;
    let mut refused = 0;
    for number in 0..4 {
        match client.run_pod(&format!("hungry{number}")).await {
            Ok(pod) => {
                if client
                    .run(&pod, story.script("c", "exec sleep 1000"))
                    .await
                    .is_err()
                {
                    refused += 1;
                }
            }
            Err(error) => {
                assert!(error.message().contains("many open files"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "the limit was of no effect");
    limit(soft.parse()?)?;
    assert_eq!(client.sh(&id, "echo here").await?, "here");
    story.sleeper("after").await?;
    story.finish().await
}

#[tokio::test]
async fn a_process_that_does_not_die_at_once() -> Result {
    if !is_ours() {
        return Ok(());
    }
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    if !freezer.join("tasks").exists() {
        eprintln!("skipped: no freezer of cgroup v1 here, in which a process keeps its SIGKILL for later");
        return Ok(());
    }
    let story = Story::begin().await?;
    let client = &story.client;
    let (pod, id) = story.sleeper("undead").await?;
    let mut programs = kernel::programs(story.node.names())?.into_iter();
    let (pid, _) = programs
        .find(|(_, of)| *of == id)
        .context("the container's process")?;
    // In a cgroup that berthd does not know: as a process in an uninterruptible call.
    let ice = freezer.join(format!("ice_{}", id.get(..12).unwrap_or_default()));
    fs::create_dir(&ice)?;
    let frozen = (|| {
        fs::write(ice.join("cgroup.procs"), pid.as_raw_nonzero().to_string())?;
        fs::write(ice.join("freezer.state"), "FROZEN")
    })();
    let stopped = match frozen {
        Ok(()) => {
            let begin = Instant::now();
            let stopped = client.stop(&id, 0).await;
            (stopped, begin.elapsed())
        }
        Err(error) => {
            let _ = fs::remove_dir(&ice);
            return Err(error.into());
        }
    };
    // Others are served meanwhile.
    let other = sleeper(client, &story.image.tag, "other").await;
    fs::write(ice.join("freezer.state"), "THAWED")?;
    let (stopped, took) = stopped;
    let error = stopped.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(took < Duration::from_secs(90), "{took:?}");
    other?;
    // It dies now, and the next call finds that out.
    client.stop_pod(&pod.id).await?;
    client.remove_pod(&pod.id).await?;
    fs::remove_dir(&ice)?;
    story.finish().await
}

#[tokio::test]
async fn a_shim_that_hangs() -> Result {
    if !is_ours() {
        return Ok(());
    }
    let mut story = Story::begin().await?;
    let (pod, id) = story.sleeper("hung").await?;
    let (_, other) = story.sleeper("other").await?;
    let mut shims = kernel::shims(story.node.names())?;
    shims.retain(|(_, of)| *of == id);
    assert_eq!(shims.len(), 1, "{shims:?}");
    kill_process(shims[0].0, Signal::STOP)?;
    // Over a restart, so that nobody knows anything of it.
    story.node.kill()?;
    story.node.launch().await?;
    story.client = story.node.client().await?;
    let client = &story.client;
    assert_eq!(client.sh(&other, "echo here").await?, "here");
    assert_eq!(
        client.status(&id).await?.state(),
        cri::ContainerState::ContainerRunning
    );
    client.stop(&id, 0).await?;
    let status = client.status(&id).await?;
    assert_eq!(
        (status.state(), status.exit_code),
        (cri::ContainerState::ContainerExited, 137)
    );
    client.stop_pod(&pod.id).await?;
    client.remove_pod(&pod.id).await?;
    story.finish().await
}

/// Who has just begun and does not know the shim yet still asks before it kills.
#[tokio::test]
async fn a_shim_that_hangs_for_a_while_passes_the_stop_signal_on() -> Result {
    if !is_ours() {
        return Ok(());
    }
    let mut story = Story::begin().await?;
    let pod = story.client.run_pod("polite").await?;
    let script = story.script(
        "polite",
        "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done",
    );
    let id = story.client.run(&pod, script).await?;
    let log = story.client.status(&id).await?.log_path;
    let deadline = Instant::now() + Duration::from_secs(30);
    while log_lines(&log)?.is_empty() {
        ensure!(Instant::now() < deadline, "the script does not begin");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let shims = kernel::shims(story.node.names())?;
    let shim = shims
        .iter()
        .find(|(_, of)| *of == id)
        .expect("the container has a shim")
        .0;
    kill_process(shim, Signal::STOP)?;
    story.node.kill()?;
    story.node.launch().await?;
    story.client = story.node.client().await?;
    let client = &story.client;
    let goes_on = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        kill_process(shim, Signal::CONT)
    };
    let (stopped, continued) = tokio::join!(client.stop(&id, 20), goes_on);
    stopped?;
    continued?;
    assert_eq!(client.status(&id).await?.exit_code, 7);
    client.stop_pod(&pod.id).await?;
    client.remove_pod(&pod.id).await?;
    story.finish().await
}

#[tokio::test]
async fn a_fork_server_that_dies_or_hangs() -> Result {
    if !is_ours() {
        return Ok(());
    }
    let mut story = Story::begin().await?;
    let berthd = story.node.pid().context("no berthd")?;
    let before = fork_servers(berthd)?;
    ensure!(before.is_empty(), "{before:?} are there before the first shim");
    story.sleeper("first").await?;
    let first = fork_servers(berthd)?;
    story.sleeper("same").await?;
    assert_eq!((first.len(), fork_servers(berthd)?), (1, first.clone()));
    kill_process(first[0], Signal::KILL)?;
    story.sleeper("killed").await?;
    let next = |last| -> Result<_> { Ok(fork_servers(berthd)?.into_iter().find(|pid| *pid != last)) };
    let second = next(first[0])?.context("no second fork server")?;
    kill_process(second, Signal::STOP)?;
    story.sleeper("hung").await?;
    let third = next(second)?.context("no third fork server")?;
    let children = kernel::children(berthd)?;
    let shims = children.iter().filter(|child| matches!(child, Child::Shim(_)));
    assert_eq!(shims.count(), 4, "{children:?}");
    // Who ends is waited for, the servers too.
    story.client.remove_everything().await?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while kernel::children(berthd)? != [Child::ForkServer(third)] {
        ensure!(Instant::now() < deadline, "{:?}", kernel::children(berthd)?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    story.sleeper("last").await?;
    story.node.kill()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while test_kill_process(third).is_ok() {
        ensure!(Instant::now() < deadline, "the fork server lives without berthd");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    story.node.launch().await?;
    story.client = story.node.client().await?;
    story.finish().await
}

#[tokio::test]
async fn a_shim_that_dies_between_its_record_and_its_cgroup() -> Result {
    if !is_ours() {
        return Ok(());
    }
    let mut story = Story::begin().await?;
    let record = ExitRecord {
        code: 7,
        started_at: 1,
        finished_at: 2,
        ..ExitRecord::default()
    };
    for (name, away) in [("watched", false), ("away", true)] {
        let (_, id) = story.sleeper(name).await?;
        if away {
            story.node.kill()?;
        }
        let shims = kernel::shims(story.node.names())?;
        let (shim, _) = shims.iter().find(|(_, of)| *of == id).context("its shim")?;
        exit::write(&story.node.state().join("containers").join(&id), &record)?;
        kill_process(*shim, Signal::KILL)?;
        if away {
            story.node.launch().await?;
            story.client = story.node.client().await?;
        }
        let ended = story.client.wait_exit(&id).await?;
        assert_eq!(ended.exit_code, 7, "{ended:?}");
        // Before the container is removed, which would take them away too.
        let left = kernel::ids_with_cgroups(story.node.names())?;
        assert!(!left.contains(&id), "{name}: {left:?}");
    }
    story.finish().await
}
