//! Many pods at once.

use e2e::Result;

use crate::{
    kubelet::timed,
    rounds::{Samples, interleaved},
    rows,
    server::Server,
};

const PODS: usize = 50;
/// As many as a node with few cores has workers for.
pub const AT_ONCE: usize = 8;

pub async fn measure(servers: &mut [&mut Server], rounds: usize, samples: &mut Samples) -> Result {
    interleaved("burst", servers, rounds, samples, async |server| {
        let kubelet = server.kubelet()?;
        server.group.settle().await?;
        let (time, pods) = timed(kubelet.start_many(PODS, AT_ONCE)).await?;
        kubelet.stop_many(pods, AT_ONCE).await?;
        let rate = PODS as f64 / (time / 1000.0);
        let rows = server.rows(rows::BURST, rows::BURST_CHAIN);
        Ok(rows.into_iter().map(|row| (row, rate)).collect())
    })
    .await
}
