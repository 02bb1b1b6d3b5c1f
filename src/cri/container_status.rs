//! ContainerStatus.

use std::collections::HashMap;

use serde_json::json;

use super::{bundle, error::Error, node::Node, request_json::request_json};
use crate::{
    pod::{Container, ContainerRecord, ContainerState},
    proto::cri,
    spec::signal_of,
};

pub fn status(
    node: &Node,
    request: &cri::ContainerStatusRequest,
) -> Result<cri::ContainerStatusResponse, Error> {
    let container = node.pods.container(&request.container_id)?;
    Ok(cri::ContainerStatusResponse {
        status: Some(render(&container)),
        info: if request.verbose {
            info(node, &container)
        } else {
            HashMap::new()
        },
    })
}

/// The status as clients see it: mounts, labels and annotations as they were
/// asked for, resources as they were last updated.
pub fn render(container: &Container) -> cri::ContainerStatus {
    let record = container.record();
    let config = container.config();
    let exit = record.exit.clone().unwrap_or_default();
    let mut image = config.image.clone().unwrap_or_default();
    // The user's own name of the image, where the kubelet resolved it to an id.
    if !image.user_specified_image.is_empty() {
        image.image = image.user_specified_image.clone();
    }
    let mut mounts = config.mounts.clone();
    for (index, id) in &record.volume_images {
        if let Some(image) = mounts.get_mut(*index).and_then(|mount| mount.image.as_mut()) {
            image.image_ref.clone_from(id);
        }
    }
    let user = cri::LinuxContainerUser {
        uid: record.uid.into(),
        gid: record.gid.into(),
        supplemental_groups: record.groups.iter().map(|g| i64::from(*g)).collect(),
    };
    let stop_signal = stop_signal(&config, &record);
    cri::ContainerStatus {
        id: container.id.clone(),
        metadata: config.metadata.clone(),
        state: record.state.cri() as i32,
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: exit.finished_at,
        exit_code: exit.code,
        image: Some(image),
        image_ref: record.image_ref,
        reason: exit.reason,
        message: exit.message,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts,
        log_path: record.log_path.to_string_lossy().into_owned(),
        resources: Some(cri::ContainerResources {
            linux: container.resources(),
            windows: None,
        }),
        image_id: record.image_id,
        user: Some(cri::ContainerUser { linux: Some(user) }),
        stop_signal,
    }
}

/// The signal that stops it, whoever named it: the request, the image, or nobody.
fn stop_signal(config: &cri::ContainerConfig, record: &ContainerRecord) -> i32 {
    match config.stop_signal() {
        cri::Signal::RuntimeDefault => signal_of(record.stop_signal).into(),
        asked => asked.into(),
    }
}

/// Verbose: what people look for when a container is in trouble, under the names
/// that tools know from containerd.
fn info(node: &Node, container: &Container) -> HashMap<String, String> {
    let record = container.record();
    // The bundle is gone after a reboot: then there is no spec to show.
    let spec = bundle::read_spec(node, &container.id).ok();
    let info = json!({
        "sandboxID": container.sandbox,
        "pid": record.pid,
        "removing": record.state == ContainerState::Removing,
        "state": record.state.name(),
        "cgroup": record.cgroup,
        "bundle": node.paths.bundle(&container.id),
        "rootfs": node.paths.container(&container.id),
        "runtimeType": "berth",
        "config": request_json(&*container.config()),
        "runtimeSpec": spec,
    });
    HashMap::from([
        ("info".to_owned(), info.to_string()),
        ("timeline".to_owned(), record.timeline.to_json()),
    ])
}
