//! Cgroups above those of the containers: the kubelet makes its own, but a parent
//! that nobody made is made by the shim or by systemd, and then it is ours to remove.
//!
//! Several pods may share such a parent. Each sandbox records those that it
//! counts on being ours; the last one that leaves removes them.

use tokio::sync::Mutex;

use super::{error::Error, node::Node};
use crate::{cgroup, pod::Sandbox};

/// Held while it is decided which parents are ours, so that one pod does not
/// remove what another is about to use.
#[derive(Debug, Default)]
pub struct CgroupParents(Mutex<()>);

/// Records which of the sandbox's parents are missing, or were made for another pod.
pub async fn claim(node: &Node, sandbox: &Sandbox) -> Result<(), Error> {
    let _decide = node.cgroup_parents.0.lock().await;
    let missing = cgroup::missing(&sandbox.record().cgroup_parent).map_err(|e| Error::Left {
        what: "sandbox",
        id: sandbox.id.clone(),
        step: "look at its cgroup parent",
        message: e.to_string(),
    })?;
    let ours: Vec<String> = ancestors(&sandbox.record().cgroup_parent)
        .into_iter()
        .filter(|path| missing.contains(path) || claimed(node, path))
        .collect();
    if !ours.is_empty() {
        sandbox.update(&node.store, |record| record.cgroups_made = ours)?;
    }
    Ok(())
}

fn claimed(node: &Node, path: &String) -> bool {
    node.pods
        .sandboxes()
        .iter()
        .any(|other| other.record().cgroups_made.contains(path))
}

/// Forgets the sandbox, and removes the parents that nobody else counts on.
pub async fn leave(node: &Node, sandbox: &Sandbox) -> Result<(), Error> {
    let _decide = node.cgroup_parents.0.lock().await;
    let mut ours = sandbox.record().cgroups_made;
    node.store.delete_sandbox(&sandbox.id)?;
    node.pods.forget_sandbox(&sandbox.id);
    ours.retain(|path| !claimed(node, path));
    node.cgroups.remove_parents(&ours).await;
    Ok(())
}

/// "/a/b" is "/a", "/a/b": the outermost first.
fn ancestors(path: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut so_far = String::new();
    for part in path.split('/').filter(|p| !p.is_empty()) {
        so_far.push('/');
        so_far.push_str(part);
        all.push(so_far.clone());
    }
    all
}

#[cfg(test)]
mod tests {
    #[test]
    fn ancestors() {
        assert_eq!(
            super::ancestors("/a/b.slice/c"),
            ["/a", "/a/b.slice", "/a/b.slice/c"]
        );
        assert!(super::ancestors("/").is_empty());
    }
}
