//! What nobody asks for: after the start, and then from time to time, the CNI
//! plugins are told which pods there are; after the start they are also asked
//! whether the networks of those that lived on are whole. Images that were found broken
//! and that nobody pulls again go after a while.

use std::{sync::Arc, time::Duration};

use super::node::Node;

/// Runs until berthd ends. Begins after the records are true again.
pub async fn upkeep(node: Arc<Node>) {
    let images = async {
        if let Err(error) = node.images.forget_broken().await {
            tracing::error!(%error, "remove broken images");
        }
    };
    tokio::join!(networks(&node), images);
}

async fn networks(node: &Node) {
    collect(node).await;
    // Only now: as long as berthd runs, nobody has lost sight of a pod.
    if let Err(error) = node.network.check_pods().await {
        tracing::error!(%error, "check the networks of the pods");
    }
    let seconds = node.config.network.cni_gc_interval;
    if seconds == 0 {
        return;
    }
    loop {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        collect(node).await;
    }
}

async fn collect(node: &Node) {
    for error in node.network.collect_garbage().await {
        tracing::warn!(%error, "collect the garbage of CNI networks");
    }
}
