//! The hooks of a container's later life, which berthd runs itself: poststart when its
//! program runs, poststop when it is removed. What is done is done by then, so a hook
//! that fails is told in the log and changes nothing (runtime spec, "Lifecycle").

use std::{path::PathBuf, sync::Arc};

use super::{bundle, node::Node};
use crate::{launcher, pod::Container, proto::plan::Hook, spec};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Started,
    /// A removal that is tried again runs them again.
    Removed,
}

/// Waits until the hooks have ended; each has its time limit.
pub async fn run(node: &Arc<Node>, container: &Arc<Container>, when: When) {
    let record = container.record();
    // An OCI runtime runs all hooks itself.
    if record.runtime.is_some() || !record.later_hooks {
        return;
    }
    // No spec: it never came that far, or a reboot took it.
    let Ok(spec) = bundle::read_spec(node, &container.id) else {
        return;
    };
    let hooks = match spec::later_hooks(&spec) {
        Ok(hooks) => hooks,
        Err(error) => {
            tracing::warn!(container = %container.id, %error, "hooks are not run");
            return;
        }
    };
    let (kind, status, list) = match when {
        When::Started => ("poststart", "running", hooks.poststart),
        When::Removed => ("poststop", "stopped", hooks.poststop),
    };
    if list.is_empty() {
        return;
    }
    let pid = i32::try_from(record.pid).unwrap_or(0);
    let folder = node.paths.bundle(&container.id);
    let state = launcher::hook_state(&container.id, status, pid, &folder, &hooks.annotations);
    let id = container.id.clone();
    let done = tokio::task::spawn_blocking(move || one_by_one(&id, kind, &list, &state, folder));
    if let Err(error) = done.await {
        tracing::error!(container = %container.id, %error, "hooks");
    }
}

/// Blocks. A failure does not keep the others from running.
fn one_by_one(id: &str, kind: &'static str, list: &[Hook], state: &str, folder: PathBuf) {
    for hook in list {
        if let Err(error) = launcher::run_hook(kind, hook, state, &folder) {
            tracing::warn!(container = %id, %error, "a hook failed");
        }
    }
}
