//! The network of pods: namespaces, addresses, host ports.
//!
//! A pod's network is made by CNI plugins when a CNI configuration exists, else
//! by the built-in bridge. Which one it was is recorded before anything is made,
//! so that a pod is taken down by whoever set it up.
//!
//! Everything here happens in the network namespace of the calling thread: that
//! of the node for berthd, one of its own for a test.

pub mod audit;
mod bridge;
mod cni;
mod connect;
mod conntrack;
#[cfg(any(test, feature = "fuzz"))]
pub use cni::fuzz;
mod host;
mod netlink;
pub mod netns;
mod nftables;
mod pod;
mod record;
pub mod stats;
mod subnet;
mod upkeep;
mod wire;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

pub use bridge::{Error as BridgeError, veth_name};
pub use cni::Error as CniError;
pub use connect::connect;
pub use pod::{Attachment, AttachmentKind, Dns, NotReady, PodNetwork, PortMapping, Protocol};

use self::{
    bridge::Bridge,
    cni::{Cni, Conflist},
    record::{Record, Via},
};
use crate::{
    config,
    instance::Instance,
    kind::{HasKind, Kind},
    store::{self, Store},
    telemetry::metrics::metrics,
};

/// Errors of the network; each names the pod or object, the step and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    #[error(transparent)]
    Cni(#[from] CniError),
    #[error("network record of sandbox {id}: {message}")]
    Damaged { id: String, message: String },
    #[error("berthd is stopping; the network of the sandbox is finished after its next start")]
    Stopping,
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Store(e) => e.kind(),
            Error::Bridge(e) => e.kind(),
            Error::Cni(e) => e.kind(),
            Error::Damaged { .. } => Kind::DataLoss,
            Error::Stopping => Kind::Unavailable,
        }
    }
}

/// The network of this node.
#[derive(Debug)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bridge: Bridge,
    cni: Arc<Cni>,
    masquerade: bool,
    store: Arc<Store>,
    /// Set once a trial of the bridge has worked.
    bridge_works: Mutex<bool>,
    /// One operation at a time for each sandbox.
    busy: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// What CHECK said of pods whose network is not as it was made.
    broken: Mutex<BTreeMap<String, String>>,
}

impl Network {
    /// Makes nothing in the kernel: the bridge is made when the first pod needs it.
    /// `cni_conf_dirs`: the CNI folders of the runtime handlers that have their own.
    pub fn open(
        config: &config::Network,
        cni_conf_dirs: BTreeMap<String, PathBuf>,
        instance: &Instance,
        store: Arc<Store>,
    ) -> Result<Network, Error> {
        let inner = Inner {
            bridge: Bridge::new(config, instance, store.clone())?,
            cni: Arc::new(Cni::new(config, cni_conf_dirs)),
            masquerade: config.masquerade,
            store,
            bridge_works: Mutex::new(false),
            busy: Mutex::new(HashMap::new()),
            broken: Mutex::new(BTreeMap::new()),
        };
        Ok(Network {
            inner: Arc::new(inner),
        })
    }

    /// The subnets that the cluster gave this node: "10.1.0.0/24" or one of each
    /// family, separated by a comma. Used by the built-in bridge when the
    /// configuration names none, once no pod has an address.
    pub fn set_pod_cidr(&self, text: &str) -> Result<(), Error> {
        Ok(self.inner.bridge.set_pod_cidr(text)?)
    }

    /// Whether pods of the handler can have a network now. Looks at the CNI folder anew each
    /// time, and asks the plugins that know STATUS, whose answer holds for some
    /// seconds; the bridge is tried out once, in a namespace that is thrown away
    /// (some milliseconds), and again only while it does not work.
    pub async fn status(&self, handler: &str) -> Result<(), NotReady> {
        let plugin = |message| NotReady {
            reason: "NetworkPluginNotReady",
            message,
        };
        let (inner, handler) = (self.inner.clone(), handler.to_owned());
        let looked = blocking(move || Ok(inner.look(&handler))).await;
        match looked.map_err(|e| plugin(e.to_string()))?? {
            Some(list) => self.inner.cni.health(list).await.map_err(plugin),
            None => Ok(()),
        }
    }

    /// How the configuration in the folder of each handler that has its own is.
    pub fn handlers(&self) -> BTreeMap<&str, Result<(), String>> {
        let cni = &self.inner.cni;
        let handlers = cni.folders_of_handlers().keys();
        let look = |handler: &str| match cni.network_for(handler)? {
            Some(list) => cni.check_plugins(&list),
            None => Ok(()),
        };
        handlers
            .map(|handler| (handler.as_str(), look(handler).map_err(|e| e.to_string())))
            .collect()
    }

    /// Gives the pod its network. What a half-made or earlier attachment of the
    /// same id left is removed first. On an error nothing is left (and what could
    /// not be removed stays recorded for [`Network::detach`]). The work goes on
    /// when the caller is dropped; `detach` waits for it.
    pub async fn attach(&self, pod: &PodNetwork) -> Result<Attachment, Error> {
        let (inner, pod) = (self.inner.clone(), pod.clone());
        detached(async move { inner.attach(pod).await }).await
    }

    /// Takes away all that `attach` gave the sandbox. Idempotent; works when the
    /// namespace is gone, for half-made attachments, and when there never was one.
    pub async fn detach(&self, id: &str) -> Result<(), Error> {
        let (inner, id) = (self.inner.clone(), id.to_owned());
        detached(async move { inner.detach(id).await }).await
    }

    /// The recorded attachment of a sandbox, when attach completed.
    pub fn attachment(&self, id: &str) -> Result<Option<Attachment>, Error> {
        Ok(Record::read(&self.inner.store, id)?.and_then(|record| record.attachment))
    }

