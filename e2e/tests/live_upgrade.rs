//! berthd is replaced while it is used: no call fails, the process stays the same, and
//! what ran runs on.

use std::{
    error::Error as _,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Client, Result, Story, cri};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Status;

const UPGRADES: usize = 5;

/// Makes a call, and again when its connection was closed before the call was sent: other
/// clients of gRPC do that by themselves (its "transparent retry"), tonic leaves it to us.
/// Whatever reached berthd must be answered.
async fn sent<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    loop {
        match call().await {
            Err(status) if was_not_sent(&status) => {}
            answer => return answer,
        }
    }
}

/// Never written to the connection, or written behind the last call that its GOAWAY says
/// was looked at (RFC 9113, 6.8): h2 tells no other call of the GOAWAY.
fn was_not_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.downcast_ref().is_some_and(hyper::Error::is_canceled)
            || error.downcast_ref().is_some_and(is_behind_goaway)
        {
            return true;
        }
        source = error.source();
    }
    false
}

fn is_behind_goaway(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

/// What one client goes on doing.
#[derive(Clone, Copy, Debug)]
enum Doing {
    Look,
    Execute,
    Pods,
}

/// Calls until it is told to stop, and counts what was answered. The first error ends it.
async fn call(client: Client, doing: Doing, sleeper: String, image: String, meter: Arc<Meter>) -> Result {
    while !meter.stop.load(Ordering::Relaxed) {
        match doing {
            Doing::Look => {
                sent(|| client.containers(None)).await?;
                sent(|| client.status(&sleeper)).await?;
            }
            Doing::Execute => {
                let command = ["sh", "-c", "sleep 0.02; echo here"];
                let output = sent(|| client.exec(&sleeper, &command)).await?;
                ensure!(output.stdout == "here\n", "{output:?}");
            }
            Doing::Pods => {
                let config = client.pod_config("short");
                let pod = sent(|| client.run_pod_with(config.clone())).await?;
                let config = client.script("c", &image, "exec sleep 1000");
                let id = sent(|| client.create(&pod, config.clone())).await?;
                sent(|| client.start(&id)).await?;
                sent(|| client.stop(&id, 0)).await?;
                sent(|| client.stop_pod(&pod.id)).await?;
                sent(|| client.remove_pod(&pod.id)).await?;
            }
        }
        meter.answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Meter {
    stop: AtomicBool,
    answered: AtomicUsize,
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_fails() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server is not ours to upgrade");
        return Ok(());
    }
    let (_, sleeper) = story.sleeper("sleeper").await?;
    let pid = story.node.pid().context("berthd runs")?;
    let raw = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("its pid")?;
    let meter = Arc::new(Meter::default());
    let mut tasks = Vec::new();
    for doing in [Doing::Look, Doing::Execute, Doing::Pods, Doing::Pods] {
        let client = story.node.client().await?;
        let (sleeper, image) = (sleeper.clone(), story.image.tag.clone());
        tasks.push(tokio::spawn(call(client, doing, sleeper, image, meter.clone())));
    }
    for upgrade in 1..=UPGRADES {
        tokio::time::sleep(Duration::from_millis(300)).await;
        kill_process(raw, Signal::USR2)?;
        let deadline = Instant::now() + Duration::from_secs(90);
        while story.node.log().matches("took over from").count() < upgrade {
            ensure!(
                Instant::now() < deadline,
                "no berthd took over:\n{}",
                story.node.log_end()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // It serves: calls go on.
        let before = meter.answered.load(Ordering::Relaxed);
        while meter.answered.load(Ordering::Relaxed) < before + 8 {
            ensure!(
                Instant::now() < deadline,
                "nobody is served:\n{}",
                story.node.log_end()
            );
            if let Some(at) = tasks.iter().position(tokio::task::JoinHandle::is_finished) {
                tasks.swap_remove(at).await?.context("a call failed")?;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    meter.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    println!(
        "{} rounds of calls over {UPGRADES} upgrades",
        meter.answered.load(Ordering::Relaxed)
    );
    assert_eq!(story.node.pid(), Some(pid));
    assert_eq!(
        story.client.status(&sleeper).await?.state(),
        cri::ContainerState::ContainerRunning
    );
    // Shims that ended are nobody's zombies.
    story.client.stop(&sleeper, 0).await?;
    let children = format!("/proc/{pid}/task/{pid}/children");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fs::read_to_string(&children)?.trim().is_empty() {
        ensure!(
            Instant::now() < deadline,
            "children are left: {}",
            fs::read_to_string(&children)?
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    story.finish().await
}
