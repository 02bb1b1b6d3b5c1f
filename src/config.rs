//! The configuration of berthd: TOML, defaults, validation. Reads files and
//! nothing else; opens no socket, makes no folder.
//!
//! `config.toml` is read first, then `config.d/*.toml` beside it in the order of
//! their names; a table given later replaces the keys it names. Unknown keys are
//! errors with the file and line.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Where the configuration is read from when `--config` is not given.
pub const DEFAULT_PATH: &str = "/etc/berth/config.toml";

/// Errors of reading the configuration; each names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration {path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("configuration: {key}: {message}")]
    Value { key: String, message: String },
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
    /// Seconds without a byte after which a transfer is given up and tried again.
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

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cgroup {
    /// "auto" or "cgroupfs".
    pub driver: String,
    /// Parent of the cgroups of pods that name none. Empty: "/berth", or a name
    /// made from the state folder when that is not the default one.
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

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeHandler {
    /// "berth": the built-in launcher, the only kind so far.
    #[serde(rename = "type")]
    pub kind: String,
    /// Folder of CNI configurations for the pods of this handler; empty:
    /// `network.cni_conf_dir`.
    pub cni_conf_dir: PathBuf,
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
    /// Reads `path` and the `config.d` folder beside it. A missing file is an
    /// error only when it is `required` (that is, named by the user).
    pub fn load(path: &Path, required: bool) -> Result<Config, Error> {
        let mut table = toml::Table::new();
        match fs::read_to_string(path) {
            Ok(text) => merge(&mut table, parse(path, &text)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => {}
            Err(source) => {
                return Err(Error::Read {
                    path: path.into(),
                    source,
                });
            }
        }
        for part in parts(path)? {
            let text = fs::read_to_string(&part).map_err(|source| Error::Read {
                path: part.clone(),
                source,
            })?;
            merge(&mut table, parse(&part, &text)?);
        }
        let config: Config = table.try_into().map_err(|e: toml::de::Error| Error::Parse {
            path: path.into(),
            message: e.to_string(),
        })?;
        config.check()?;
        Ok(config)
    }

    /// The CNI folders of the handlers that have one of their own.
    pub fn handlers_cni_conf_dirs(&self) -> BTreeMap<String, PathBuf> {
        self.runtimes
            .iter()
            .filter(|(_, handler)| !handler.cni_conf_dir.as_os_str().is_empty())
            .map(|(name, handler)| (name.clone(), handler.cni_conf_dir.clone()))
            .collect()
    }

    /// What types cannot say.
    fn check(&self) -> Result<(), Error> {
        let wrong = |key: &str, message: String| {
            Err(Error::Value {
                key: key.into(),
                message,
            })
        };
        match self.cgroup.driver.as_str() {
            "auto" | "cgroupfs" => {}
            "systemd" => {
                return wrong(
                    "cgroup.driver",
                    "the systemd driver is not there yet; use \"cgroupfs\"".into(),
                );
            }
            other => {
                return wrong(
                    "cgroup.driver",
                    format!("{other:?} is neither \"auto\" nor \"cgroupfs\""),
                );
            }
        }
        if self.network.bridge.len() > 15 {
            return wrong(
                "network.bridge",
                format!("{:?} is longer than 15 bytes", self.network.bridge),
            );
        }
        for (key, is_zero) in [
            ("network.cni_timeout", self.network.cni_timeout == 0),
            ("network.cni_max_plugins", self.network.cni_max_plugins == 0),
        ] {
            if is_zero {
                return wrong(key, "must be at least 1".into());
            }
        }
        if !matches!(self.log.format.as_str(), "text" | "json") {
            return wrong(
                "log.format",
                format!("{:?} is neither \"text\" nor \"json\"", self.log.format),
            );
        }
        for (name, handler) in &self.runtimes {
            if !matches!(handler.kind.as_str(), "" | "berth") {
                return wrong(
                    &format!("runtimes.{name}.type"),
                    format!("{:?} is not known; only \"berth\" is", handler.kind),
                );
            }
            let folder = &handler.cni_conf_dir;
            if !folder.as_os_str().is_empty() && !folder.is_absolute() {
                return wrong(
                    &format!("runtimes.{name}.cni_conf_dir"),
                    format!("{} is not an absolute path", folder.display()),
                );
            }
        }
        if self.runtime.default != "berth" && !self.runtimes.contains_key(&self.runtime.default) {
            return wrong(
                "runtime.default",
                format!("there is no [runtimes.{}]", self.runtime.default),
            );
        }
        if self.streaming.tls_cert.as_os_str().is_empty() != self.streaming.tls_key.as_os_str().is_empty() {
            return wrong(
                "streaming",
                "tls_cert and tls_key are needed both, or neither".into(),
            );
        }
        if self.streaming.idle_timeout == 0 || self.streaming.creation_timeout == 0 {
            return wrong(
                "streaming",
                "idle_timeout and creation_timeout must be at least 1".into(),
            );
        }
        if let Some(folder) = self
            .runtime
            .cdi_spec_dirs
            .iter()
            .find(|folder| !folder.is_absolute())
        {
            return wrong(
                "runtime.cdi_spec_dirs",
                format!("{} is not an absolute path", folder.display()),
            );
        }
        if self.image.max_concurrent_layers == 0 {
            return wrong("image.max_concurrent_layers", "must be at least 1".into());
        }
        Ok(())
    }
}

/// Parses one file as a configuration by itself, so that an unknown key is
/// reported with the line of this file.
fn parse(path: &Path, text: &str) -> Result<toml::Table, Error> {
    let wrong = |e: toml::de::Error| Error::Parse {
        path: path.into(),
        message: e.to_string(),
    };
    toml::from_str::<Config>(text).map_err(wrong)?;
    toml::from_str(text).map_err(wrong)
}

/// `config.d/*.toml` beside the file, by name.
fn parts(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let folder = path.with_file_name("config.d");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Read { path: folder, source }),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| Error::Read {
            path: folder.clone(),
            source,
        })?;
        if entry.path().extension().is_some_and(|e| e == "toml") {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Tables are merged key by key; anything else is replaced.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_replace_the_keys_they_name() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        fs::write(&main, "[network]\nbridge = \"b0\"\nmtu = 1400\n").unwrap();
        fs::create_dir(dir.path().join("config.d")).unwrap();
        fs::write(dir.path().join("config.d/10-a.toml"), "[network]\nmtu = 9000\n").unwrap();
        let config = Config::load(&main, true).unwrap();
        assert_eq!((config.network.bridge.as_str(), config.network.mtu), ("b0", 9000));
    }

    #[test]
    fn unknown_keys_are_errors_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        fs::write(&main, "[network]\nbridge = \"b0\"\nbrige = \"b1\"\n").unwrap();
        let message = Config::load(&main, true).unwrap_err().to_string();
        assert!(
            message.contains("line 3") && message.contains("brige"),
            "{message}"
        );
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_named() {
        let missing = Path::new("/nonexistent/berth/config.toml");
        assert!(Config::load(missing, false).is_ok());
        assert!(Config::load(missing, true).is_err());
    }

    #[test]
    fn wrong_values_name_their_key() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        for (text, key) in [
            ("[cgroup]\ndriver = \"cgroups\"", "cgroup.driver"),
            ("[network]\ncni_timeout = 0", "network.cni_timeout"),
            ("[network]\ncni_max_plugins = 0", "network.cni_max_plugins"),
            (
                "[runtimes.other]\ncni_conf_dir = \"net.d\"",
                "runtimes.other.cni_conf_dir",
            ),
        ] {
            fs::write(&main, text).unwrap();
            let message = Config::load(&main, true).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
    }

    #[test]
    fn a_handler_may_have_a_cni_folder_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        let text = "[runtimes.a]\ncni_conf_dir = \"/etc/cni/a.d\"\n[runtimes.b]\n";
        fs::write(&main, text).unwrap();
        let folders = Config::load(&main, true).unwrap().handlers_cni_conf_dirs();
        assert_eq!(
            folders,
            BTreeMap::from([("a".to_owned(), PathBuf::from("/etc/cni/a.d"))])
        );
    }
}
