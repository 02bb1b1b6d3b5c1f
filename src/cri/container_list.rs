//! ListContainers, with every filter.

use super::{error::Error, node::Node, sandbox_list::selects};
use crate::{
    pod::{Container, ContainerState},
    proto::cri,
};

pub fn list(node: &Node, request: &cri::ListContainersRequest) -> Result<cri::ListContainersResponse, Error> {
    let filter = request.filter.clone().unwrap_or_default();
    let none = || {
        Ok(cri::ListContainersResponse {
            containers: Vec::new(),
        })
    };
    let id = match filter.id.as_str() {
        "" => None,
        prefix => match node.pods.container(prefix) {
            Ok(container) => Some(container.id.clone()),
            Err(_) => return none(),
        },
    };
    let sandbox = match filter.pod_sandbox_id.as_str() {
        "" => None,
        prefix => match node.pods.sandbox(prefix) {
            Ok(sandbox) => Some(sandbox.id.clone()),
            Err(_) => return none(),
        },
    };
    let containers = node.pods.containers().into_iter().filter(|container| {
        container.state() != ContainerState::Making
            && id.as_ref().is_none_or(|id| *id == container.id)
            && sandbox.as_ref().is_none_or(|id| *id == container.sandbox)
            && filter
                .state
                .as_ref()
                .is_none_or(|s| s.state == container.state().cri() as i32)
            && selects(&filter.label_selector, &container.config().labels)
    });
    Ok(cri::ListContainersResponse {
        containers: containers.map(|c| item(&c)).collect(),
    })
}

fn item(container: &Container) -> cri::Container {
    let record = container.record();
    let config = container.config();
    cri::Container {
        id: container.id.clone(),
        pod_sandbox_id: container.sandbox.clone(),
        metadata: config.metadata.clone(),
        image: config.image.clone(),
        // The id, as the peers have it here; the digest is in the status.
        image_ref: record.image_id.clone(),
        state: record.state.cri() as i32,
        created_at: record.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        image_id: record.image_id,
    }
}
