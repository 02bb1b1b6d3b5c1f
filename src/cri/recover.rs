//! The start of berthd: the truth is restored from the records, the shims that
//! live, and the files that shims left.
//!
//! Shims are asked side by side, so one that hangs delays nobody else.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use super::{
    container_events, container_exit, container_remove, node::Node, sandbox_init, sandbox_remove,
    sandbox_stop,
};
use crate::{
    failpoint,
    image::remove_all,
    network::netns,
    pod::{Container, ContainerEvent, ContainerState, Error, Sandbox, SandboxState},
    proto::{containerd::v1::types::Status, cri::ContainerEventType, task},
    runtime::{self, Shim},
    telemetry::metrics::metrics,
};

/// How long shims may take to say how their containers are, before the others are served.
const PATIENCE: Duration = Duration::from_secs(1);

/// Loads the records, connects to what lives, and takes back what was half made.
pub async fn recover(node: &Arc<Node>) -> Result<(), Error> {
    metrics().recoveries.inc_by(node.store.count_start()?);
    for row in node.store.sandboxes()? {
        node.pods.add_sandbox(Arc::new(Sandbox::from_row(row)?));
    }
    for row in node.store.containers()? {
        node.pods.add_container(Arc::new(Container::from_row(row)?));
    }
    failpoint::reach("recover: shims");
    let mut tasks = tokio::task::JoinSet::new();
    for sandbox in node.pods.sandboxes() {
        let node = node.clone();
        tasks.spawn(async move { sandbox_init::recover(&node, &sandbox).await });
    }
    for container in node.pods.containers() {
        let node = node.clone();
        tasks.spawn(async move { resume(&node, &container).await });
    }
    let asked = async {
        while let Some(done) = tasks.join_next().await {
            if let Err(error) = done {
                tracing::error!(%error, "recover");
            }
        }
    };
    if tokio::time::timeout(PATIENCE, asked).await.is_err() {
        // What the records say of their containers holds until then.
        tracing::warn!(
            shims = tasks.len(),
            "these do not answer yet, and are waited for in the background"
        );
        tasks.detach_all();
    }
    failpoint::reach("recover: network");
    let known: BTreeSet<String> = node.pods.sandboxes().iter().map(|s| s.id.clone()).collect();
    for error in node.network.sweep(&known).await {
        tracing::error!(%error, "sweep the network");
    }
    if let Err(error) = node.network.recover().await {
        tracing::error!(%error, "bring the network back");
    }
    failpoint::reach("recover: finish");
    finish(node).await;
    failpoint::reach("recover: retire");
    retire(node).await;
    failpoint::reach("recover: sweep");
    sweep(node);
    Ok(())
}

/// One container: what its shim says, or what its shim left.
async fn resume(node: &Arc<Node>, container: &Arc<Container>) {
    let state = container.state();
    if !matches!(state, ContainerState::Created | ContainerState::Running) {
        return;
    }
    let bundle = node.paths.bundle(&container.id);
    // Whoever wants to change the container waits until it is known again.
    let _gate = container.gate.lock().await;
    match ask(&container.id, &bundle).await {
        Ok((shim, answer)) => {
            // It started while nobody could record it.
            if state == ContainerState::Created
                && matches!(answer.status(), Status::Running | Status::Stopped)
            {
                let started = container.advance(&node.store, ContainerEvent::Started, |record| {
                    record.pid = answer.pid;
                    record.started_at = crate::pod::now();
                });
                match started {
                    Ok(()) => {
                        container_events::tell(node, container, ContainerEventType::ContainerStartedEvent);
                    }
                    Err(error) => tracing::error!(container = %container.id, %error, "record the start"),
                }
            }
            container_exit::watch(node, container, shim);
        }
        Err(error) => {
            container_exit::settle_by_traces(node, container, &error.to_string()).await;
        }
    }
}

/// The shim and what it says. One that hangs is asked again until it goes on or is killed.
pub async fn ask(id: &str, bundle: &Path) -> Result<(Shim, task::StateResponse), runtime::Error> {
    let shim = Shim::connect(id, bundle).await?;
    loop {
        match shim.state().await {
            Ok(answer) => return Ok((shim, answer)),
            Err(runtime::Error::Slow { .. }) => {
                tracing::error!(container = %id, "its shim does not answer: `berth stop` or a removal of the container ends it");
            }
            Err(error) => return Err(error),
        }
    }
}

/// Takes back what was half made, and finishes what was half removed.
async fn finish(node: &Arc<Node>) {
    for container in node.pods.containers() {
        if matches!(
            container.state(),
            ContainerState::Making | ContainerState::Removing
        ) {
            if let Ok(shim) = Shim::connect(&container.id, &node.paths.bundle(&container.id)).await {
                let _ = shim.delete_within(PATIENCE).await;
            }
            if let Err(error) = container_remove::erase(node, &container).await {
                tracing::error!(container = %container.id, %error, "finish the removal");
            }
        }
    }
    for sandbox in node.pods.sandboxes() {
        if matches!(sandbox.state(), SandboxState::Making | SandboxState::Removing)
            && let Err(error) = sandbox_remove::erase(node, &sandbox).await
        {
            tracing::error!(sandbox = %sandbox.id, %error, "finish the removal");
        }
    }
}

/// After a reboot the namespaces of a ready sandbox are gone, and it is none: it is
/// stopped, so that the kubelet makes the pod anew.
async fn retire(node: &Arc<Node>) {
    for sandbox in node.pods.sandboxes() {
        let pinned = node.paths.namespaces(&sandbox.id);
        let whole = sandbox
            .record()
            .namespaces
            .iter()
            .all(|name| netns::is_namespace(&pinned.join(name)));
        if sandbox.state() != SandboxState::Ready || whole {
            continue;
        }
        tracing::warn!(sandbox = %sandbox.id, "its namespaces are gone, as after a reboot: it is stopped");
        let _gate = sandbox.gate.write().await;
        if let Err(error) = sandbox_stop::halt(node, &sandbox).await {
            tracing::error!(sandbox = %sandbox.id, %error, "stop a sandbox without namespaces");
        }
    }
}

/// Removes folders and uses of layers that belong to nobody.
fn sweep(node: &Node) {
    let known: BTreeSet<String> = node
        .pods
        .containers()
        .iter()
        .map(|c| c.id.clone())
        .chain(node.pods.sandboxes().iter().map(|s| s.id.clone()))
        .collect();
    let folders = [
        node.paths.state.join("sandboxes"),
        node.paths.state.join("containers"),
        node.paths.root.join("containers"),
    ];
    for folder in folders {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            if known.contains(&*entry.file_name().to_string_lossy()) {
                continue;
            }
            if let Err(error) = remove_all(&entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "remove a folder of nobody");
            }
        }
    }
    for user in node.images.users().unwrap_or_default() {
        if !known.contains(&user)
            && let Err(error) = node.images.release_layers(&user)
        {
            tracing::warn!(container = user, %error, "release the layers of nobody");
        }
    }
}
