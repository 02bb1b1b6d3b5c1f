//! The PID namespaces of its pod that a container joins: that of all, or that of
//! another container.

use std::{path::PathBuf, sync::Arc};

use super::{error::Error, node::Node, sandbox_init};
use crate::{
    kind::Kind,
    pod::{ContainerState, Sandbox},
    proto::cri::{self, NamespaceMode},
};

/// PID namespaces that a container may join.
#[derive(Debug, Default)]
pub struct PidNamespaces {
    pub shared: Option<PathBuf>,
    pub target: Option<PathBuf>,
}

impl PidNamespaces {
    /// Those that the request asks for; the shared one is made when there is none yet.
    pub async fn find(
        node: &Arc<Node>,
        sandbox: &Arc<Sandbox>,
        config: &cri::ContainerConfig,
    ) -> Result<PidNamespaces, Error> {
        let own = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let pod = sandbox.config();
        let pod = pod.linux.as_ref().and_then(|l| l.security_context.as_ref());
        // A request without options has those of its sandbox, as in `spec`.
        let options = own
            .and_then(|s| s.namespace_options.clone())
            .or_else(|| pod.and_then(|s| s.namespace_options.clone()))
            .unwrap_or_default();
        match options.pid() {
            NamespaceMode::Pod => Ok(PidNamespaces {
                shared: Some(sandbox_init::ensure(node, sandbox).await?),
                target: None,
            }),
            NamespaceMode::Target => {
                let target = node.pods.container(&options.target_id)?;
                let pid = target.record().pid;
                if target.sandbox != sandbox.id || target.state() != ContainerState::Running || pid == 0 {
                    return Err(Error::Wrong {
                        what: "container",
                        id: options.target_id,
                        kind: Kind::FailedPrecondition,
                        message: format!(
                            "cannot be the target of a pid namespace: it must run in sandbox {}",
                            sandbox.id
                        ),
                    });
                }
                Ok(PidNamespaces {
                    shared: None,
                    target: Some(format!("/proc/{pid}/ns/pid").into()),
                })
            }
            NamespaceMode::Container | NamespaceMode::Node => Ok(PidNamespaces::default()),
        }
    }
}
