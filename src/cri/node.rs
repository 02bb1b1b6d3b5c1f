//! What the verbs work on: one node, its folders, its objects.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    cgroup_parents::CgroupParents,
    error::{Error, Shared},
};
use crate::{
    config::Config,
    image::Images,
    instance::Instance,
    network::Network,
    pod::{Events, Operations, Pods, Stage},
    runtime::{CgroupDriver, ForkServer, Handlers, Surroundings},
    spec::Host,
    store::Store,
    sys::allocator,
};

/// The folders of one berthd.
#[derive(Clone, Debug)]
pub struct Paths {
    /// What outlives a reboot: records, images, writable layers.
    pub root: PathBuf,
    /// What does not: namespaces, sockets, bundles.
    pub state: PathBuf,
}

impl Paths {
    pub fn sandbox(&self, id: &str) -> PathBuf {
        self.state.join("sandboxes").join(id)
    }

    /// Where the sandbox's namespaces are pinned.
    pub fn namespaces(&self, id: &str) -> PathBuf {
        self.sandbox(id).join("ns")
    }

    /// The bundle of a container, or of a sandbox's init.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.state.join("containers").join(id)
    }

    /// The writable layer and the volumes of a container.
    pub fn container(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }
}

/// A node.
#[derive(Debug)]
pub struct Node {
    pub config: Config,
    pub instance: Instance,
    pub paths: Paths,
    pub store: Arc<Store>,
    pub images: Arc<Images>,
    pub network: Arc<Network>,
    pub shim: ForkServer,
    /// What shims are told of this machine.
    pub surroundings: Surroundings,
    pub handlers: Handlers,
    /// What this machine can do, found once.
    pub host: Host,
    pub pods: Pods,
    /// Who makes the cgroups of containers.
    pub cgroups: CgroupDriver,
    pub cgroup_parents: CgroupParents,
    /// What GetContainerEvents hears.
    pub events: Events,
    /// Everything that changes something, keyed by object. The result is the id
    /// of what was made, or empty.
    pub operations: Arc<Operations<Result<String, Shared>>>,
}

/// How long after an operation the memory that it needed is given back: others that come
/// within that time need it again.
const REST: Duration = Duration::from_secs(1);

/// Has free heap pages given back to the kernel when the work of the moment is done. The
/// threads that make pods each have a heap of their own, and 60 pods left 9 MiB in them.
fn give_memory_back() {
    static WAITS: AtomicBool = AtomicBool::new(false);
    if !WAITS.swap(true, Ordering::Relaxed) {
        tokio::spawn(async {
            tokio::time::sleep(REST).await;
            WAITS.store(false, Ordering::Relaxed);
            // It takes each heap's lock, for some 100 us.
            let _ = tokio::task::spawn_blocking(allocator::trim).await;
        });
    }
}

impl Node {
    /// Runs `work` as the operation `key`, or joins the one that runs.
    pub async fn operate<W>(
        &self,
        key: String,
        limit: Option<Duration>,
        work: impl FnOnce(Stage) -> W,
    ) -> Result<String, Error>
    where
        W: Future<Output = Result<String, Error>> + Send + 'static,
    {
        let done = self
            .operations
            .join(key, limit, |stage| {
                let work = work(stage);
                async move { work.await.map_err(Arc::new) }
            })
            .await;
        give_memory_back();
        Ok(done??)
    }

    /// The handler that a request names must be there; empty is the default one.
    pub fn check_handler(&self, name: &str) -> Result<(), Error> {
        Ok(self.handlers.get(name).map(drop)?)
    }

    /// The name of the handler that a request names; empty is the default one.
    pub fn handler<'a>(&'a self, name: &'a str) -> &'a str {
        if name.is_empty() {
            &self.config.runtime.default
        } else {
            name
        }
    }
}