    /// After a start of berthd: brings bridge and rules of recorded pods back
    /// (they are there unless somebody removed them or the node rebooted), and
    /// removes links of the bridge that belong to no record. May be called at any
    /// time: it also mends what `nft flush ruleset` did.
    pub async fn recover(&self) -> Result<(), Error> {
        let inner = self.inner.clone();
        blocking(move || {
            let known: BTreeSet<String> = inner.store.network_sandboxes()?.into_iter().collect();
            Ok(inner.bridge.recover(&known)?)
        })
        .await
    }

    /// Detaches every recorded sandbox that is not in `known`. One that fails
    /// stays recorded and does not stop the others; all errors are returned.
    pub async fn sweep(&self, known: &BTreeSet<String>) -> Vec<Error> {
        let recorded = match self.inner.store.network_sandboxes() {
            Ok(recorded) => recorded,
            Err(e) => return vec![e.into()],
        };
        let mut errors = Vec::new();
        for id in recorded.iter().filter(|id| !known.contains(*id)) {
            if let Err(e) = self.detach(id).await {
                errors.push(e);
            }
        }
        errors
    }
}

impl Inner {
    /// What is wrong without asking anybody; else the CNI network there is.
    fn look(&self, handler: &str) -> Result<Option<Arc<Conflist>>, NotReady> {
        let not_ready = |reason, message| NotReady { reason, message };
        let plugin = |message| not_ready("NetworkPluginNotReady", message);
        let list = self.cni.network_for(handler).map_err(|e| plugin(e.to_string()))?;
        match &list {
            Some(list) => self.cni.check_plugins(list).map_err(|e| plugin(e.to_string()))?,
            None => self.try_bridge().map_err(|e| {
                let message = format!("the built-in bridge does not work here: {e}");
                not_ready("BridgeNotReady", message)
            })?,
        }
        Ok(list)
    }

    async fn attach(self: Arc<Self>, pod: PodNetwork) -> Result<Attachment, Error> {
        let busy = self.busy(&pod.id);
        let _alone = busy.lock().await;
        let list = self.cni.network_for(&pod.handler)?;
        // What an attempt that died has left would be in the way.
        self.clone().take_down(pod.id.clone()).await?;
        let begin = Instant::now();
        let (by, made) = match list {
            Some(list) => ("cni", self.attach_cni(pod, &list).await),
            None => ("bridge", blocking(move || self.attach_bridge(pod)).await),
        };
        if made.is_ok() {
            metrics().network_made(by, begin.elapsed());
        }
        made
    }

    fn attach_bridge(&self, pod: PodNetwork) -> Result<Attachment, Error> {
        let mut record = Record {
            pod,
            via: Via::Bridge,
            attachment: None,
        };
        let ips = self.bridge.attach(&record.pod, &record.to_json()?)?;
        let bridge = self.bridge.name().to_owned();
        let attachment = Attachment {
            ips,
            kind: AttachmentKind::Bridge { bridge },
        };
        record.attachment = Some(attachment.clone());
        record.write(&self.store)?;
        Ok(attachment)
    }

    async fn attach_cni(self: Arc<Self>, mut pod: PodNetwork, list: &Conflist) -> Result<Attachment, Error> {
        // Nothing is recorded, and so nothing is taken down, for plugins that
        // cannot even start.
        self.cni.check_plugins(list)?;
        if list.wants("ipRanges") {
            pod.pod_cidrs = self.bridge.pod_cidrs()?;
        }
        let mut record = Record {
            pod,
            via: Via::Cni(list.clone()),
            attachment: None,
        };
        record.write(&self.store)?;
        match self.cni.add(list, &record.pod).await {
            Ok((result, ips)) => {
                let network = list.name.clone();
                let attachment = Attachment {
                    ips,
                    kind: AttachmentKind::Cni { network, result },
                };
                record.attachment = Some(attachment.clone());
                record.write(&self.store)?;
                Ok(attachment)
            }
            Err(e) => {
                // What cannot be removed now stays recorded; the first error counts.
                let id = record.pod.id;
                if let Err(left) = self.take_down(id.clone()).await {
                    tracing::warn!(sandbox = id, error = %left, "network of a failed pod is not removed yet");
                }
                Err(e.into())
            }
        }
    }

    async fn detach(self: Arc<Self>, id: String) -> Result<(), Error> {
        let busy = self.busy(&id);
        let alone = busy.lock().await;
        let done = self.clone().take_down(id.clone()).await;
        drop(alone);
        let mut all = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        // Two holders: the map and this call. Nobody else waits for it.
        if Arc::strong_count(&busy) <= 2 {
            all.remove(&id);
        }
        done
    }

    async fn take_down(self: Arc<Self>, id: String) -> Result<(), Error> {
        let Some(record) = Record::read(&self.store, &id)? else {
            return Ok(());
        };
        match &record.via {
            Via::Bridge => blocking(move || Ok(self.bridge.detach(&id)?)).await,
            Via::Cni(list) => {
                self.forget_check(&id);
                self.cni.del(list, &record.pod, record.result()).await?;
                Ok(self.store.network_release(&id)?)
            }
        }
    }

    fn try_bridge(&self) -> Result<(), BridgeError> {
        let mut works = self.bridge_works.lock().unwrap_or_else(PoisonError::into_inner);
        if !*works {
            bridge::probe(self.masquerade)?;
            *works = true;
        }
        Ok(())
    }

    fn busy(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(id.to_owned()).or_default().clone()
    }
}

/// Runs `work` to its end, whether or not the caller stays.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work).await.unwrap_or(Err(Error::Stopping))
}

/// Runs blocking work off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(Error::Stopping))
}
