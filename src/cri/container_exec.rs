//! ExecSync: a process in a running container, its output and its exit code.

use std::{sync::Arc, time::Duration};

use super::{
    bundle,
    error::{Context, Error},
    node::Node,
};
use crate::{
    kind::Kind,
    pod::{Container, ContainerState},
    proto::{cri, plan},
    spec,
};

/// Most bytes of each stream that are kept; what comes after is read and dropped.
const OUTPUT_LIMIT: usize = 16 << 20;

/// What a gRPC message may carry besides the output.
const MARGIN: usize = 64 << 10;

pub async fn exec_sync(
    node: &Arc<Node>,
    request: cri::ExecSyncRequest,
) -> Result<cri::ExecSyncResponse, Error> {
    let container = node.pods.container(&request.container_id)?;
    let id = container.id.as_str();
    let process = process(node, &container, &request.cmd, false)?;
    let shim = container.shim().ok_or_else(|| not_running(&container))?;
    let timeout = u64::try_from(request.timeout)
        .ok()
        .filter(|t| *t > 0)
        .map(Duration::from_secs);
    let output = shim
        .exec_sync(&process, timeout, OUTPUT_LIMIT / 2 - MARGIN)
        .await
        .step("container", id, "execute a command")?;
    if output.truncated {
        tracing::warn!(container = %id, cmd = ?request.cmd, "output past the limit was dropped");
    }
    Ok(cri::ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.code,
    })
}

/// The process of an exec: the container's own user, environment and limits, from
/// the spec in its bundle.
pub fn process(
    node: &Node,
    container: &Container,
    cmd: &[String],
    tty: bool,
) -> Result<plan::Process, Error> {
    let id = container.id.as_str();
    if cmd.is_empty() {
        return Err(Error::Invalid {
            verb: "execute a command",
            message: format!("container {id}: the command is empty"),
        });
    }
    if container.state() != ContainerState::Running {
        return Err(not_running(container));
    }
    let spec = bundle::read_spec(node, id)?;
    spec::exec_process(&spec, cmd, tty).step("container", id, "prepare a command")
}

fn not_running(container: &Container) -> Error {
    Error::Wrong {
        what: "container",
        id: container.id.clone(),
        kind: Kind::FailedPrecondition,
        message: format!(
            "is {}, not running: nothing can be executed in it",
            container.state().name()
        ),
    }
}
