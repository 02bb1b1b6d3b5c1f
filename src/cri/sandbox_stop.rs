//! StopPodSandbox: containers are killed, the network, the namespaces and the
//! shared memory taken away. Works on half-made sandboxes; what fails is said and
//! finished by the next call.

use std::{sync::Arc, time::Duration};

use super::{
    container_events, container_stop,
    error::{Context, Error},
    node::Node,
    sandbox_files, sandbox_init,
};
use crate::{
    failpoint,
    network::netns,
    pod::{self, Sandbox, SandboxEvent, SandboxState},
    proto::cri::{self, ContainerEventType},
};

pub async fn stop(
    node: &Arc<Node>,
    request: cri::StopPodSandboxRequest,
    limit: Option<Duration>,
) -> Result<cri::StopPodSandboxResponse, Error> {
    let sandbox = match node.pods.sandbox(&request.pod_sandbox_id) {
        Ok(sandbox) => sandbox,
        Err(pod::Error::NotFound { .. }) => return Ok(cri::StopPodSandboxResponse {}),
        Err(e) => return Err(e.into()),
    };
    let at = node.clone();
    let key = format!("stop sandbox {}", sandbox.id);
    node.operate(key, limit, move |stage| async move {
        stage.set("wait for containers that are being created");
        let _gate = sandbox.gate.write().await;
        stage.set("stop containers and take the network away");
        halt(&at, &sandbox).await?;
        Ok(String::new())
    })
    .await?;
    Ok(cri::StopPodSandboxResponse {})
}

/// Brings the sandbox to NotReady. The caller holds its gate.
pub async fn halt(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    match sandbox.state() {
        SandboxState::NotReady | SandboxState::Removing => return Ok(()),
        SandboxState::Making | SandboxState::Ready | SandboxState::Stopping => {}
    }
    sandbox.advance(&node.store, SandboxEvent::Stop, |_| {})?;
    take_down(node, sandbox).await?;
    sandbox.advance(&node.store, SandboxEvent::Stopped, |record| {
        record.attachment = None
    })?;
    sandbox.samples.gauge.close();
    container_events::tell_of_sandbox(node, sandbox, ContainerEventType::ContainerStoppedEvent);
    tracing::info!(sandbox = %sandbox.id, name = %sandbox.name, "sandbox is stopped");
    Ok(())
}

/// Kills what runs and takes network and namespaces away, whatever of it there is.
pub async fn take_down(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    failpoint::reach("stop sandbox: containers");
    let mut left = Vec::new();
    let kills = node.pods.containers_of(&sandbox.id).into_iter().map(|container| {
        let node = node.clone();
        tokio::spawn(async move { container_stop::kill(&node, &container).await })
    });
    for kill in kills.collect::<Vec<_>>() {
        match kill.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => left.push(e.to_string()),
            Err(e) => left.push(e.to_string()),
        }
    }
    failpoint::reach("stop sandbox: init");
    if let Err(e) = sandbox_init::end(node, sandbox).await {
        left.push(e.to_string());
    }
    if sandbox.record().namespaces.iter().any(|n| n == "net") {
        failpoint::reach("stop sandbox: network");
        let detached = node.network.detach(&sandbox.id).await;
        if let Err(e) = detached.step("sandbox", &sandbox.id, "detach the network") {
            left.push(e.to_string());
        }
    }
    failpoint::reach("stop sandbox: namespaces");
    if left.is_empty()
        && let Err(e) = unpin(node, sandbox).await
    {
        left.push(e.to_string());
    }
    if !left.is_empty() {
        return Err(Error::Left {
            what: "sandbox",
            id: sandbox.id.clone(),
            step: "stop (the rest is done; call again to finish it)",
            message: left.join("; "),
        });
    }
    Ok(())
}

/// Unpins the namespaces and takes the shared memory away.
async fn unpin(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let folder = node.paths.sandbox(&sandbox.id);
    let pinned = node.paths.namespaces(&sandbox.id);
    let id = sandbox.id.clone();
    let left = |message: String| Error::Left {
        what: "sandbox",
        id: sandbox.id.clone(),
        step: "unpin namespaces",
        message,
    };
    tokio::task::spawn_blocking(move || {
        netns::remove(&pinned).map_err(|e| Error::Left {
            what: "sandbox",
            id: id.clone(),
            step: "unpin namespaces",
            message: e.to_string(),
        })?;
        sandbox_files::unmount_shm(&folder, &id)
    })
    .await
    .map_err(|e| left(e.to_string()))?
}
