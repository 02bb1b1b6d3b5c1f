//! The network of pods: namespaces, addresses, host ports.
//!
//! A pod's network is made by CNI plugins when a CNI configuration exists, else
//! by the built-in bridge. Which one it was is recorded before anything is made,
//! so that a pod is taken down by whoever set it up.

mod bridge;
mod conntrack;
mod host;
mod netlink;
pub mod netns;
mod nftables;
mod pod;
mod subnet;
mod wire;

use std::{collections::BTreeSet, sync::Arc};

pub use pod::{Attachment, AttachmentKind, Dns, NotReady, PodNetwork, PortMapping, Protocol};

use crate::{
    config,
    instance::Instance,
    kind::{HasKind, Kind},
    store::Store,
};

/// Errors of the network; each names the pod or object, the step and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] crate::store::Error),
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}

/// The network of this node.
#[derive(Debug)]
pub struct Network {}

impl Network {
    /// Makes nothing in the kernel: the bridge is made when the first pod needs it.
    pub fn open(
        _config: &config::Network,
        _instance: &Instance,
        _store: Arc<Store>,
    ) -> Result<Network, Error> {
        todo!()
    }

    /// Whether pods can have a network now. Looks at the CNI folder anew each time.
    pub fn status(&self) -> Result<(), NotReady> {
        todo!()
    }

    /// Gives the pod its network. What a half-made or earlier attachment of the
    /// same id left is removed first. On an error nothing is left (and what could
    /// not be removed stays recorded for [`Network::detach`]). The work goes on
    /// when the caller is dropped; `detach` waits for it.
    pub async fn attach(&self, _pod: &PodNetwork) -> Result<Attachment, Error> {
        todo!()
    }

    /// Takes away all that `attach` gave the sandbox. Idempotent; works when the
    /// namespace is gone, for half-made attachments, and when there never was one.
    pub async fn detach(&self, _id: &str) -> Result<(), Error> {
        todo!()
    }

    /// The recorded attachment of a sandbox, when attach completed.
    pub fn attachment(&self, _id: &str) -> Result<Option<Attachment>, Error> {
        todo!()
    }

    /// After a start of berthd: brings bridge and rules of recorded pods back
    /// (they are there unless somebody removed them or the node rebooted).
    pub async fn recover(&self) -> Result<(), Error> {
        todo!()
    }

    /// Detaches every recorded sandbox that is not in `known`, and removes links
    /// of the bridge that nobody knows. Errors do not stop it: all are returned.
    pub async fn sweep(&self, _known: &BTreeSet<String>) -> Vec<Error> {
        todo!()
    }
}
