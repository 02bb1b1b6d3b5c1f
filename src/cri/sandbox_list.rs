//! ListPodSandbox, with every filter.

use super::{error::Error, node::Node};
use crate::{
    pod::{Sandbox, SandboxState},
    proto::cri,
};

pub fn list(node: &Node, request: &cri::ListPodSandboxRequest) -> Result<cri::ListPodSandboxResponse, Error> {
    let filter = request.filter.clone().unwrap_or_default();
    let id = match filter.id.as_str() {
        "" => None,
        // A filter that matches nothing is an empty list, not an error.
        prefix => match node.pods.sandbox(prefix) {
            Ok(sandbox) => Some(sandbox.id.clone()),
            Err(_) => return Ok(cri::ListPodSandboxResponse { items: Vec::new() }),
        },
    };
    let items = node.pods.sandboxes().into_iter().filter(|sandbox| {
        sandbox.state() != SandboxState::Making
            && id.as_ref().is_none_or(|id| *id == sandbox.id)
            && filter
                .state
                .as_ref()
                .is_none_or(|s| s.state == sandbox.state().cri() as i32)
            && selects(&filter.label_selector, &sandbox.config().labels)
    });
    Ok(cri::ListPodSandboxResponse {
        items: items.map(|s| item(&s)).collect(),
    })
}

fn item(sandbox: &Sandbox) -> cri::PodSandbox {
    let record = sandbox.record();
    let config = sandbox.config();
    cri::PodSandbox {
        id: sandbox.id.clone(),
        metadata: config.metadata.clone(),
        state: record.state.cri() as i32,
        created_at: record.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.handler,
    }
}

type Labels = std::collections::HashMap<String, String>;

/// Whether all of the selector's pairs are among the labels.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        let have = labels(&[("a", "1"), ("b", "2")]);
        assert!(selects(&labels(&[]), &have));
        assert!(selects(&labels(&[("a", "1")]), &have));
        assert!(!selects(&labels(&[("a", "2")]), &have));
        assert!(!selects(&labels(&[("a", "1"), ("c", "3")]), &have));
    }
}
