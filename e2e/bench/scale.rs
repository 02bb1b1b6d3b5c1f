//! What a pod costs when 10, 100 or 500 are there. One server after the other is
//! filled, so that there are never more than that many on the machine.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::Result;

use crate::{
    burst::AT_ONCE,
    kubelet::{Kubelet, Network, millis, timed},
    loaded::restart,
    rounds::{Figures, Samples},
    rows,
    server::Server,
};

const COUNTS: [usize; 3] = [10, 100, 500];
/// Peers take minutes for more.
const MOST_OF_PEERS: usize = 100;
/// Pods that are started, and stopped, one after the other at each count.
const SINGLE: usize = 10;
/// Calls of lists and statistics.
const CALLS: usize = 20;

pub async fn measure(servers: &mut [&mut Server], most: usize, samples: &mut Samples) -> Result {
    for server in servers.iter_mut() {
        let limit = if server.is_peer() {
            MOST_OF_PEERS.min(most)
        } else {
            most
        };
        for count in COUNTS.into_iter().filter(|count| *count <= limit) {
            let figures = at(server, count)
                .await
                .with_context(|| format!("scale, {count} pods, {}", server.name()))?;
            samples.add(&server.column, figures);
            eprintln!("scale: {count} pods of {}", server.name());
        }
    }
    Ok(())
}

async fn at(server: &mut Server, count: usize) -> Result<Figures> {
    let mut figures = Figures::new();
    let kubelet = server.kubelet()?;
    let mut pods = kubelet.start_many(count - SINGLE, AT_ONCE).await?;
    server.group.settle().await?;
    let before = server.group.cpu()?;
    for _ in 0..SINGLE {
        let (time, running) = timed(kubelet.start(Network::Own)).await?;
        figures.push((rows::ONE_MORE.at(count), time));
        pods.push(running);
    }
    let cpu = used_since(server, before).await?;
    figures.push((rows::ONE_MORE_CPU.at(count), millis(cpu) / SINGLE as f64));
    figures.extend(questions(&kubelet, count).await?);
    let time = restart(server, count).await?;
    figures.push((rows::RESTART_EACH.at(count), time / count as f64));
    server.group.settle().await?;

    let kubelet = server.kubelet()?;
    let before = server.group.cpu()?;
    for running in pods.drain(count - SINGLE..) {
        let (time, ()) = timed(kubelet.stop(&running)).await?;
        figures.push((rows::ONE_LESS.at(count), time));
    }
    let cpu = used_since(server, before).await?;
    figures.push((rows::ONE_LESS_CPU.at(count), millis(cpu) / SINGLE as f64));
    kubelet.stop_many(pods, AT_ONCE).await?;
    server.group.settle().await?;
    Ok(figures)
}

async fn used_since(server: &Server, before: Duration) -> Result<Duration> {
    server.group.settle().await?;
    Ok(server.group.cpu()?.saturating_sub(before))
}

/// Microseconds per pod.
async fn questions(kubelet: &Kubelet, count: usize) -> Result<Figures> {
    let mut figures = Figures::new();
    let each = |time: f64| time * 1000.0 / count as f64;
    for _ in 0..CALLS {
        let (time, all) = timed(kubelet.all_run(count)).await?;
        ensure!(all, "not all of {count} pods run");
        figures.push((rows::LIST_EACH.at(count), each(time)));
        let (time, stats) = timed(kubelet.stats()).await?;
        ensure!(stats.len() == count, "statistics of {} containers", stats.len());
        figures.push((rows::STATS_EACH.at(count), each(time)));
    }
    Ok(figures)
}
