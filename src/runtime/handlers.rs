//! Runtime handlers: the built-in launcher, and OCI runtime binaries, which are looked
//! at when berthd starts. One that is missing then refuses its pods, and is looked for
//! again when one comes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::oci::{self, OciRuntime, Probe};
use crate::{
    config::{Config, RuntimeHandler},
    kind::{HasKind, Kind},
};

/// The handler that is there without a configuration.
const BUILT_IN: &str = "berth";

/// Errors of this module; each names the handler.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "runtime handler {0:?} is not configured: add [runtimes.{0}] to the configuration, or ask for another"
    )]
    Unknown(String),
    #[error("runtime handler {name:?}: {source}; install it, or set runtimes.{name}.path")]
    Missing { name: String, source: oci::Error },
    #[error("runtime handler {name:?}: {source}")]
    Unfit { name: String, source: oci::Error },
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Unknown(_) => Kind::NotFound,
            Error::Missing { .. } | Error::Unfit { .. } => Kind::FailedPrecondition,
        }
    }
}

/// All handlers of this node.
#[derive(Debug)]
pub struct Handlers {
    default: String,
    by_name: BTreeMap<String, Handler>,
}

/// One handler.
#[derive(Debug)]
pub struct Handler {
    pub name: String,
    pub settings: RuntimeHandler,
    /// Absolute: what `runtimes.NAME.root` comes to.
    root: PathBuf,
    probe: Mutex<Option<Probe>>,
}

impl Handlers {
    /// Those of the configuration; `state` is the folder below which runtimes keep
    /// what they know.
    pub fn new(config: &Config, state: &Path) -> Handlers {
        let mut settings = config.runtimes.clone();
        settings.entry(BUILT_IN.into()).or_default();
        let handler = |(name, settings): (String, RuntimeHandler)| {
            let root = if settings.root.as_os_str().is_empty() {
                state.join("runtimes").join(&name)
            } else {
                settings.root.clone()
            };
            let handler = Handler {
                name: name.clone(),
                settings,
                root,
                probe: Mutex::new(None),
            };
            (name, handler)
        };
        Handlers {
            default: config.runtime.default.clone(),
            by_name: settings.into_iter().map(handler).collect(),
        }
    }

    /// The folders below the state folder in which runtimes keep what they know.
    pub fn own_roots(&self) -> impl Iterator<Item = &Path> {
        let own =
            |handler: &&Handler| handler.settings.is_oci() && handler.settings.root.as_os_str().is_empty();
        self.by_name
            .values()
            .filter(own)
            .map(|handler| handler.root.as_path())
    }

    /// Looks at the binaries, side by side, and says in the log what they are.
    pub async fn look(&self) {
        let each = self.by_name.values().filter(|handler| handler.settings.is_oci());
        let looks = each.map(|handler| async move {
            match handler.probe().await {
                Ok(Some(found)) => tracing::info!(
                    handler = handler.name, path = %found.path.display(), version = found.version,
                    recursive_read_only = found.features.recursive_read_only(),
                    id_mapped_mounts = found.features.id_mapped_mounts, "runtime handler"
                ),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "its pods are refused until then"),
            }
        });
        futures_util::future::join_all(looks).await;
    }

    /// The handler that a request names; empty: the default one.
    pub fn get(&self, name: &str) -> Result<&Handler, Error> {
        let name = if name.is_empty() { &self.default } else { name };
        let found = self.by_name.get(name);
        found.ok_or_else(|| Error::Unknown(name.to_owned()))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Handler> {
        self.by_name.values()
    }
}

impl Handler {
    /// Whether an OCI runtime makes its containers; what it is, looked at now when it
    /// was not there before. None: the built-in launcher.
    ///
    /// # Errors
    /// The binary is missing, or is no OCI runtime.
    pub async fn probe(&self) -> Result<Option<Probe>, Error> {
        if !self.settings.is_oci() {
            return Ok(None);
        }
        if let Some(known) = self.known() {
            return Ok(Some(known));
        }
        let own = Path::new(&self.name);
        let asked = match &self.settings.path {
            path if path.as_os_str().is_empty() => own,
            path => path,
        };
        let name = self.name.clone();
        let found = match oci::find(asked) {
            Ok(path) => Probe::take(path)
                .await
                .map_err(|source| Error::Unfit { name, source })?,
            Err(source) => return Err(Error::Missing { name, source }),
        };
        *self.probe.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.clone());
        Ok(Some(found))
    }

    /// What was found of its binary before; also None when it needs none.
    pub fn known(&self) -> Option<Probe> {
        self.probe.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What makes a container of this handler, to be recorded with it; `systemd`: cgroups
    /// are made by systemd. None: the built-in launcher.
    ///
    /// # Errors
    /// As [`Handler::probe`].
    pub async fn runtime(&self, systemd: bool) -> Result<Option<OciRuntime>, Error> {
        let Some(probe) = self.probe().await? else {
            return Ok(None);
        };
        let mut args = vec!["--root".to_owned(), self.root.display().to_string()];
        if systemd {
            args.push("--systemd-cgroup".into());
        }
        args.extend(self.settings.options.iter().cloned());
        Ok(Some(OciRuntime {
            handler: self.name.clone(),
            path: probe.path,
            root: self.root.clone(),
            args,
            timeout: u32::try_from(self.settings.timeout).unwrap_or(u32::MAX),
            exec_cgroup: probe.features.exec_cgroup,
            systemd,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handlers(text: &str) -> Handlers {
        Handlers::new(&toml::from_str(text).unwrap(), Path::new("/state"))
    }

    #[tokio::test]
    async fn the_built_in_one_is_always_there() {
        let all = handlers("");
        assert_eq!(all.get("").unwrap().name, "berth");
        assert!(all.get("berth").unwrap().probe().await.unwrap().is_none());
        let error = all.get("nope").unwrap_err();
        assert!(error.to_string().contains("[runtimes.nope]"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_binary_is_found_when_it_comes() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fake");
        let text = format!(
            "[runtime]\ndefault = \"fake\"\n[runtimes.fake]\ntype = \"oci\"\npath = {path:?}\noptions = [\"--debug\"]\n"
        );
        let all = handlers(&text);
        let fake = all.get("").unwrap();
        let error = fake.probe().await.unwrap_err();
        assert!(error.to_string().contains("runtimes.fake.path"), "{error}");
        let script = "#!/bin/sh\ncase $1 in --version) echo fake 1.2;; \
             features) echo '{\"mountOptions\":[\"rro\"]}';; *) echo --cgroup;; esac\n";
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let found = fake.probe().await.unwrap().unwrap();
        assert_eq!(found.version, "fake 1.2");
        assert!(found.features.recursive_read_only() && !found.features.id_mapped_mounts);
        let runtime = fake.runtime(true).await.unwrap().unwrap();
        assert_eq!(
            runtime.args,
            ["--root", "/state/runtimes/fake", "--systemd-cgroup", "--debug"]
        );
        assert!(runtime.exec_cgroup);
    }
}
