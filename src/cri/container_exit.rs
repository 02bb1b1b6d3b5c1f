//! The end of a container: what the shim recorded becomes the container's status.

use std::{sync::Arc, time::Duration};

use super::{container_events, node::Node};
use crate::{
    pod::{Container, Exit, now},
    proto::{cri::ContainerEventType, plan::ExitRecord},
    runtime::{self, Ended, Shim, read_exit},
    telemetry::metrics::metrics,
};

/// Pause between two tries of recording an exit while the disk is full.
const RETRY: Duration = Duration::from_secs(1);

/// Takes the shim's part of a container: keeps the connection, and records the
/// exit when it comes.
pub fn watch(node: &Arc<Node>, container: &Arc<Container>, shim: Shim) {
    container.set_shim(Some(shim.clone()));
    let (node, container) = (node.clone(), container.clone());
    tokio::spawn(async move {
        let ended = shim.wait().await;
        // Boxed: until then, which may be for years, it takes no memory.
        Box::pin(conclude(&node, &container, ended)).await;
    });
}

/// Records what the shim said of the end, or left.
async fn conclude(node: &Node, container: &Container, ended: Result<Ended, runtime::Error>) {
    let exit = match ended {
        Ok(ended) if ended.told => from_record(&ended.record, &container.record().cgroup),
        Ok(ended) => left(node, container, &ended.record).await,
        Err(error) => vanished(node, container, &error.to_string()).await,
    };
    container.set_shim(None);
    settle(node, container, exit).await;
}

/// Records an exit that was found, also when the disk is full for a while: the
/// shim's own record is on the disk of the state folder, nothing is lost.
pub async fn settle(node: &Node, container: &Container, exit: Exit) {
    let (code, reason) = (exit.code, exit.reason.clone());
    loop {
        match container.record_exit(&node.store, exit.clone()) {
            Ok(true) => {
                tracing::info!(container = %container.id, name = %container.name, code, reason, "container ended");
                container_events::tell(node, container, ContainerEventType::ContainerStoppedEvent);
                return;
            }
            Ok(false) => return,
            Err(error) => {
                tracing::error!(container = %container.id, %error, "record the exit");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// What the shim wrote about the container in the cgroup, with the reason that clients
/// know.
pub fn from_record(record: &ExitRecord, cgroup: &str) -> Exit {
    let reason = if record.oom_killed {
        "OOMKilled"
    } else if record.started_at == 0 && !record.message.is_empty() {
        "StartError"
    } else if record.code == 0 {
        "Completed"
    } else {
        "Error"
    };
    Exit {
        code: record.code,
        reason: reason.to_owned(),
        message: match record.oom_killed {
            true => oom_message(record, cgroup),
            false => record.message.clone(),
        },
        started_at: record.started_at,
        finished_at: record.finished_at,
    }
}

/// Whose want of memory it was: the container's, its pod's or the node's.
fn oom_message(record: &ExitRecord, cgroup: &str) -> String {
    let limit = record.oom_limit;
    match record.oom_cgroup.as_str() {
        "" => "the kernel killed a process of the container, for the node had no memory left".to_owned(),
        own if own == cgroup => {
            format!(
                "the kernel killed a process of the container, at the container's memory limit of {limit} bytes"
            )
        }
        above => format!(
            "the kernel killed a process of the container, at the memory limit of {limit} bytes of its pod or what is \
             above it (cgroup {above})"
        ),
    }
}

/// Records the end of a container whose shim is gone: by what it wrote, if it did.
pub async fn settle_by_traces(node: &Node, container: &Container, why: &str) {
    let exit = match read_exit(&node.paths.bundle(&container.id)) {
        Ok(Some(record)) => left(node, container, &record).await,
        _ => vanished(node, container, why).await,
    };
    container.set_shim(None);
    settle(node, container, exit).await;
}

/// The shim wrote how the container ended and died before it said so: what it had not yet
/// taken away is taken away here.
async fn left(node: &Node, container: &Container, record: &ExitRecord) -> Exit {
    let cgroup = container.record().cgroup;
    if let Err(error) = node.cgroups.remove(&cgroup).await {
        tracing::error!(container = %container.id, %error, "remove what a dead shim left");
    }
    from_record(record, &cgroup)
}

/// The shim died without a word: what it watched over is ended, for nobody reads
/// its output any more.
async fn vanished(node: &Node, container: &Container, why: &str) -> Exit {
    metrics().shims_lost.inc();
    if let Err(error) = node.cgroups.remove(&container.record().cgroup).await {
        tracing::error!(container = %container.id, %error, "end what a dead shim left");
    }
    Exit {
        code: 137,
        reason: "Error".into(),
        message: format!("the shim of the container is gone, so the container was killed: {why}"),
        started_at: container.record().started_at,
        finished_at: now().max(container.record().started_at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons() {
        let record = |code, started_at, oom_killed, message: &str| ExitRecord {
            code,
            started_at,
            finished_at: 9,
            oom_killed,
            message: message.into(),
            ..Default::default()
        };
        for (record, reason) in [
            (record(0, 5, false, ""), "Completed"),
            (record(3, 5, false, ""), "Error"),
            (record(137, 5, true, ""), "OOMKilled"),
            (record(127, 0, false, "exec: no such file"), "StartError"),
        ] {
            assert_eq!(from_record(&record, "/c").reason, reason);
        }
    }

    #[test]
    fn whose_memory_it_was() {
        for (cgroup, words) in [
            ("", "the node had no memory"),
            ("/pod/c", "the container's memory limit of 64 bytes"),
            (
                "/pod",
                "limit of 64 bytes of its pod or what is above it (cgroup /pod)",
            ),
        ] {
            let record = ExitRecord {
                code: 137,
                oom_killed: true,
                oom_cgroup: cgroup.into(),
                oom_limit: 64,
                ..Default::default()
            };
            let exit = from_record(&record, "/pod/c");
            assert_eq!(exit.reason, "OOMKilled");
            assert!(exit.message.contains(words), "{}", exit.message);
        }
    }
}
