//! ReopenContainerLog: after somebody moved the log file away, the shim makes a
//! new one before the call returns.

use std::sync::Arc;

use super::{
    error::{Context, Error},
    node::Node,
};
use crate::{kind::Kind, pod::ContainerState, proto::cri};

pub async fn reopen(
    node: &Arc<Node>,
    request: &cri::ReopenContainerLogRequest,
) -> Result<cri::ReopenContainerLogResponse, Error> {
    let container = node.pods.container(&request.container_id)?;
    let shim = match (container.state(), container.shim()) {
        (ContainerState::Running, Some(shim)) => shim,
        (state, _) => {
            return Err(Error::Wrong {
                what: "container",
                id: container.id.clone(),
                kind: Kind::FailedPrecondition,
                message: format!("is {}, not running: its log cannot be reopened", state.name()),
            });
        }
    };
    shim.reopen_log()
        .await
        .step("container", &container.id, "reopen the log")?;
    Ok(cri::ReopenContainerLogResponse {})
}
