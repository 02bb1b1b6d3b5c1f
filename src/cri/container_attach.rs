//! Attach: a URL at which the streams of a container's init are joined.

use super::{
    error::{Context, Error},
    node::Node,
};
use crate::{
    kind::Kind,
    pod::{Container, ContainerState},
    proto::cri,
    runtime::Shim,
    stream::{AttachRequest, Urls},
};

pub fn attach(node: &Node, urls: &Urls, request: cri::AttachRequest) -> Result<cri::AttachResponse, Error> {
    let container = node.pods.container(&request.container_id)?;
    shim(&container)?;
    let request = AttachRequest {
        container: container.id.clone(),
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    let url = urls.attach(request).step("container", &container.id, "attach")?;
    Ok(cri::AttachResponse { url })
}

/// The shim of a container that can be attached to: a running one.
pub fn shim(container: &Container) -> Result<Shim, Error> {
    let state = container.state();
    let shim = container.shim().filter(|_| state == ContainerState::Running);
    shim.ok_or_else(|| Error::Wrong {
        what: "container",
        id: container.id.clone(),
        kind: Kind::FailedPrecondition,
        message: format!("is {}, not running: nothing can be attached to", state.name()),
    })
}
