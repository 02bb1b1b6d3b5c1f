//! berthd has a limit of memory and meets it under load: the kernel ends it in the middle
//! of whatever it does. What it said is so, what runs runs on, and each call that was not
//! answered succeeds when there is memory again.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Client, Image, Result, Story, cri, tar::Entry};

/// A cgroup with a limit of memory, in whichever version there is; gone when dropped.
struct Squeeze {
    folder: PathBuf,
    limit: &'static str,
    none: &'static str,
}

impl Squeeze {
    fn make(name: &str) -> Result<Option<Squeeze>> {
        let v1 = Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes");
        let v2 = Path::new("/sys/fs/cgroup/cgroup.subtree_control");
        let enabled = fs::read_to_string(v2).unwrap_or_default();
        let (root, limit, none) = if v1.exists() {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "-1")
        } else if enabled.split_whitespace().any(|name| name == "memory") {
            ("/sys/fs/cgroup", "memory.max", "max")
        } else {
            eprintln!("skipped: this machine cannot limit memory");
            return Ok(None);
        };
        let folder = Path::new(root).join(name.trim_start_matches('/'));
        fs::create_dir(&folder)?;
        Ok(Some(Squeeze { folder, limit, none }))
    }

    fn take(&self, pid: u32) -> Result {
        Ok(fs::write(self.folder.join("cgroup.procs"), pid.to_string())?)
    }

    fn limit(&self, bytes: u64) {
        // Refused when it cannot be made so small: then it stays as it is.
        let _ = fs::write(self.folder.join(self.limit), bytes.to_string());
    }

    fn lift(&self) -> Result {
        Ok(fs::write(self.folder.join(self.limit), self.none)?)
    }
}

impl Drop for Squeeze {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Pulls and makes pods until nobody answers; the pods that were acknowledged.
async fn load(client: Client, number: usize, images: Vec<String>) -> Vec<String> {
    let mut made = Vec::new();
    for round in 0.. {
        let name = format!("load{number}-{round}");
        let Ok(pod) = client.run_pod(&name).await else {
            break;
        };
        made.push(pod.id.clone());
        let image = &images[round % images.len()];
        if client.pull(image).await.is_err()
            || client
                .run(&pod, client.script("c", image, "exec sleep 1000"))
                .await
                .is_err()
            || client.remove_image(image).await.is_err()
        {
            break;
        }
    }
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_has_no_memory() -> Result {
    if std::env::var_os("E2E_PEER").is_some() {
        eprintln!("skipped: another server is not ours to disturb");
        return Ok(());
    }
    let mut story = Story::begin().await?;
    let name = format!("{}_agent", story.node.names().cgroup.trim_end_matches(".slice"));
    let Some(squeeze) = Squeeze::make(&name)? else {
        return story.finish().await;
    };
    let mut images = Vec::new();
    for number in 0..4u8 {
        let noise: Vec<u8> = (0..3_000_000).map(|_| fastrand::u8(..)).collect();
        let image = Image::busybox().layer(&[Entry::file("noise", noise)]);
        let pushed = image.push(&story.registry, &format!("noise{number}:1")).await?;
        images.push(pushed.tag);
    }
    let (_, before) = story.sleeper("before").await?;
    let mut known = BTreeSet::new();
    let mut deaths = 0;
    for round in 0..3 {
        squeeze.take(story.node.pid().context("berthd runs")?)?;
        squeeze.limit(6 << 20);
        let mut clients = Vec::new();
        for number in 0..4 {
            let client = story.node.client().await?;
            clients.push(tokio::spawn(load(client, round * 4 + number, images.clone())));
        }
        let begin = Instant::now();
        let mut tighter = 1;
        while story.node.exited()?.is_none() && begin.elapsed() < Duration::from_secs(40) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if begin.elapsed() > Duration::from_secs(5 * tighter) {
                squeeze.limit((6 << 20) >> tighter);
                tighter += 1;
            }
        }
        deaths += usize::from(story.node.exited()?.is_some());
        squeeze.lift()?;
        story.node.kill()?;
        for client in clients {
            known.extend(client.await?);
        }
        story.node.launch().await?;
        story.client = story.node.client().await?;
        let pods = story.client.pods(None).await?;
        let there: BTreeSet<String> = pods.into_iter().map(|pod| pod.id).collect();
        let lost: Vec<_> = known.difference(&there).collect();
        ensure!(lost.is_empty(), "acknowledged, and lost: {lost:?}");
        let status = story.client.status(&before).await?;
        ensure!(
            status.state() == cri::ContainerState::ContainerRunning,
            "{status:?}"
        );
        ensure!(story.client.sh(&before, "echo here").await? == "here");
        for image in &images {
            story.client.pull(image).await?;
        }
        story.sleeper(&format!("after{round}")).await?;
        println!(
            "round {round}: {deaths} deaths, {} pods were acknowledged",
            known.len()
        );
    }
    ensure!(deaths > 0, "the limit was of no effect");
    story.client.remove_everything().await?;
    drop(squeeze);
    story.finish().await
}
