//! A node with 60 pods that rest: memory, statistics, and the agent killed and
//! started again.

use std::time::{Duration, Instant};

use anyhow::ensure;
use e2e::{Result, kernel};

use crate::{
    accounting::Kind,
    burst::AT_ONCE,
    kubelet::{WORKLOAD, millis, timed},
    rounds::{Figures, Samples, interleaved},
    rows,
    server::Server,
};

const PODS: usize = 60;
/// Calls of ListContainerStats in one round.
const CALLS: usize = 10;

/// Between the last start and the look at the memory: what a server needs to work, and
/// gives back, is not what 60 pods take.
const REST: Duration = Duration::from_secs(5);

/// What is wanted of it.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    pub memory: bool,
    pub stats: bool,
    pub restart: bool,
}

impl Parts {
    pub fn any(self) -> bool {
        self.memory || self.stats || self.restart
    }
}

pub async fn measure(
    servers: &mut [&mut Server],
    parts: Parts,
    rounds: usize,
    samples: &mut Samples,
) -> Result {
    interleaved(
        "memory, stats, restart",
        servers,
        rounds,
        samples,
        async |server| {
            let mut figures = Figures::new();
            // Fresh, so that what came before is not in its memory.
            server.kill()?;
            server.launch().await?;
            server.group.settle().await?;
            figures.push((
                rows::AGENT_IDLE,
                mebibytes(kernel::anonymous_memory(server.pid()?)?),
            ));
            let kubelet = server.kubelet()?;
            let pods = kubelet.start_many(PODS, AT_ONCE).await?;
            server.group.settle().await?;
            tokio::time::sleep(REST).await;
            figures.extend(memory(server)?);
            if !parts.memory {
                figures.clear();
            }
            if parts.stats {
                for _ in 0..CALLS {
                    let (time, stats) = timed(kubelet.stats()).await?;
                    ensure!(stats.len() == PODS, "statistics of {} containers", stats.len());
                    figures.push((rows::STATS, time));
                }
            }
            if parts.restart {
                let time = restart(server, PODS).await?;
                figures.push((rows::RESTART, time / 1000.0));
            }
            server.kubelet()?.stop_many(pods, AT_ONCE).await?;
            Ok(figures)
        },
    )
    .await
}

fn memory(server: &Server) -> Result<Figures> {
    let agent = server.pid()?;
    let by_kind = server.group.memory(agent, WORKLOAD)?;
    let overhead = by_kind.get(&Kind::Overhead).copied().unwrap_or_default();
    Ok(vec![
        (rows::POD_MEMORY, mebibytes(overhead) / PODS as f64),
        (rows::AGENT_LOADED, mebibytes(kernel::anonymous_memory(agent)?)),
    ])
}

/// Kills the agent and starts it; milliseconds until it tells that all pods run.
pub async fn restart(server: &mut Server, pods: usize) -> Result<f64> {
    server.kill()?;
    let begun = Instant::now();
    server.spawn()?;
    let all_run = async |server: &mut Server| -> Result<bool> {
        server.connect().await?;
        server.kubelet()?.all_run(pods).await
    };
    while !all_run(server).await.unwrap_or(false) {
        server.ensure_alive()?;
        ensure!(
            begun.elapsed() < Duration::from_secs(120),
            "{} does not tell of its {pods} pods after its restart",
            server.name()
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let time = millis(begun.elapsed());
    // What it tells is true: a container of before can still be used.
    let kubelet = server.kubelet()?;
    let containers = kubelet.client.containers(None).await?;
    if let Some(container) = containers.last() {
        let output = kubelet.client.exec(&container.id, &["true"]).await?;
        ensure!(output.code == 0, "true failed after the restart: {output:?}");
    }
    Ok(time)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
