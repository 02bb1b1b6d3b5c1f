//! RemovePodSandbox: stops what runs, removes the containers, then everything
//! that is left of the sandbox.

use std::{sync::Arc, time::Duration};

use super::{
    cgroup_parents,
    container_events::Farewell,
    container_remove,
    error::{Error, io},
    node::Node,
    sandbox_stop,
};
use crate::{
    failpoint,
    image::remove_all,
    pod::{self, Sandbox, SandboxEvent, SandboxState},
    proto::cri,
};

pub async fn remove(
    node: &Arc<Node>,
    request: cri::RemovePodSandboxRequest,
    limit: Option<Duration>,
) -> Result<cri::RemovePodSandboxResponse, Error> {
    let sandbox = match node.pods.sandbox(&request.pod_sandbox_id) {
        Ok(sandbox) => sandbox,
        Err(pod::Error::NotFound { .. }) => return Ok(cri::RemovePodSandboxResponse {}),
        Err(e) => return Err(e.into()),
    };
    let at = node.clone();
    let key = format!("remove sandbox {}", sandbox.id);
    node.operate(key, limit, move |stage| async move {
        stage.set("wait for containers that are being created");
        let _gate = sandbox.gate.write().await;
        // Who waited for the gate may find the work done.
        if at.pods.sandbox(&sandbox.id).is_err() {
            return Ok(String::new());
        }
        stage.set("stop and remove");
        erase(&at, &sandbox).await?;
        Ok(String::new())
    })
    .await?;
    Ok(cri::RemovePodSandboxResponse {})
}

/// Takes everything of a sandbox away, whatever its state. The caller holds its
/// gate, or is the only one who knows it.
pub async fn erase(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    match sandbox.state() {
        // Half made, or half removed before berthd died.
        SandboxState::Making | SandboxState::Removing => {
            sandbox.advance(&node.store, SandboxEvent::Remove, |_| {})?;
            sandbox_stop::take_down(node, sandbox).await?;
        }
        SandboxState::Ready | SandboxState::Stopping | SandboxState::NotReady => {
            sandbox_stop::halt(node, sandbox).await?;
        }
    }
    let mut left = Vec::new();
    for container in node.pods.containers_of(&sandbox.id) {
        if let Err(e) = container_remove::erase(node, &container).await {
            left.push(e.to_string());
        }
    }
    if !left.is_empty() {
        return Err(Error::Left {
            what: "sandbox",
            id: sandbox.id.clone(),
            step: "remove containers",
            message: left.join("; "),
        });
    }
    sandbox.advance(&node.store, SandboxEvent::Remove, |_| {})?;
    failpoint::reach("remove sandbox: folder");
    let folder = node.paths.sandbox(&sandbox.id);
    remove_all(&folder).map_err(io("sandbox", &sandbox.id, "remove folder", &folder))?;
    failpoint::reach("remove sandbox: cgroup parents");
    let farewell = Farewell::of(node, sandbox);
    cgroup_parents::leave(node, sandbox).await?;
    failpoint::reach("remove sandbox: removed");
    farewell.tell(node, sandbox);
    tracing::info!(sandbox = %sandbox.id, name = %sandbox.name, "sandbox is removed");
    Ok(())
}
