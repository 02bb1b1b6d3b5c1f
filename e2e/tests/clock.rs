//! The wall clock jumps, an hour ahead and two back. Nothing that lives ends or waits for
//! that, and of two attempts at a pod the later one is the later one.
//!
//! Only where the clock is nobody else's: in the machine with `E2E_SET_CLOCK`.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use e2e::{Client, Result, Story, client::log_lines, cri};
use rustix::time::{ClockId, Timespec, clock_settime};

const HOUR: i64 = 3600;
const SECOND: i64 = 1_000_000_000;

/// Puts the clock right when it is dropped.
struct Jumps(i64);

impl Jumps {
    fn jump(&mut self, seconds: i64) -> Result {
        let at = wall() + seconds * SECOND;
        let time = Timespec {
            tv_sec: at / SECOND,
            tv_nsec: at % SECOND,
        };
        clock_settime(ClockId::Realtime, time)?;
        self.0 += seconds;
        Ok(())
    }
}

impl Drop for Jumps {
    fn drop(&mut self) {
        let _ = self.jump(-self.0);
    }
}

fn wall() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// Grace periods and time-outs take what they should, at the clock that does not jump.
async fn lengths(client: &Client, id: &str, stubborn: &str) -> Result {
    let begin = Instant::now();
    client.stop(stubborn, 2).await?;
    let took = begin.elapsed();
    ensure!(
        took >= Duration::from_millis(1900),
        "the grace period was cut: {took:?}"
    );
    ensure!(took < Duration::from_secs(30), "{took:?}");
    let begin = Instant::now();
    let late = client.exec_within(id, &["sleep", "100"], 1).await;
    ensure!(
        late.is_err_and(|error| error.code() == tonic::Code::DeadlineExceeded),
        "an exec outlives its time-out"
    );
    ensure!(begin.elapsed() < Duration::from_secs(30));
    Ok(())
}

async fn nano_cores(client: &Client, id: &str) -> Result<u64> {
    let request = cri::ContainerStatsRequest {
        container_id: id.into(),
    };
    let answer = client.runtime.clone().container_stats(request).await?;
    let cpu = answer.into_inner().stats.and_then(|stats| stats.cpu);
    let rate = cpu.and_then(|cpu| cpu.usage_nano_cores);
    Ok(rate.context("no rate")?.value)
}

#[tokio::test]
async fn the_clock_jumps() -> Result {
    if std::env::var_os("E2E_SET_CLOCK").is_none() {
        eprintln!("skipped: the clock of this machine is not ours to set (E2E_SET_CLOCK)");
        return Ok(());
    }
    let story = Story::begin().await?;
    let client = &story.client;
    let mut clock = Jumps(0);
    let (pod, id) = story.sleeper("lives").await?;
    let counts = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.1; done";
    let counter = client.run(&pod, story.script("counter", counts)).await?;
    let burner = client
        .run(&pod, story.script("burner", "while true; do true; done"))
        .await?;
    let trap = "trap '' TERM; while true; do sleep 1; done";
    for (at, jump) in [HOUR, -2 * HOUR].into_iter().enumerate() {
        let stubborn = client
            .run(&pod, story.script(&format!("stubborn{at}"), trap))
            .await?;
        nano_cores(client, &burner).await?;
        clock.jump(jump)?;
        lengths(client, &id, &stubborn).await?;
        let status = client.status(&stubborn).await?;
        ensure!(status.exit_code == 137, "{status:?}");
        ensure!(
            status.started_at <= status.finished_at,
            "it ended before it began: {status:?}"
        );
        let status = client.status(&id).await?;
        ensure!(
            status.state() == cri::ContainerState::ContainerRunning,
            "{status:?}"
        );
        ensure!(client.sh(&id, "echo here").await? == "here");
        // Against the call before the jump: over an hour it would be a thousandth of that.
        let rate = nano_cores(client, &burner).await?;
        ensure!(
            (20_000_000..4_000_000_000).contains(&rate),
            "it uses {rate} ns of CPU a second"
        );
    }

    // An hour before the others were made: what is made now is still the later one.
    ensure!(wall() < client.pod_status(&pod.id).await?.created_at);
    client.stop_pod(&pod.id).await?;
    let mut config = pod.config.clone();
    config.metadata.get_or_insert_default().attempt = 1;
    let again = client.run_pod_with(config).await?;
    let (old, new) = (
        client.pod_status(&pod.id).await?,
        client.pod_status(&again.id).await?,
    );
    ensure!(new.created_at > old.created_at, "{old:?} {new:?}");
    let newest = client.pods(None).await?;
    ensure!(newest[0].id == again.id, "{newest:?}");
    let id_again = client
        .run(&again, story.script("lives", "exec sleep 1000"))
        .await?;
    let (old, new) = (client.status(&id).await?, client.status(&id_again).await?);
    ensure!(new.created_at > old.created_at, "{old:?} {new:?}");

    let lines = log_lines(&client.status(&counter).await?.log_path)?;
    let numbers = lines.iter().map(|line| line.content.parse::<usize>().ok());
    ensure!(lines.len() > 20, "{} lines", lines.len());
    ensure!(
        numbers.enumerate().all(|(at, number)| number == Some(at)),
        "a line is lost or there twice"
    );
    drop(clock);
    story.finish().await
}
