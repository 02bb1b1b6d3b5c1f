//! StartContainer: the init, which waits since Create, executes its program.

use std::{sync::Arc, time::Duration};

use super::{
    container_events,
    container_hooks::{self, When},
    error::{Context, Error},
    node::Node,
};
use crate::{
    failpoint,
    kind::Kind,
    pod::{Container, ContainerEvent, ContainerState, SandboxState, Step, now},
    proto::cri::{self, ContainerEventType},
};

/// How long the exit of a failed start may take to be recorded.
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn start(
    node: &Arc<Node>,
    request: cri::StartContainerRequest,
    limit: Option<Duration>,
) -> Result<cri::StartContainerResponse, Error> {
    let container = node.pods.container(&request.container_id)?;
    let at = node.clone();
    let key = format!("start container {}", container.id);
    node.operate(key, limit, move |stage| async move {
        let _gate = container.gate.lock().await;
        stage.set("execute the program");
        execute(&at, &container).await?;
        Ok(String::new())
    })
    .await?;
    Ok(cri::StartContainerResponse {})
}

async fn execute(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    let id = container.id.as_str();
    let wrong = |message: String| Error::Wrong {
        what: "container",
        id: id.into(),
        kind: Kind::FailedPrecondition,
        message,
    };
    let state = container.state();
    // A retry whose first answer was lost: it is started.
    if state == ContainerState::Running {
        return Ok(());
    }
    if state != ContainerState::Created {
        return Err(wrong(format!("cannot be started while it is {}", state.name())));
    }
    let sandbox = node.pods.sandbox(&container.sandbox)?;
    if sandbox.state() != SandboxState::Ready {
        return Err(wrong(format!(
            "cannot be started: its sandbox {} is {}",
            sandbox.id,
            sandbox.state().name()
        )));
    }
    let shim = container
        .shim()
        .ok_or_else(|| wrong("cannot be started: its shim is gone; remove it".into()))?;
    let begun = Step::begin("start");
    match shim.start().await {
        Ok(pid) => {
            failpoint::reach("start container: record");
            let step = begun.end();
            let late = step.clone();
            let started = container.advance(&node.store, ContainerEvent::Started, |record| {
                record.started_at = now();
                record.pid = pid;
                record.timeline.push(step);
            });
            // A program that has ended already is recorded as exited: it did start.
            if container.state() != ContainerState::Exited {
                started?;
            } else if started.is_err() {
                container.update(&node.store, |record| record.timeline.push(late))?;
            }
            container_events::tell(node, container, ContainerEventType::ContainerStartedEvent);
            tracing::info!(container = %id, name = %container.name, pid, "container is running");
            container_hooks::run(node, container, When::Started).await;
            Ok(())
        }
        Err(error) => {
            // The shim recorded why; wait until the status says so too.
            let _ = tokio::time::timeout(PATIENCE, container.ended()).await;
            Err(error).step("container", id, "start")
        }
    }
}
