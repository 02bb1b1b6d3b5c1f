//! PullImage: the image is on the node, whole and on its disk, when this answers.

use std::sync::Arc;

use super::{Node, sandbox_run};
use crate::{
    image::{AuthConfig, Error},
    pod::{SandboxState, Step},
    proto::cri,
};

/// Pulls `image.image`. Annotations say nothing about which image of an index is
/// meant; the runtime handler has been checked by the caller; the sandbox's
/// config changes nothing, as images are the same for all pods, but says whose start
/// waits for it.
pub async fn pull(node: &Arc<Node>, request: cri::PullImageRequest) -> Result<cri::PullImageResponse, Error> {
    let name = request.image.unwrap_or_default().image;
    let auth = request.auth.map(|auth| AuthConfig {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    });
    let begun = Step::begin("pull");
    let done = node.images.pull(&name, auth).await?;
    if let Some(sandbox) = &request.sandbox_config {
        note(node, sandbox, begun.end_pull(&name, done.bytes));
    }
    Ok(cri::PullImageResponse { image_ref: done.id })
}

/// Adds the step to the pod's timeline. The pull is done, whatever becomes of this.
fn note(node: &Node, config: &cri::PodSandboxConfig, step: Step) {
    let Some(sandbox) = sandbox_run::name(config)
        .ok()
        .and_then(|name| node.pods.sandbox_named(&name))
    else {
        return;
    };
    // One that is being removed must not be recorded again.
    let Ok(_gate) = sandbox.gate.try_read() else {
        return;
    };
    if sandbox.state() == SandboxState::Ready
        && let Err(error) = sandbox.update(&node.store, |record| record.timeline.push(step))
    {
        tracing::warn!(sandbox = %sandbox.id, %error, "record a pull");
    }
}
