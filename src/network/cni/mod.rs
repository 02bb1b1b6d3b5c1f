//! Networks made by CNI plugins (the specification, versions 0.3.0 to 1.1.0).
//!
//! The configuration that a pod was attached by is recorded with it before the
//! first plugin runs, and what the last one answered when all have: the pod is
//! checked and detached by that, whatever the folder holds by then.

mod capability;
mod config;
mod error;
mod exec;
mod folder;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod garbage;
mod request;
mod result;
mod status;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

pub use config::Conflist;
pub use error::Error;
pub use folder::Folder;
use serde_json::Value;
use tokio::sync::{RwLock, Semaphore};

use self::request::{Request, Verb};
use super::pod::PodNetwork;

/// The pod's interface, as every runtime names it.
const INTERFACE: &str = "eth0";
/// CHECK and GC make no pod's network, so pods do not wait for them as long as for
/// what does.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Runs CNI plugins.
#[derive(Debug)]
pub struct Cni {
    folder: Folder,
    /// Of the runtime handlers that have one of their own.
    of_handlers: BTreeMap<String, Folder>,
    bin_dirs: Vec<PathBuf>,
    slots: Semaphore,
    /// How long one run of a plugin may take.
    limit: Duration,
    /// ADD and DEL hold it shared, GC alone, as the specification wants it.
    gate: RwLock<()>,
    last_status: tokio::sync::Mutex<Option<status::Answer>>,
}

impl Cni {
    /// `handlers`: the folders of the runtime handlers that have one of their own.
    pub fn new(config: &crate::config::Network, handlers: BTreeMap<String, PathBuf>) -> Cni {
        Cni {
            folder: Folder::new(config.cni_conf_dir.clone()),
            of_handlers: handlers
                .into_iter()
                .map(|(handler, path)| (handler, Folder::new(path)))
                .collect(),
            bin_dirs: config.cni_bin_dirs.clone(),
            slots: Semaphore::new(config.cni_max_plugins),
            limit: Duration::from_secs(config.cni_timeout),
            gate: RwLock::new(()),
            last_status: tokio::sync::Mutex::new(None),
        }
    }

    /// The folders of handlers, by the handler's name.
    pub fn folders_of_handlers(&self) -> &BTreeMap<String, Folder> {
        &self.of_handlers
    }

    /// The configuration for a pod of the handler. None: there is no CNI network.
    /// A handler's own folder must have one: its pods are not to end up in
    /// another network than the one that was set up for them.
    pub fn network_for(&self, handler: &str) -> Result<Option<Arc<Conflist>>, Error> {
        let Some(folder) = self.of_handlers.get(handler) else {
            return Ok(self.folder.current()?);
        };
        let list = folder.current()?.ok_or_else(|| Error::NoneForHandler {
            handler: handler.to_owned(),
            folder: folder.path().to_path_buf(),
        })?;
        Ok(Some(list))
    }

    /// Checks that every plugin of the list is there.
    pub fn check_plugins(&self, list: &Conflist) -> Result<(), Error> {
        list.plugins
            .iter()
            .try_for_each(|plugin| self.find(list, Conflist::kind(plugin)).map(|_| ()))
    }

    /// ADD of every plugin in turn, each getting the result of the one before.
    /// Gives the last result, after checking that it has an address for the pod.
    /// After an error the caller runs [`Cni::del`] over the whole list.
    pub async fn add(&self, list: &Conflist, pod: &PodNetwork) -> Result<(Value, Vec<IpAddr>), Error> {
        self.check_plugins(list)?;
        let _shared = self.gate.read().await;
        let mut result = None;
        let mut last = "";
        for plugin in &list.plugins {
            last = Conflist::kind(plugin);
            let request = Request::of_pod(Verb::Add, list, plugin, pod, result.as_ref());
            let output = self.call(request).await?;
            result = Some(result::read(&output, &list.version).map_err(|e| answer(list, last, &e))?);
        }
        let result = result.unwrap_or_default();
        let ips = result::addresses(&result, INTERFACE).map_err(|e| answer(list, last, &e))?;
        if ips.is_empty() {
            let network = list.name.clone();
            return Err(Error::NoAddress { network });
        }
        Ok((result, ips))
    }

    /// DEL of every plugin, the last one first. One that fails does not keep the
    /// others from cleaning up; the first error is returned, for another try.
    pub async fn del(&self, list: &Conflist, pod: &PodNetwork, result: Option<&Value>) -> Result<(), Error> {
        // Plugins get the result back since 0.4.0.
        let result = result.filter(|_| list.speaks("0.4.0"));
        let _shared = self.gate.read().await;
        let mut first = Ok(());
        for plugin in list.plugins.iter().rev() {
            let request = Request::of_pod(Verb::Del, list, plugin, pod, result);
            if let Err(e) = self.call(request).await
                && first.is_ok()
            {
                first = Err(e);
            }
        }
        first
    }

    /// CHECK of every plugin in turn, up to the first that finds something wrong.
    /// Nothing is asked where the configuration says so, or is older than CHECK.
    pub async fn check(&self, list: &Conflist, pod: &PodNetwork, result: &Value) -> Result<(), Error> {
        if list.disable_check || !list.speaks("0.4.0") {
            return Ok(());
        }
        for plugin in &list.plugins {
            let request = Request::of_pod(Verb::Check, list, plugin, pod, Some(result));
            match self.call(request).await {
                Err(e) if !e.is_unknown_verb() => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Runs a plugin when its turn comes.
    async fn call(&self, request: Request<'_>) -> Result<Vec<u8>, Error> {
        let limit = match request.verb {
            Verb::Add | Verb::Del => self.limit,
            Verb::Check | Verb::Gc | Verb::Status => self.limit.min(LOOK_LIMIT),
        };
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await.ok();
        self.run(request, limit).await
    }

    /// Runs a plugin now.
    async fn run(&self, request: Request<'_>, limit: Duration) -> Result<Vec<u8>, Error> {
        let kind = Conflist::kind(request.plugin);
        let program = self.find(request.list, kind)?;
        let input = request.input().map_err(|message| Error::Annotation { message })?;
        exec::run(&program, &request.environment(&self.bin_dirs), &input, limit)
            .await
            .map_err(|failure| Error::Plugin {
                network: request.list.name.clone(),
                plugin: kind.to_owned(),
                verb: request.verb,
                failure,
            })
    }

    fn find(&self, list: &Conflist, kind: &str) -> Result<PathBuf, Error> {
        let candidates = self.bin_dirs.iter().map(|dir| dir.join(kind));
        candidates
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| Error::Missing {
                network: list.name.clone(),
                plugin: kind.to_owned(),
                dirs: self.bin_dirs.clone(),
            })
    }
}

fn answer(list: &Conflist, plugin: &str, message: &dyn std::fmt::Display) -> Error {
    Error::Answer {
        network: list.name.clone(),
        plugin: plugin.to_owned(),
        message: message.to_string(),
    }
}
