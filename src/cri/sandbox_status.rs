//! PodSandboxStatus.

use std::{collections::HashMap, path::PathBuf};

use serde_json::json;

use super::{container_status, error::Error, node::Node, request_json::request_json, sandbox_update};
use crate::{
    network::stats::DEFAULT_LINK,
    pod::{ContainerState, Sandbox, SandboxRecord, now},
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

/// Verbose: what people look for when a pod is in trouble, under the names that tools
/// know from containerd. There is no process but the init of a shared PID namespace.
fn info(node: &Node, sandbox: &Sandbox) -> HashMap<String, String> {
    let record = sandbox.record();
    let pinned = node.paths.namespaces(&sandbox.id);
    let namespaces: HashMap<_, _> = record.namespaces.iter().map(|n| (n, pinned.join(n))).collect();
    let net = namespaces.get(&"net".to_owned());
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
        // What CNI's CHECK found wrong with it after the start of berthd.
        "networkBroken": node.network.broken(&sandbox.id),
        "cgroupParent": record.cgroup_parent,
        "hostname": record.hostname,
        "runtimeHandler": record.handler,
        "runtimeType": "berth",
        "netNamespaceClosed": net.is_some_and(|path| !path.exists()),
        "config": request_json(&*config),
        "runtimeSpec": spec(&record, &linux, &namespaces),
        "cniResult": record.attachment.as_ref().map(|attachment| {
            let ips: Vec<_> = attachment.ips.iter().map(|ip| json!({"IP": ip})).collect();
            json!({"Interfaces": {DEFAULT_LINK: {"IPConfigs": ips, "Sandbox": net}}})
        }),
        "overhead": sandbox_update::describe(sandbox.overhead().as_ref()),
        "resources": sandbox_update::describe(sandbox.resources().as_ref()),
        "folder": node.paths.sandbox(&sandbox.id),
    });
    HashMap::from([
        ("info".to_owned(), info.to_string()),
        ("timeline".to_owned(), record.timeline.to_json()),
    ])
}

/// What the containers of the pod share, in the words of an OCI spec.
fn spec(
    record: &SandboxRecord,
    linux: &cri::LinuxPodSandboxConfig,
    namespaces: &HashMap<&String, PathBuf>,
) -> serde_json::Value {
    let kind = |name: &str| match name {
        "net" => "network".to_owned(),
        name => name.to_owned(),
    };
    let namespaces: Vec<_> = namespaces
        .iter()
        .map(|(name, path)| json!({"type": kind(name), "path": path}))
        .collect();
    json!({
        "hostname": record.hostname,
        "linux": {
            "cgroupsPath": record.cgroup_parent,
            "namespaces": namespaces,
            "sysctl": linux.sysctls,
        },
    })
}
