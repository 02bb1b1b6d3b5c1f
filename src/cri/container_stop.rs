//! StopContainer: the stop signal, the grace period, then the whole cgroup.

use std::{sync::Arc, time::Duration};

use super::{container_exit, error::Error, node::Node};
use crate::{
    kind::Kind,
    pod::{self, Container, ContainerState},
    proto::cri,
    runtime::{self, Shim},
};

const SIGKILL: u32 = 9;

/// How long a shim may take to end its container and to say so.
const ANSWER: Duration = Duration::from_secs(5);

/// How long the kernel may take to end what was killed, before the call says so.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn stop(
    node: &Arc<Node>,
    request: cri::StopContainerRequest,
    limit: Option<Duration>,
) -> Result<cri::StopContainerResponse, Error> {
    let container = match node.pods.container(&request.container_id) {
        Ok(container) => container,
        Err(pod::Error::NotFound { .. }) => return Ok(cri::StopContainerResponse {}),
        Err(e) => return Err(e.into()),
    };
    let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    let at = node.clone();
    // With the grace period in the key: a call that is in more of a hurry does not
    // join one that waits.
    let key = format!("stop container {} within {} s", container.id, grace.as_secs());
    node.operate(key, limit, move |stage| async move {
        if !grace.is_zero() && container.state() == ContainerState::Running {
            stage.set("wait for the grace period");
            ask(&at, &container, grace).await;
        }
        stage.set("kill");
        kill(&at, &container).await?;
        Ok(String::new())
    })
    .await?;
    Ok(cri::StopContainerResponse {})
}

/// Sends the stop signal, and waits for the end, at most for `grace` in all: a shim that
/// hangs takes none of the time that is the kill's.
async fn ask(node: &Node, container: &Container, grace: Duration) {
    let asked = async {
        let signal = u32::try_from(container.record().stop_signal).unwrap_or(15);
        if let Err(error) = signal_init(node, container, signal).await {
            // It may have ended in between; if not, the kill follows.
            tracing::debug!(container = %container.id, %error, signal, "send the stop signal");
            if error.is_gone() {
                return;
            }
        }
        container.ended().await;
    };
    let _ = tokio::time::timeout(grace, asked).await;
}

/// Its shim is not known yet when berthd has just started and the shim has not answered.
async fn signal_init(node: &Node, container: &Container, signal: u32) -> Result<(), runtime::Error> {
    let shim = match container.shim() {
        Some(shim) => shim,
        None => Shim::connect(&container.id, &node.paths.bundle(&container.id)).await?,
    };
    shim.kill(signal, false).await
}

/// Kills everything in the container, and waits until the end is recorded.
/// Idempotent.
pub async fn kill(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    match container.state() {
        ContainerState::Making | ContainerState::Exited | ContainerState::Removing => return Ok(()),
        ContainerState::Created | ContainerState::Running => {}
    }
    let through_the_shim = async {
        if let Some(shim) = container.shim()
            && let Err(error) = shim.kill(SIGKILL, true).await
        {
            tracing::debug!(container = %container.id, %error, "kill through the shim");
        }
        container.ended().await;
    };
    if tokio::time::timeout(ANSWER, through_the_shim).await.is_ok() {
        return Ok(());
    }
    // The shim hangs or is gone: past it, through the kernel.
    let path = container.record().cgroup;
    let ended = node.cgroups.remove(&path).await;
    if tokio::time::timeout(ANSWER, container.ended()).await.is_ok() {
        return Ok(());
    }
    // Nothing of the container lives, and its shim does not say so: it would for ever.
    let bundle = node.paths.bundle(&container.id);
    if ended.is_ok() {
        Shim::put_down(&container.id, &bundle).await;
    }
    let recorded = async {
        let heard = tokio::time::timeout(ANSWER, container.ended()).await.is_ok();
        // Who waits for the shim lets go of it when the end is heard of and being recorded.
        if !heard
            && ended.is_ok()
            && container.shim().is_some()
            && let Err(error) = Shim::connect(&container.id, &bundle).await
        {
            tracing::error!(container = %container.id, %error, "nobody said that it ended: what its shim left is taken for it");
            container_exit::settle_by_traces(node, container, &error.to_string()).await;
        }
        container.ended().await;
    };
    if tokio::time::timeout(PATIENCE, recorded).await.is_ok() {
        return Ok(());
    }
    let why = match ended {
        Err(error) => error.to_string(),
        Ok(()) => "its end is not reported, or not recorded yet".into(),
    };
    Err(Error::Wrong {
        what: "container",
        id: container.id.clone(),
        kind: Kind::DeadlineExceeded,
        message: format!(
            "was killed and has not ended after {} s ({why}); a process in an uninterruptible system call ends when the call does; call again",
            PATIENCE.as_secs()
        ),
    })
}
