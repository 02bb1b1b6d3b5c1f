//! `soak`: thousands of pods made and removed and of commands executed, and what berthd
//! and the kernel have at the end compared with the start. The exit code says whether
//! anything has grown.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, ensure};
use clap::Parser;
use e2e::{Client, Node, Result, Story, kernel};
use tokio::task::JoinSet;

#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long, default_value_t = 5000)]
    pods: usize,
    #[arg(long, default_value_t = 20_000)]
    execs: usize,
    /// Pods, and commands, at a time.
    #[arg(long, default_value_t = 8)]
    at_a_time: usize,
}

/// What a berthd has.
#[derive(Clone, Copy, Debug)]
struct Has {
    anonymous_kib: u64,
    descriptors: usize,
    threads: usize,
}

impl Has {
    fn look(node: &Node) -> Result<Has> {
        let pid = node.pid().context("berthd runs")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let number = |key: &str| -> Result<u64> {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .context("no such line")?;
            Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
        };
        Ok(Has {
            anonymous_kib: number("RssAnon:")?,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: usize::try_from(number("Threads:")?)?,
        })
    }
}

#[tokio::main]
async fn main() -> Result {
    let arguments = Arguments::parse();
    let story = Story::begin_with("[log]\nlevel = \"warn\"\n").await?;
    let client = &story.client;
    // The first ones fill caches and pools.
    pods(
        client,
        &story.image.tag,
        arguments.pods.min(200),
        arguments.at_a_time,
    )
    .await?;
    let (_, sleeper) = story.sleeper("execs").await?;
    execs(client, &sleeper, arguments.execs.min(500), arguments.at_a_time).await?;
    let before = kernel::Snapshot::take(story.node.names())?;
    let start = Has::look(&story.node)?;
    println!("start: {start:?}");

    let begin = Instant::now();
    pods(client, &story.image.tag, arguments.pods, arguments.at_a_time).await?;
    println!(
        "{} pods in {:.1?}: {:?}",
        arguments.pods,
        begin.elapsed(),
        Has::look(&story.node)?
    );
    let begin = Instant::now();
    execs(client, &sleeper, arguments.execs, arguments.at_a_time).await?;
    println!(
        "{} execs in {:.1?}: {:?}",
        arguments.execs,
        begin.elapsed(),
        Has::look(&story.node)?
    );

    tokio::time::sleep(std::time::Duration::from_secs(15)).await;
    let end = Has::look(&story.node)?;
    println!("end: {end:?}");
    let left = kernel::Snapshot::take(story.node.names())?.since(&before);
    // The sleeper's own program, or a child of it, is not the same all the time.
    let left: Vec<_> = left.iter().filter(|line| !line.starts_with("process ")).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(end.descriptors <= start.descriptors + 8, "descriptors have grown");
    ensure!(end.threads <= start.threads + 4, "threads have grown");
    ensure!(
        end.anonymous_kib <= start.anonymous_kib * 5 / 4 + 2048,
        "memory has grown"
    );
    story.finish().await?;
    println!("nothing has grown, nothing is left");
    Ok(())
}

/// Makes and removes so many pods with a container each.
async fn pods(client: &Client, image: &str, count: usize, at_a_time: usize) -> Result {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..at_a_time {
        let (client, image, next) = (client.clone(), image.to_owned(), next.clone());
        tasks.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let pod = client.run_pod("soak").await?;
                let config = client.script("c", &image, "echo here; exec sleep 1000");
                let id = client.run(&pod, config).await?;
                client.stop(&id, 0).await?;
                client.remove(&id).await?;
                client.stop_pod(&pod.id).await?;
                client.remove_pod(&pod.id).await?;
                fs::remove_dir_all(&pod.config.log_directory)?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn execs(client: &Client, id: &str, count: usize, at_a_time: usize) -> Result {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..at_a_time {
        let (client, id, next) = (client.clone(), id.to_owned(), next.clone());
        tasks.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let output = client.exec(&id, &["true"]).await?;
                ensure!(output.code == 0, "{output:?}");
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}
