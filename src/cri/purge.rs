//! Takes every pod of the records down: what `berthd purge` begins with.

use std::{sync::Arc, time::Duration};

use super::{container_stop, node::Node, sandbox_remove};
use crate::proto::cri::StopContainerRequest;

/// Stops containers with their stop signal and, after `grace`, by force; then
/// removes all pods, side by side. Gives what could not be taken down, which stays
/// recorded. [`super::recover`] has been there before.
pub async fn purge(node: &Arc<Node>, grace: Duration) -> Vec<String> {
    let mut stops = tokio::task::JoinSet::new();
    for container in node.pods.containers() {
        let node = node.clone();
        let request = StopContainerRequest {
            container_id: container.id.clone(),
            timeout: i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
        };
        stops.spawn(async move { container_stop::stop(&node, request, None).await });
    }
    while let Some(stopped) = stops.join_next().await {
        // Whoever does not stop is told by the removal.
        if let Ok(Err(error)) = stopped {
            tracing::warn!(%error, "stop");
        }
    }
    let mut removals = tokio::task::JoinSet::new();
    for sandbox in node.pods.sandboxes() {
        let node = node.clone();
        removals.spawn(async move {
            let _gate = sandbox.gate.write().await;
            sandbox_remove::erase(&node, &sandbox).await
        });
    }
    let mut left = Vec::new();
    while let Some(removed) = removals.join_next().await {
        match removed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => left.push(error.to_string()),
            Err(error) => left.push(error.to_string()),
        }
    }
    // Those of sandboxes that no record knows any more.
    let nobody = std::collections::BTreeSet::new();
    if left.is_empty() {
        left.extend(node.network.sweep(&nobody).await.iter().map(ToString::to_string));
    }
    left
}
