//! PortForward: a URL at which ports inside a sandbox are reached.

use std::sync::Arc;

use super::{
    error::{Context, Error},
    node::Node,
};
use crate::{
    kind::Kind,
    pod::{Sandbox, SandboxState},
    proto::cri,
    stream::{PortForwardRequest, Urls},
};

pub fn port_forward(
    node: &Node,
    urls: &Urls,
    request: &cri::PortForwardRequest,
) -> Result<cri::PortForwardResponse, Error> {
    let sandbox = ready(node, &request.pod_sandbox_id)?;
    let ports = request.port.iter().map(|port| match u16::try_from(*port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Error::Invalid {
            verb: "forward ports",
            message: format!("sandbox {}: port {port} is not one of 1 to 65535", sandbox.id),
        }),
    });
    let request = PortForwardRequest {
        sandbox: sandbox.id.clone(),
        ports: ports.collect::<Result<_, _>>()?,
    };
    let url = urls
        .port_forward(request)
        .step("sandbox", &sandbox.id, "forward ports")?;
    Ok(cri::PortForwardResponse { url })
}

/// A sandbox whose ports can be reached.
pub fn ready(node: &Node, id: &str) -> Result<Arc<Sandbox>, Error> {
    let sandbox = node.pods.sandbox(id)?;
    let state = sandbox.state();
    if state == SandboxState::Ready {
        return Ok(sandbox);
    }
    Err(Error::Wrong {
        what: "sandbox",
        id: sandbox.id.clone(),
        kind: Kind::FailedPrecondition,
        message: format!("is {}, not ready: its ports cannot be reached", state.name()),
    })
}
