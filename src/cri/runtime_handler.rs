//! Whether a pod can be run by the runtime handler that it names.

use super::{error::Error, node::Node};
use crate::kind::Kind;

/// Before anything of the pod is made: a handler whose binary is missing, or that
/// cannot do what the pod asks for, is said here and not at its first container.
pub async fn check(node: &Node, name: &str, user_namespace: bool) -> Result<(), Error> {
    let handler = node.handlers.get(name)?;
    let runtime = handler.probe().await?;
    if runtime.is_some() && user_namespace {
        return Err(Error::Wrong {
            what: "runtime handler",
            id: handler.name.clone(),
            kind: Kind::FailedPrecondition,
            message:
                "runs no pods in user namespaces, as Status says of its features; set hostUsers: true, or \
                      use the handler \"berth\""
                    .into(),
        });
    }
    Ok(())
}
