//! Start, and stop and remove, of pods one after the other, and their CPU time.

use e2e::Result;

use crate::{
    kubelet::{Network, millis, timed},
    rounds::{Figures, Samples, interleaved},
    rows::{self, Row},
    server::Server,
};

/// Pods of one round: a figure of CPU time is the mean of so many.
const BATCH: usize = 5;

/// Times of single pods, and the CPU time of each on average.
struct Batch {
    start: Vec<f64>,
    stop: Vec<f64>,
    start_cpu: f64,
    stop_cpu: f64,
}

async fn batch(server: &mut Server, network: Network) -> Result<Batch> {
    let kubelet = server.kubelet()?;
    let group = &server.group;
    group.settle().await?;
    let (mut start, mut stop) = (Vec::new(), Vec::new());
    let mut pods = Vec::new();
    let before = group.cpu()?;
    for _ in 0..BATCH {
        let (time, running) = timed(kubelet.start(network)).await?;
        start.push(time);
        pods.push(running);
    }
    group.settle().await?;
    let between = group.cpu()?;
    for running in &pods {
        stop.push(timed(kubelet.stop(running)).await?.0);
    }
    group.settle().await?;
    let after = group.cpu()?;
    let each = |from, to: std::time::Duration| millis(to.saturating_sub(from)) / BATCH as f64;
    Ok(Batch {
        start,
        stop,
        start_cpu: each(before, between),
        stop_cpu: each(between, after),
    })
}

fn under(rows: &[Row], values: &[f64]) -> Figures {
    let pairs = rows
        .iter()
        .flat_map(|row| values.iter().map(|value| (*row, *value)));
    pairs.collect()
}

pub async fn own_network(servers: &mut [&mut Server], rounds: usize, samples: &mut Samples) -> Result {
    interleaved("pods", servers, rounds, samples, async |server| {
        let batch = batch(server, Network::Own).await?;
        let mut figures = under(&server.rows(rows::START, rows::START_CHAIN), &batch.start);
        figures.extend(under(&server.rows(rows::STOP, rows::STOP_CHAIN), &batch.stop));
        let cpu = server.rows(rows::START_CPU, rows::START_CPU_CHAIN);
        figures.extend(under(&cpu, &[batch.start_cpu]));
        let cpu = server.rows(rows::STOP_CPU, rows::STOP_CPU_CHAIN);
        figures.extend(under(&cpu, &[batch.stop_cpu]));
        Ok(figures)
    })
    .await
}

/// Without a network to be made the two Berths are the same, and one is asked.
pub async fn host_network(servers: &mut [&mut Server], rounds: usize, samples: &mut Samples) -> Result {
    interleaved("host", servers, rounds, samples, async |server| {
        if server.is_variant() {
            return Ok(Figures::new());
        }
        let batch = batch(server, Network::Host).await?;
        let mut figures = under(&[rows::START_HOST], &batch.start);
        figures.extend(under(&[rows::STOP_HOST], &batch.stop));
        Ok(figures)
    })
    .await
}
