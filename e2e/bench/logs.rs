//! A container that writes 1 GiB of lines as fast as they are taken. The wall time
//! ends when its exit is told; every line must be in the log then.

use std::{
    fs::{self, File},
    io::Read,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use e2e::{Result, cri::ContainerState};

use crate::{
    content::{LINES_FILE, LINES_OF_FILE},
    kubelet::{Kubelet, Network, Running},
    rounds::{Samples, interleaved},
    rows,
    server::Server,
};

/// 16 MiB each.
const TIMES: u64 = 64;

pub async fn measure(servers: &mut [&mut Server], rounds: usize, samples: &mut Samples) -> Result {
    interleaved("logs", servers, rounds, samples, async |server| {
        let kubelet = server.kubelet()?;
        let script = format!("for i in $(seq {TIMES}); do cat {LINES_FILE}; done");
        let command = vec!["sh".into(), "-c".into(), script];
        let (pod, container) = kubelet.create(Network::Host, command).await?;
        rustix::fs::sync();
        server.group.settle().await?;
        let before = server.group.own_cpu()?;
        let begun = Instant::now();
        kubelet.client.start(&container).await?;
        server.group.ensure_apart(&["sh -c", "cat ", "seq ", "/pause"])?;
        let path = exited(&kubelet, &container).await?;
        let wall = begun.elapsed().as_secs_f64();
        server.group.settle().await?;
        let cpu = server.group.own_cpu()?.saturating_sub(before).as_secs_f64();
        let lines = lines_of(&path)?;
        ensure!(
            lines == TIMES * LINES_OF_FILE,
            "{lines} of {} lines are in the log",
            TIMES * LINES_OF_FILE
        );
        fs::remove_file(&path)?;
        kubelet.stop(&Running { pod, container }).await?;
        Ok(vec![(rows::LOGS, wall), (rows::LOGS_CPU, cpu)])
    })
    .await
}

/// The path of the log of a container that ended well.
/// The longer it takes, the less often is asked, for to answer costs CPU time too: a
/// fiftieth of the time is not more than others vary by.
async fn exited(kubelet: &Kubelet, container: &str) -> Result<String> {
    let begun = Instant::now();
    loop {
        let status = kubelet.client.status(container).await?;
        if status.state() == ContainerState::ContainerExited {
            ensure!(status.exit_code == 0, "the writer failed: {status:?}");
            return Ok(status.log_path);
        }
        if begun.elapsed() > Duration::from_secs(300) {
            bail!("the writer has not ended after five minutes");
        }
        tokio::time::sleep(Duration::from_millis(2).max(begun.elapsed() / 50)).await;
    }
}

fn lines_of(path: &str) -> Result<u64> {
    let mut file = File::open(path).with_context(|| format!("open log {path}"))?;
    let mut block = vec![0; 1 << 20];
    let mut lines = 0;
    loop {
        let length = file.read(&mut block)?;
        if length == 0 {
            return Ok(lines);
        }
        let ends = block[..length].iter().filter(|byte| **byte == b'\n');
        lines += ends.count() as u64;
    }
}
