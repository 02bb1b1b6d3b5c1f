//! GetContainerEvents: what happens to containers and sandboxes, after it is
//! recorded, with the status of the pod and of all its containers at that moment. A
//! sandbox is told of by its own id, as the peers do.

use std::pin::Pin;

use futures_util::{Stream, stream::unfold};
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::{container_status, error::Error, node::Node, sandbox_status};
use crate::{
    kind::Kind,
    pod::{Container, ContainerState, Sandbox, now},
    proto::cri::{ContainerEventResponse, ContainerEventType},
};

/// What the RPC answers. Nobody but the connection drives it: it ends with the client.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

/// Every event from now on. It ends with an error when the client is too far behind
/// or berthd stops: then the client lists, and asks again.
pub fn listen(node: &Node) -> Result<EventStream, Error> {
    let receiver = node.events.listen().ok_or_else(stopping)?;
    Ok(Box::pin(unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Ok(event) => Some((Ok((*event).clone()), Some(receiver))),
            Err(RecvError::Lagged(count)) => Some((Err(behind(count).into()), None)),
            Err(RecvError::Closed) => Some((Err(stopping().into()), None)),
        }
    })))
}

fn ended(kind: Kind, message: String) -> Error {
    Error::Wrong {
        what: "stream of",
        id: "container events".into(),
        kind,
        message,
    }
}

fn behind(count: u64) -> Error {
    let message = format!("the client read too slowly and missed {count} events: list, and call again");
    ended(Kind::ResourceExhausted, message)
}

fn stopping() -> Error {
    ended(
        Kind::Unavailable,
        "berthd is stopping: call again when it serves".into(),
    )
}

/// Tells that something happened to a container. It must be recorded already.
pub fn tell(node: &Node, container: &Container, kind: ContainerEventType) {
    let has_run = container.record().started_at != 0;
    container.told.advance(kind, has_run, |kind| {
        if node.events.has_listeners() {
            node.events
                .send(render(node, &container.id, &container.sandbox, kind));
        }
    });
}

/// The same of a sandbox.
pub fn tell_of_sandbox(node: &Node, sandbox: &Sandbox, kind: ContainerEventType) {
    sandbox.told.advance(kind, true, |kind| {
        if node.events.has_listeners() {
            node.events.send(render(node, &sandbox.id, &sandbox.id, kind));
        }
    });
}

/// The end of a sandbox, with its last status: to be rendered while it is known, and
/// told once it is not.
#[derive(Debug)]
pub struct Farewell(Option<ContainerEventResponse>);

impl Farewell {
    pub fn of(node: &Node, sandbox: &Sandbox) -> Farewell {
        let kind = ContainerEventType::ContainerDeletedEvent;
        let listened = node.events.has_listeners();
        Farewell(listened.then(|| render(node, &sandbox.id, &sandbox.id, kind)))
    }

    pub fn tell(self, node: &Node, sandbox: &Sandbox) {
        let kind = ContainerEventType::ContainerDeletedEvent;
        let mut event = self.0;
        sandbox.told.advance(kind, true, |_| {
            if let Some(event) = event.take() {
                node.events.send(event);
            }
        });
    }
}

fn render(node: &Node, id: &str, sandbox: &str, kind: ContainerEventType) -> ContainerEventResponse {
    // The containers first: the kubelet believes the pod's status to be the newer one.
    let containers = node.pods.containers_of(sandbox);
    let made = containers.iter().filter(|c| c.state() != ContainerState::Making);
    ContainerEventResponse {
        container_id: id.to_owned(),
        container_event_type: kind as i32,
        containers_statuses: made
            .map(|container| container_status::render(container))
            .collect(),
        pod_sandbox_status: node
            .pods
            .sandbox(sandbox)
            .ok()
            .map(|s| sandbox_status::render(&s)),
        created_at: now(),
    }
}
