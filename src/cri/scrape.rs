//! The page of metrics: what was counted, and what the node has now.

use std::{collections::BTreeSet, sync::Arc};

use super::Node;
use crate::{
    pod::{ContainerState, SandboxState},
    telemetry::{
        metrics::{Present, metrics},
        serve::Page,
    },
};

/// Makes the page whenever somebody asks for it.
pub fn page(node: &Arc<Node>) -> Page {
    let node = node.clone();
    Arc::new(move || {
        let present = present(&node).map_err(|e| e.to_string())?;
        metrics().encode(&present).map_err(|e| e.to_string())
    })
}

fn present(node: &Node) -> Result<Present, crate::image::Error> {
    let sandboxes: Vec<_> = node.pods.sandboxes().iter().map(|s| s.state()).collect();
    let containers = node.pods.containers();
    let used: BTreeSet<_> = containers.iter().flat_map(|c| c.images()).collect();
    let images = node.images.list()?;
    let in_use = images.iter().filter(|image| used.contains(&image.id)).count();
    Ok(Present {
        pods: SandboxState::ALL
            .iter()
            .map(|state| (state.name(), sandboxes.iter().filter(|s| *s == state).count()))
            .collect(),
        containers: ContainerState::ALL
            .iter()
            .map(|state| {
                let here = containers.iter().filter(|c| c.state() == *state);
                (state.name(), here.count())
            })
            .collect(),
        images: vec![("in use", in_use), ("unused", images.len() - in_use)],
    })
}
