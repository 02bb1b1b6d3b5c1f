//! PodSandboxStatus.

use std::collections::HashMap;

use serde_json::json;

use super::{container_status, error::Error, node::Node, sandbox_update};
use crate::{
    pod::{ContainerState, Sandbox, now},
    proto::cri,
};

pub fn status(
    node: &Node,
    request: &cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, Error> {
    let sandbox = node.pods.sandbox(&request.pod_sandbox_id)?;
    let containers = node.pods.containers_of(&sandbox.id);
    let containers = containers.iter().filter(|c| c.state() != ContainerState::Making);
    Ok(cri::PodSandboxStatusResponse {
        status: Some(render(&sandbox)),
        info: if request.verbose {
            info(node, &sandbox)
        } else {
            HashMap::new()
        },
        containers_statuses: containers.map(|c| container_status::render(c)).collect(),
        timestamp: now(),
    })
}

/// The status as clients see it. The namespace options are those of the request:
/// the kubelet makes a pod anew when they differ.
pub fn render(sandbox: &Sandbox) -> cri::PodSandboxStatus {
    let record = sandbox.record();
    let config = sandbox.config();
    let options = config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .and_then(|s| s.namespace_options.clone())
        .unwrap_or_default();
    let mut ips = record
        .attachment
        .iter()
        .flat_map(|a| &a.ips)
        .map(ToString::to_string);
    let network = cri::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
    };
    cri::PodSandboxStatus {
        id: sandbox.id.clone(),
        metadata: config.metadata.clone(),
        state: record.state.cri() as i32,
        created_at: record.created_at,
        network: Some(network),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace {
                options: Some(options),
            }),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.handler,
    }
}

/// Verbose: what people look for when a pod is in trouble.
fn info(node: &Node, sandbox: &Sandbox) -> HashMap<String, String> {
    let record = sandbox.record();
    let pinned = node.paths.namespaces(&sandbox.id);
    let namespaces: HashMap<_, _> = record.namespaces.iter().map(|n| (n, pinned.join(n))).collect();
    let init = sandbox
        .init
        .try_lock()
        .ok()
        .and_then(|init| init.as_ref().map(|(_, pid)| *pid));
    let config = sandbox.config();
    let linux = config.linux.clone().unwrap_or_default();
    let info = json!({
        "pid": init.unwrap_or(0),
        "state": record.state.name(),
        "namespaces": namespaces,
        "network": record.attachment,
        "cgroupParent": record.cgroup_parent,
        "hostname": record.hostname,
        "runtimeHandler": record.handler,
        "overhead": sandbox_update::describe(linux.overhead.as_ref()),
        "resources": sandbox_update::describe(linux.resources.as_ref()),
        "folder": node.paths.sandbox(&sandbox.id),
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}
