//! Status: the conditions, the runtime handlers and what they can do.

use std::collections::HashMap;

use serde_json::json;

use super::{error::Error, node::Node};
use crate::{proto::cri, runtime::Handler};

pub async fn status(node: &Node, request: &cri::StatusRequest) -> Result<cri::StatusResponse, Error> {
    let network = network(node).await;
    let info = if request.verbose {
        info(node, &network)
    } else {
        HashMap::new()
    };
    Ok(cri::StatusResponse {
        status: Some(cri::RuntimeStatus {
            conditions: vec![runtime(node), network],
        }),
        info,
        runtime_handlers: handlers(node),
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: node.host.user_namespaces,
            mount_options: true,
        }),
    })
}

fn condition(kind: &str, ready: Result<(), (&str, String)>) -> cri::RuntimeCondition {
    let (status, reason, message) = match ready {
        Ok(()) => (true, String::new(), String::new()),
        Err((reason, message)) => (false, reason.to_owned(), message),
    };
    cri::RuntimeCondition {
        r#type: kind.into(),
        status,
        reason,
        message,
    }
}

/// Ready when records can be written: without them nothing may be started.
fn runtime(node: &Node) -> cri::RuntimeCondition {
    let written = node.store.put_setting("last status", env!("CARGO_PKG_VERSION"));
    condition(
        "RuntimeReady",
        written.map_err(|e| ("RecordsNotWritable", e.to_string())),
    )
}

async fn network(node: &Node) -> cri::RuntimeCondition {
    let ready = node.network.status(node.handler("")).await;
    condition("NetworkReady", ready.map_err(|n| (n.reason, n.message)))
}

/// The default handler, under the empty name too, and those of the configuration.
fn handlers(node: &Node) -> Vec<cri::RuntimeHandler> {
    let features = |handler: &Handler| {
        if handler.settings.is_oci() {
            cri::RuntimeHandlerFeatures {
                recursive_read_only_mounts: handler
                    .known()
                    .is_some_and(|found| found.features.recursive_read_only()),
                user_namespaces: false,
            }
        } else {
            cri::RuntimeHandlerFeatures {
                recursive_read_only_mounts: true,
                user_namespaces: node.host.user_namespaces,
            }
        }
    };
    let told = |name: &str, handler: &Handler| cri::RuntimeHandler {
        name: name.into(),
        features: Some(features(handler)),
    };
    let default = node.handlers.get("").ok().map(|handler| told("", handler));
    let named = node.handlers.iter().map(|handler| told(&handler.name, handler));
    default.into_iter().chain(named).collect()
}

/// Verbose, under the names that tools know from containerd: the configuration, and
/// how the CNI folder is.
fn info(node: &Node, network: &cri::RuntimeCondition) -> HashMap<String, String> {
    let config = json!({
        "rootDir": node.paths.root,
        "stateDir": node.paths.state,
        "config": node.config,
        "instance": node.instance.name,
        "sandboxes": node.pods.sandboxes().len(),
        "containers": node.pods.containers().len(),
        "operations": format!("{:?}", node.operations),
    });
    let cni = json!({
        "PluginDirs": node.config.network.cni_bin_dirs,
        "PluginConfDir": node.config.network.cni_conf_dir,
        "PluginConfDirOfHandler": node.config.handlers_cni_conf_dirs(),
    });
    let loaded = if network.status { "OK" } else { &network.message };
    let mut info = HashMap::from([
        ("config".to_owned(), config.to_string()),
        ("cniconfig".to_owned(), cni.to_string()),
        ("lastCNILoadStatus".to_owned(), json!(loaded).to_string()),
    ]);
    for (handler, loaded) in node.network.handlers() {
        let said = loaded.err().unwrap_or_else(|| "OK".to_owned());
        info.insert(format!("lastCNILoadStatus.{handler}"), json!(said).to_string());
    }
    info
}
