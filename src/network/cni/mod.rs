//! Networks made by CNI plugins (the specification, versions 0.3.0 to 1.1.0).
//!
//! The configuration that a pod was attached by is recorded with it before the
//! first plugin runs: the pod is detached by that one, whatever the folder holds
//! by then. CHECK, STATUS and GC belong here when they come.

mod capability;
mod config;
mod exec;
mod result;

use std::{ffi::OsString, path::PathBuf, time::Duration};

pub use config::{Conflist, Folder, Invalid};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::pod::PodNetwork;
use crate::kind::{HasKind, Kind};

/// The pod's interface, as every runtime names it.
const INTERFACE: &str = "eth0";
/// How long one plugin may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Plugins that run at the same time: they queue on file locks of their own
/// (host-local), and a thousand of them would make a node swap.
const AT_ONCE: usize = 10;
/// Magic number of the file system of namespaces.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Errors of CNI; each names the network, the plugin and what it did.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(
        "CNI network {network}: plugin {plugin:?} is in none of {dirs:?}: install it, or set network.cni_bin_dirs"
    )]
    Missing {
        network: String,
        plugin: String,
        dirs: Vec<PathBuf>,
    },
    #[error("CNI network {network}: {verb} of plugin {plugin} {failure}")]
    Plugin {
        network: String,
        plugin: String,
        verb: &'static str,
        failure: exec::Failure,
    },
    #[error(
        "CNI network {network}: plugin {plugin} answered {verb} with something else than a result: {message}"
    )]
    Answer {
        network: String,
        plugin: String,
        verb: &'static str,
        message: String,
    },
    #[error("CNI network {network} gave the pod no address on {INTERFACE}")]
    NoAddress { network: String },
    #[error("{message}")]
    Annotation { message: String },
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Invalid(_) | Error::Missing { .. } => Kind::FailedPrecondition,
            Error::Annotation { .. } => Kind::InvalidArgument,
            Error::Plugin { .. } | Error::Answer { .. } | Error::NoAddress { .. } => Kind::Unavailable,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Add,
    Del,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
        }
    }
}

/// Runs CNI plugins.
#[derive(Debug)]
pub struct Cni {
    folder: Folder,
    bin_dirs: Vec<PathBuf>,
    slots: Semaphore,
    limit: Duration,
}

impl Cni {
    pub fn new(conf_dir: PathBuf, bin_dirs: Vec<PathBuf>) -> Cni {
        Cni {
            folder: Folder::new(conf_dir),
            bin_dirs,
            slots: Semaphore::new(AT_ONCE),
            limit: LIMIT,
        }
    }

    #[cfg(test)]
    pub fn with_limit(mut self, limit: Duration) -> Cni {
        self.limit = limit;
        self
    }

    /// The folder of configurations.
    pub fn folder(&self) -> &Folder {
        &self.folder
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
    pub async fn add(
        &self,
        list: &Conflist,
        pod: &PodNetwork,
    ) -> Result<(Value, Vec<std::net::IpAddr>), Error> {
        self.check_plugins(list)?;
        let mut result = None;
        let mut last = "";
        for plugin in &list.plugins {
            last = Conflist::kind(plugin);
            let output = self.call(list, plugin, Verb::Add, pod, result.as_ref()).await?;
            let answer: Value = serde_json::from_slice(&output).map_err(|e| answer(list, last, &e))?;
            result = Some(answer);
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
        let result = result.filter(|_| !list.version.starts_with("0.3."));
        let mut first = Ok(());
        for plugin in list.plugins.iter().rev() {
            if let Err(e) = self.call(list, plugin, Verb::Del, pod, result).await
                && first.is_ok()
            {
                first = Err(e);
            }
        }
        first
    }

    async fn call(
        &self,
        list: &Conflist,
        plugin: &Map<String, Value>,
        verb: Verb,
        pod: &PodNetwork,
        previous: Option<&Value>,
    ) -> Result<Vec<u8>, Error> {
        let kind = Conflist::kind(plugin);
        let program = self.find(list, kind)?;
        let runtime = match capability::runtime_config(plugin, pod) {
            Ok(runtime) => runtime,
            // It did not get past its ADD with that either.
            Err(_) if verb == Verb::Del => Map::new(),
            Err(message) => return Err(Error::Annotation { message }),
        };
        let input = input(list, plugin, runtime, previous);
        let env = self.environment(verb, pod);
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await.ok();
        exec::run(&program, &env, &input, self.limit)
            .await
            .map_err(|failure| Error::Plugin {
                network: list.name.clone(),
                plugin: kind.to_owned(),
                verb: verb.name(),
                failure,
            })
    }

    fn environment(&self, verb: Verb, pod: &PodNetwork) -> Vec<(&'static str, OsString)> {
        let path: Vec<OsString> = self
            .bin_dirs
            .iter()
            .map(|dir| dir.clone().into_os_string())
            .collect();
        // After a reboot, or when the pod lost its namespace, there is none to name.
        let netns = match rustix::fs::statfs(&pod.netns) {
            Ok(stat) if u64::try_from(stat.f_type) == Ok(NSFS_MAGIC) => pod.netns.clone().into_os_string(),
            _ => OsString::new(),
        };
        vec![
            ("CNI_COMMAND", verb.name().into()),
            ("CNI_CONTAINERID", pod.id.clone().into()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", INTERFACE.into()),
            ("CNI_ARGS", arguments(pod).into()),
            ("CNI_PATH", path.join(std::ffi::OsStr::new(":"))),
        ]
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

/// The plugin's configuration as it gets it.
fn input(
    list: &Conflist,
    plugin: &Map<String, Value>,
    runtime: Map<String, Value>,
    previous: Option<&Value>,
) -> Vec<u8> {
    let mut config = plugin.clone();
    config.insert("name".into(), list.name.clone().into());
    config.insert("cniVersion".into(), list.version.clone().into());
    if let Some(previous) = previous {
        config.insert("prevResult".into(), previous.clone());
    }
    if !runtime.is_empty() {
        config.insert("runtimeConfig".into(), Value::Object(runtime));
    }
    Value::Object(config).to_string().into_bytes()
}

/// CNI_ARGS; the kubelet's names consist of letters, digits, '-' and '.', and
/// anything else would let one value pass for another.
fn arguments(pod: &PodNetwork) -> String {
    let plain = |text: &str| text.replace([';', '='], "_");
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        plain(&pod.namespace),
        plain(&pod.name),
        plain(&pod.id),
        plain(&pod.uid)
    )
}

fn answer(list: &Conflist, plugin: &str, message: &dyn std::fmt::Display) -> Error {
    Error::Answer {
        network: list.name.clone(),
        plugin: plugin.to_owned(),
        verb: Verb::Add.name(),
        message: message.to_string(),
    }
}
