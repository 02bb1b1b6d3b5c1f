//! CheckpointContainer, CheckpointPod and RestorePod: refused, with the first reason
//! there is. A request is looked at as one that could be served, so that a client
//! learns of its own mistakes today; what is left then is that checkpoints are not
//! there yet.

use std::{collections::BTreeSet, fs, path::Path};

use super::{error::Error, node::Node};
use crate::{
    kind::Kind,
    pod::{Container, ContainerState, SandboxState},
    proto::cri,
};

/// CheckpointContainer: `location` is the archive to write.
pub fn container(
    node: &Node,
    request: &cri::CheckpointContainerRequest,
) -> Result<cri::CheckpointContainerResponse, Error> {
    const RPC: &str = "CheckpointContainer";
    let container = node.pods.container(&request.container_id)?;
    if !Path::new(&request.location).is_absolute() {
        return Err(invalid(
            RPC,
            format!("location {:?} is not an absolute path", request.location),
        ));
    }
    if request.timeout < 0 {
        return Err(invalid(
            RPC,
            format!("timeout {} is less than 0", request.timeout),
        ));
    }
    running(&container)?;
    Err(not_yet(RPC))
}

/// CheckpointPod: `output_path` is an empty folder that the caller has made.
pub fn pod(node: &Node, request: &cri::CheckpointPodRequest) -> Result<cri::CheckpointPodResponse, Error> {
    const RPC: &str = "CheckpointPod";
    let sandbox = node.pods.sandbox(&request.pod_sandbox_id)?;
    if sandbox.state() != SandboxState::Ready {
        return Err(Error::Wrong {
            what: "sandbox",
            id: sandbox.id.clone(),
            kind: Kind::FailedPrecondition,
            message: format!(
                "is {}, and only one that is ready can be checkpointed",
                sandbox.state().name()
            ),
        });
    }
    let mut entries = folder(RPC, "output_path", &request.output_path)?;
    if entries.next().is_some() {
        return Err(invalid(
            RPC,
            format!("output_path {} is not empty", request.output_path),
        ));
    }
    no_options(RPC, request.options.keys())?;
    if request.container_ids.is_empty() {
        return Err(invalid(
            RPC,
            "container_ids is empty: it names the containers to checkpoint".into(),
        ));
    }
    let mut seen = BTreeSet::new();
    for id in &request.container_ids {
        let container = node.pods.container(id)?;
        if container.sandbox != sandbox.id {
            return Err(invalid(
                RPC,
                format!("container {id} is of sandbox {}", container.sandbox),
            ));
        }
        if !seen.insert(container.id.clone()) {
            return Err(invalid(RPC, format!("container {id} is named twice")));
        }
        running(&container)?;
    }
    Err(not_yet(RPC))
}

/// RestorePod: `checkpoint_path` is a folder that CheckpointPod has written.
pub fn restore(node: &Node, request: &cri::RestorePodRequest) -> Result<cri::RestorePodResponse, Error> {
    const RPC: &str = "RestorePod";
    node.check_handler(&request.runtime_handler)?;
    let metadata = request
        .config
        .as_ref()
        .and_then(|config| config.metadata.as_ref());
    if metadata.is_none_or(|metadata| metadata.name.is_empty()) {
        return Err(invalid(RPC, "config.metadata.name is empty".into()));
    }
    no_options(RPC, request.options.keys())?;
    if request.container_configs.is_empty() {
        return Err(invalid(
            RPC,
            "container_configs is empty: it has one for each container of the checkpoint".into(),
        ));
    }
    let mut seen = BTreeSet::new();
    for config in &request.container_configs {
        let name = config.metadata.clone().unwrap_or_default().name;
        if name.is_empty() {
            return Err(invalid(RPC, "container_configs: a metadata.name is empty".into()));
        }
        if !seen.insert(name.clone()) {
            return Err(invalid(RPC, format!("container_configs: {name} is there twice")));
        }
    }
    folder(RPC, "checkpoint_path", &request.checkpoint_path)?;
    Err(not_yet(RPC))
}

fn invalid(verb: &'static str, message: String) -> Error {
    Error::Invalid { verb, message }
}

fn not_yet(rpc: &'static str) -> Error {
    Error::NotYet {
        rpc,
        what: "checkpoints",
    }
}

fn running(container: &Container) -> Result<(), Error> {
    match container.state() {
        ContainerState::Running => Ok(()),
        state => Err(Error::Wrong {
            what: "container",
            id: container.id.clone(),
            kind: Kind::FailedPrecondition,
            message: format!("is {}, and only one that runs can be checkpointed", state.name()),
        }),
    }
}

fn folder(rpc: &'static str, field: &str, path: &str) -> Result<fs::ReadDir, Error> {
    if !Path::new(path).is_absolute() {
        return Err(invalid(rpc, format!("{field} {path:?} is not an absolute path")));
    }
    fs::read_dir(path).map_err(|error| invalid(rpc, format!("{field} {path}: read the folder: {error}")))
}

/// No option is known; one that is not known must be refused.
fn no_options<'a>(rpc: &'static str, mut keys: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    match keys.next() {
        Some(key) => Err(invalid(rpc, format!("option {key:?} is not known"))),
        None => Ok(()),
    }
}
