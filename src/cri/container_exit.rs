//! The end of a container: what the shim recorded becomes the container's status.

use std::{sync::Arc, time::Duration};

use super::{container_events, node::Node};
use crate::{
    pod::{Container, Exit, now},
    proto::{cri::ContainerEventType, plan::ExitRecord},
    runtime::Shim,
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
        let exit = match shim.wait().await {
            Ok(record) => from_record(&record),
            Err(error) => vanished(&node, &container, &error.to_string()).await,
        };
        container.set_shim(None);
        settle(&node, &container, exit).await;
    });
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

/// What the shim wrote, with the reason that clients know.
pub fn from_record(record: &ExitRecord) -> Exit {
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
        message: record.message.clone(),
        started_at: record.started_at,
        finished_at: record.finished_at,
    }
}

/// The shim died without a word: what it watched over is ended, for nobody reads
/// its output any more.
pub async fn vanished(node: &Node, container: &Container, why: &str) -> Exit {
    metrics().shims_lost.inc();
    if let Err(error) = node.cgroups.remove(&container.record().cgroup).await {
        tracing::error!(container = %container.id, %error, "end what a dead shim left");
    }
    Exit {
        code: 137,
        reason: "Error".into(),
        message: format!("the shim of the container is gone, so the container was killed: {why}"),
        started_at: container.record().started_at,
        finished_at: now(),
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
        };
        for (record, reason) in [
            (record(0, 5, false, ""), "Completed"),
            (record(3, 5, false, ""), "Error"),
            (record(137, 5, true, ""), "OOMKilled"),
            (record(127, 0, false, "exec: no such file"), "StartError"),
        ] {
            assert_eq!(from_record(&record).reason, reason);
        }
    }
}
