//! Runtime handlers: what a pod's RuntimeClass names.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Seconds: longer than this and Create itself would be given up.
const MAX_TIMEOUT: u64 = 100;

/// One handler.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeHandler {
    /// "berth", the built-in launcher, also when empty; or "oci", a binary with the
    /// command line of OCI runtimes (runc, crun).
    #[serde(rename = "type")]
    pub kind: String,
    /// The binary: absolute, or a name that is looked for in PATH. Empty: the
    /// handler's name. "oci" only, as what follows.
    pub path: PathBuf,
    /// Where the runtime keeps what it knows of its containers (`--root`). Empty:
    /// `runtimes/NAME` in the state folder.
    pub root: PathBuf,
    /// Further arguments before the command.
    pub options: Vec<String>,
    /// Seconds that one run of the binary may take before it is killed.
    pub timeout: u64,
    /// Patterns (with `*` and `?`) of annotations of the pod, and of the container,
    /// that are handed on in config.json.
    pub pod_annotations: Vec<String>,
    pub container_annotations: Vec<String>,
    /// A privileged container gets the devices that it asks for, and not the host's.
    pub privileged_without_host_devices: bool,
    /// Folder of CNI configurations for the pods of this handler; empty:
    /// `network.cni_conf_dir`.
    pub cni_conf_dir: PathBuf,
}

impl Default for RuntimeHandler {
    fn default() -> Self {
        RuntimeHandler {
            kind: String::new(),
            path: PathBuf::new(),
            root: PathBuf::new(),
            options: Vec::new(),
            timeout: 60,
            pod_annotations: Vec::new(),
            container_annotations: Vec::new(),
            privileged_without_host_devices: false,
            cni_conf_dir: PathBuf::new(),
        }
    }
}

impl RuntimeHandler {
    /// An OCI runtime makes the containers.
    pub fn is_oci(&self) -> bool {
        self.kind == "oci"
    }

    /// What types cannot say: the key that is wrong, and why.
    pub(super) fn check(&self, name: &str) -> Result<(), (&'static str, String)> {
        let default = RuntimeHandler::default();
        match self.kind.as_str() {
            "oci" => {}
            "" | "berth" => {
                for (key, set) in [
                    ("path", self.path != default.path),
                    ("root", self.root != default.root),
                    ("options", self.options != default.options),
                    ("timeout", self.timeout != default.timeout),
                ] {
                    if set {
                        let message = "is for an OCI runtime; set type = \"oci\", or leave it out";
                        return Err((key, message.into()));
                    }
                }
            }
            other => {
                return Err((
                    "type",
                    format!("{other:?} is not known; use \"berth\" (the built-in launcher) or \"oci\""),
                ));
            }
        }
        if self.is_oci() && !is_one_name(Path::new(name)) {
            let message = format!("{name:?} is also the name of a folder; use letters, digits and \"-\"");
            return Err(("type", message));
        }
        let empty = self.path.as_os_str().is_empty();
        if !empty && !self.path.is_absolute() && !is_one_name(&self.path) {
            return Err((
                "path",
                format!(
                    "{} is neither an absolute path nor a name to be looked for in PATH",
                    self.path.display()
                ),
            ));
        }
        for (key, folder) in [("root", &self.root), ("cni_conf_dir", &self.cni_conf_dir)] {
            if !folder.as_os_str().is_empty() && !folder.is_absolute() {
                return Err((key, format!("{} is not an absolute path", folder.display())));
            }
        }
        if !(1..=MAX_TIMEOUT).contains(&self.timeout) {
            return Err(("timeout", format!("must be between 1 and {MAX_TIMEOUT} seconds")));
        }
        for taken in [
            "--root",
            "--log",
            "--log-format",
            "--systemd-cgroup",
            "--cgroup-manager",
        ] {
            let same = |option: &&String| option.split('=').next() == Some(taken);
            if let Some(option) = self.options.iter().find(same) {
                return Err(("options", format!("{option:?} is berth's own to set")));
            }
        }
        Ok(())
    }
}

/// A name without folders.
fn is_one_name(path: &Path) -> bool {
    let mut parts = path.components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_names_its_key() {
        let check = |name: &str, text: &str| {
            let handler: RuntimeHandler = toml::from_str(text).unwrap();
            handler.check(name).err().map(|(key, _)| key)
        };
        for (text, key) in [
            ("", None),
            ("type = \"oci\"", None),
            (
                "type = \"oci\"\npath = \"/usr/bin/runc\"\nroot = \"/run/runc\"\ntimeout = 5",
                None,
            ),
            ("type = \"kata\"", Some("type")),
            ("path = \"/usr/bin/runc\"", Some("path")),
            ("timeout = 5", Some("timeout")),
            ("type = \"oci\"\npath = \"bin/runc\"", Some("path")),
            ("type = \"oci\"\nroot = \"runc\"", Some("root")),
            ("type = \"oci\"\ntimeout = 0", Some("timeout")),
            ("type = \"oci\"\ntimeout = 1000", Some("timeout")),
            ("type = \"oci\"\noptions = [\"--root=/x\"]", Some("options")),
            ("cni_conf_dir = \"net.d\"", Some("cni_conf_dir")),
        ] {
            assert_eq!(check("other", text), key, "{text}");
        }
        assert_eq!(check("../x", "type = \"oci\""), Some("type"));
        assert!(toml::from_str::<RuntimeHandler>("systemd = true").is_err());
    }
}
