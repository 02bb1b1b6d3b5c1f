//! The configuration of berthd: TOML, defaults, validation. Reads files and
//! nothing else; opens no socket, makes no folder.
//!
//! `config.toml` is read first, then `config.d/*.toml` beside it in the order of
//! their names; a table given later replaces the keys it names. Unknown keys are
//! errors with the file and line. Here are the keys and their defaults; `read`
//! reads them, `check` holds what types cannot say, `change` is for a reload.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

mod change;
mod check;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod handler;
mod read;

pub use self::{
    check::Place,
    handler::RuntimeHandler,
    read::{Loaded, Origin},
};

/// Where the configuration is read from when `--config` is not given.
pub const DEFAULT_PATH: &str = "/etc/berth/config.toml";

/// The configuration with every default and what it means, as it is shipped.
pub const SHIPPED: &str = include_str!("../deploy/config.toml");

/// Errors of reading the configuration; each names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration {path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("configuration {origin}: {key}: {message}")]
    Value {
        origin: Origin,
        key: String,
        message: String,
    },
}

/// The whole configuration, every key with its default.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub grpc: Grpc,
    pub log: Log,
    pub network: Network,
    pub registry: Registry,
    pub image: Image,
    pub streaming: Streaming,
    pub metrics: Metrics,
    pub tracing: Tracing,
    pub cgroup: Cgroup,
    pub runtime: Runtime,
    /// Runtime handlers by name; the default handler is always there.
    pub runtimes: BTreeMap<String, RuntimeHandler>,
}

