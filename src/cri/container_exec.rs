//! ExecSync and Exec: a process in a running container, waited for with its output
//! and its exit code, or a URL at which its streams are.

use std::{sync::Arc, time::Duration};

use tonic::{Response, Status};

use super::{
    bundle,
    deadline::within,
    error::{Context, Error},
    node::Node,
};
use crate::{
    kind::Kind,
    pod::{Container, ContainerState},
    proto::{cri, plan},
    runtime::Shim,
    spec,
    stream::{ExecRequest, Urls},
};

/// Most bytes of both streams together that are kept, which is what clients take of
/// a message; what comes after is read and dropped, and the command goes on.
const OUTPUT_LIMIT: usize = 16 << 20;

/// What a gRPC message carries besides the output.
const MARGIN: usize = 64 << 10;

/// In the answer's metadata: how many bytes of output were dropped. Absent: none.
const DROPPED: &str = "berth-output-dropped";

pub async fn exec_sync(
    node: &Arc<Node>,
    request: cri::ExecSyncRequest,
    limit: Option<Duration>,
) -> Result<Response<cri::ExecSyncResponse>, Status> {
    let key = format!("execute a command in container {}", request.container_id);
    // What is given up here is killed with all it started.
    let (answer, dropped) = within(limit, || key, run(node, request)).await?;
    let mut response = Response::new(answer);
    if dropped > 0 {
        response.metadata_mut().insert(DROPPED, dropped.into());
    }
    Ok(response)
}

async fn run(node: &Arc<Node>, request: cri::ExecSyncRequest) -> Result<(cri::ExecSyncResponse, u64), Error> {
    let container = node.pods.container(&request.container_id)?;
    let id = container.id.as_str();
    let process = process(node, &container, &request.cmd, false)?;
    let shim = shim(&container)?;
    let timeout = u64::try_from(request.timeout)
        .ok()
        .filter(|t| *t > 0)
        .map(Duration::from_secs);
    let output = shim
        .exec_sync(&process, timeout, OUTPUT_LIMIT - MARGIN)
        .await
        .step("container", id, "execute a command")?;
    if output.dropped > 0 {
        tracing::warn!(
            container = %id, cmd = ?request.cmd, dropped = output.dropped,
            "output past 16 MiB was dropped"
        );
    }
    let answer = cri::ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.code,
    };
    Ok((answer, output.dropped))
}

pub fn exec(node: &Node, urls: &Urls, request: cri::ExecRequest) -> Result<cri::ExecResponse, Error> {
    let container = node.pods.container(&request.container_id)?;
    let id = container.id.as_str();
    shim(&container)?;
    let request = ExecRequest {
        container: id.to_owned(),
        command: request.cmd,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    let url = urls.exec(request).step("container", id, "execute a command")?;
    Ok(cri::ExecResponse { url })
}

/// The shim of a running container.
pub fn shim(container: &Container) -> Result<Shim, Error> {
    let running = container.state() == ContainerState::Running;
    container
        .shim()
        .filter(|_| running)
        .ok_or_else(|| not_running(container))
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
    let made = if container.has_oci_runtime() {
        spec::oci_exec_process(&bundle::read_spec(node, id)?, cmd, tty)
    } else {
        let read = || {
            let spec = bundle::read_spec(node, id)?;
            spec::exec_template(&spec).step("container", id, "prepare a command")
        };
        spec::exec_process(&*container.exec_template(read)?, cmd, tty)
    };
    made.step("container", id, "prepare a command")
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
