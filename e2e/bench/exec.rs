//! ExecSync of a program that does nothing, as probes are.

use anyhow::ensure;
use e2e::Result;

use crate::{
    kubelet::{Network, Running, millis, timed},
    rounds::{Samples, interleaved},
    rows,
    server::Server,
};

/// Runs in one round.
const BATCH: u32 = 20;

pub async fn measure(servers: &mut [&mut Server], rounds: usize, samples: &mut Samples) -> Result {
    let mut pods: Vec<(String, Running)> = Vec::new();
    for server in servers.iter_mut() {
        let running = server.kubelet()?.start(Network::Own).await?;
        pods.push((server.name().to_owned(), running));
    }
    let of = |server: &Server| pods.iter().find(|(name, _)| name == server.name());
    interleaved("exec", servers, rounds, samples, async |server| {
        let kubelet = server.kubelet()?;
        let mut figures = Vec::new();
        let Some((_, running)) = of(server) else {
            return Ok(figures);
        };
        server.group.settle().await?;
        let before = server.group.cpu()?;
        for _ in 0..BATCH {
            let work = async { Ok(kubelet.client.exec(&running.container, &["true"]).await?) };
            let (time, output) = timed(work).await?;
            ensure!(output.code == 0, "true failed: {output:?}");
            figures.push((rows::EXEC, time));
        }
        server.group.settle().await?;
        let cpu = server.group.cpu()?.saturating_sub(before);
        figures.push((rows::EXEC_CPU, millis(cpu) / f64::from(BATCH)));
        Ok(figures)
    })
    .await?;
    for server in servers.iter_mut() {
        if let Some((_, running)) = of(server) {
            server.kubelet()?.stop(running).await?;
        }
    }
    Ok(())
}