/// The CRI socket.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    /// Group (gid) that may use the socket besides its owner; the folder is then
    /// 0750 and the socket 0660.
    pub group: Option<u32>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A filter of tracing: "info", "debug", "berth::image=debug,info".
    pub level: String,
    /// "text" or "json".
    pub format: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Folder of CNI configurations. The first `.conflist`, `.conf` or `.json`
    /// by name is used; without one, the built-in bridge is.
    pub cni_conf_dir: PathBuf,
    /// Folders of CNI plugins; the first that has one is used.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Seconds that one run of a CNI plugin may take before it is killed.
    pub cni_timeout: u64,
    /// CNI plugins that run at the same time.
    pub cni_max_plugins: usize,
    /// Seconds between two CNI GCs; 0: only after the start of berthd.
    pub cni_gc_interval: u64,
    /// Name of the built-in bridge, at most 15 bytes. Empty: "berth0", or a name
    /// made from the state folder when that is not the default one.
    pub bridge: String,
    /// Subnets of the built-in bridge, at most one of each family. Empty: free
    /// ones are chosen once and recorded.
    pub subnets: Vec<String>,
    /// MTU of the built-in bridge; 0: the MTU of the default route's link.
    pub mtu: u32,
    /// Traffic that leaves the bridge gets the node's address, and host ports are
    /// served. Needs nf_tables.
    pub masquerade: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// Folder with `HOST/hosts.toml` files, as containerd reads them.
    pub config_path: PathBuf,
    /// Seconds with no byte, or with less than 1 KiB for each, after which a transfer
    /// is given up and tried again.
    pub stall_timeout: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Image {
    /// References that are never removed to free space; reported as pinned.
    pub pinned: Vec<String>,
    /// Layers fetched at the same time, for one image.
    pub max_concurrent_layers: usize,
    /// Most bytes that one layer may unpack to (0: no limit).
    pub max_layer_bytes: u64,
    /// Most files, folders and links that one layer may have (0: no limit).
    pub max_layer_entries: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Streaming {
    /// Where exec, attach and port-forward are served; port 0: any.
    pub address: SocketAddr,
    /// PEM files of the certificate chain and its key: with both, streaming is
    /// served over TLS. They are read again when they change.
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    /// Seconds without a byte either way after which a connection is ended.
    pub idle_timeout: u64,
    /// Seconds a client has to open the streams it needs.
    pub creation_timeout: u64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Where metrics are served to Prometheus: a loopback address with its port,
    /// or "unix:///ABSOLUTE/PATH". Empty: nowhere.
    pub address: String,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tracing {
    /// "http://HOST:PORT" of a collector that takes OTLP by gRPC. Empty: no traces.
    pub endpoint: String,
    /// So many of a million calls whose caller has no span are traced; of the others
    /// those that the caller traces.
    pub sampling_rate_per_million: u32,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cgroup {
    /// "cgroupfs", "systemd", or "auto": systemd where it is process 1 and cgroup v2
    /// is alone, else cgroupfs.
    pub driver: String,
    /// Parent of the cgroups of pods that name none: a path, or with systemd a slice.
    /// Empty: "/berth" or "berth.slice", or a name made from the state folder when
    /// that is not the default one.
    pub parent: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// The handler used when a pod names none.
    pub default: String,
    /// The shim's binary. Empty: `berth-shim` in the folder of berthd.
    pub shim: PathBuf,
    /// Open files of a container, soft and hard.
    pub nofile: [u64; 2],
    /// Folder with the seccomp profiles that `localhost/` references name.
    pub seccomp_profile_root: PathBuf,
    /// Folders with CDI specifications of devices; a later one wins.
    pub cdi_spec_dirs: Vec<PathBuf>,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            level: "info".into(),
            format: "text".into(),
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Network {
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cni_timeout: 60,
            // They queue on file locks of their own (host-local), and a thousand of
            // them would make a node swap.
            cni_max_plugins: 10,
            cni_gc_interval: 3600,
            bridge: String::new(),
            subnets: Vec::new(),
            mtu: 0,
            masquerade: true,
        }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Registry {
            config_path: "/etc/berth/certs.d".into(),
            stall_timeout: 60,
        }
    }
}

impl Default for Image {
    fn default() -> Self {
        Image {
            pinned: Vec::new(),
            max_concurrent_layers: 4,
            max_layer_bytes: 0,
            max_layer_entries: 4_000_000,
        }
    }
}

impl Default for Streaming {
    fn default() -> Self {
        Streaming {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            idle_timeout: 4 * 60 * 60,
            creation_timeout: 30,
        }
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Cgroup {
            driver: "auto".into(),
            parent: String::new(),
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Runtime {
            default: "berth".into(),
            shim: PathBuf::new(),
            nofile: [1_048_576, 1_048_576],
            seccomp_profile_root: "/var/lib/kubelet/seccomp".into(),
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
        }
    }
}

impl Config {
    /// The CNI folders of the handlers that have one of their own.
    pub fn handlers_cni_conf_dirs(&self) -> BTreeMap<String, PathBuf> {
        self.runtimes
            .iter()
            .filter(|(_, handler)| !handler.cni_conf_dir.as_os_str().is_empty())
            .map(|(name, handler)| (name.clone(), handler.cni_conf_dir.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_may_have_a_cni_folder_of_its_own() {
        let text = "[runtimes.a]\ncni_conf_dir = \"/etc/cni/a.d\"\n[runtimes.b]\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(
            config.handlers_cni_conf_dirs(),
            BTreeMap::from([("a".to_owned(), PathBuf::from("/etc/cni/a.d"))])
        );
    }

    #[test]
    fn the_shipped_file_has_every_key_with_its_default() {
        let shipped: toml::Table = toml::from_str(SHIPPED).unwrap();
        let mut own = toml::Table::try_from(Config::default()).unwrap();
        // Handlers besides the default one: none is shipped.
        own.remove("runtimes");
        assert!(shipped.contains_key("network"), "not the file that is shipped");
        for (table, keys) in &own {
            for (key, value) in keys.as_table().unwrap() {
                let found = shipped.get(table).and_then(|t| t.get(key));
                assert_eq!(found, Some(value), "{table}.{key}");
            }
        }
        // The other way round: the file says nothing that is not so.
        let read: Config = toml::from_str(SHIPPED).unwrap();
        let mut read = toml::Table::try_from(read).unwrap();
        read.remove("runtimes");
        own.retain(|_, keys| keys.as_table().is_some_and(|t| !t.is_empty()));
        read.retain(|_, keys| keys.as_table().is_some_and(|t| !t.is_empty()));
        assert_eq!(read, own);
    }
}
