//! An OCI runtime binary, as berthd knows it: what it is ([`Probe`]), what is recorded
//! of it with each container ([`OciRuntime`]), and the removal of a container whose
//! shim has died. Everything else the shim has it do (`launcher::oci`).

use std::{
    collections::BTreeSet,
    env, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};

use crate::{
    launcher::{self, Runtime},
    proto::plan,
};

/// How long a binary may take to say what it is.
const PROBE: Duration = Duration::from_secs(10);

/// Where binaries are too, whatever the environment says.
const MORE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Errors of this module; each names the binary.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} is not an executable file{place}", path.display())]
    NotThere { path: PathBuf, place: &'static str },
    #[error(transparent)]
    Removal(#[from] launcher::Error),
    #[error("{} {verb}: {message}", path.display())]
    Run {
        path: PathBuf,
        verb: &'static str,
        message: String,
    },
}

/// A binary that has said what it is.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    /// Absolute.
    pub path: PathBuf,
    /// The first line of its `--version`.
    pub version: String,
    pub features: Features,
}

/// Options of bind mounts that every runtime knows; of one that does not say more by
/// `features` no other is asked.
const MOUNT_OPTIONS: [&str; 24] = [
    "bind",
    "rbind",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
];

/// What a runtime can do that not every one can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Options of bind mounts.
    pub mount_options: BTreeSet<String>,
    /// Mounts that show their owners through a user namespace.
    pub id_mapped_mounts: bool,
    /// Execs in a cgroup below the container's.
    pub exec_cgroup: bool,
}

/// The runtime of a container: recorded, for it must be the same one that removes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OciRuntime {
    /// The handler's name.
    pub handler: String,
    pub path: PathBuf,
    /// Where it keeps what it knows.
    pub root: PathBuf,
    /// Global arguments.
    pub args: Vec<String>,
    /// Seconds that one run may take.
    pub timeout: u32,
    pub exec_cgroup: bool,
    /// It has systemd make the cgroup.
    pub systemd: bool,
}

/// The executable file that is asked for: as it is when absolute, else in PATH.
pub fn find(asked: &Path) -> Result<PathBuf, Error> {
    let is_program = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if asked.is_absolute() {
        return if is_program(asked) {
            Ok(asked.into())
        } else {
            let path = asked.into();
            Err(Error::NotThere { path, place: "" })
        };
    }
    let own = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&own).chain(env::split_paths(MORE_PATH));
    let mut found = folders
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(asked));
    found
        .find(|path| is_program(path))
        .ok_or_else(|| Error::NotThere {
            path: asked.into(),
            place: " of a folder in PATH",
        })
}

impl Probe {
    /// Asks the binary. One that knows no `features` (crun before 1.9) is taken for one
    /// that has none.
    ///
    /// # Errors
    /// It cannot be executed, or not even say its version.
    pub async fn take(path: PathBuf) -> Result<Probe, Error> {
        let version = say(&path, "--version", &[]).await?;
        let first = version.lines().next().unwrap_or_default().trim().to_owned();
        let mut features = match say(&path, "features", &[]).await {
            Ok(text) => Features::read(&text),
            Err(error) => {
                tracing::debug!(%error, "it does not say its features");
                Features::read("")
            }
        };
        let help = say(&path, "exec", &["--help"]).await;
        features.exec_cgroup = help.is_ok_and(|text| text.contains("--cgroup"));
        Ok(Probe {
            path,
            version: first,
            features,
        })
    }
}

impl Features {
    /// Mounts can be read-only with all below them.
    pub fn recursive_read_only(&self) -> bool {
        self.mount_options.contains("rro")
    }

    /// Of the JSON of `features`, runtime spec "Features Structure".
    fn read(text: &str) -> Features {
        let json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let said = json["mountOptions"].as_array().into_iter().flatten();
        let said = said.filter_map(|option| option.as_str());
        Features {
            mount_options: MOUNT_OPTIONS.into_iter().chain(said).map(str::to_owned).collect(),
            id_mapped_mounts: json["linux"]["mountExtensions"]["idmap"]["enabled"] == true,
            exec_cgroup: false,
        }
    }
}

/// What the binary writes to standard output.
async fn say(path: &Path, verb: &'static str, more: &[&str]) -> Result<String, Error> {
    let failed = |message: String| Error::Run {
        path: path.into(),
        verb,
        message,
    };
    let mut command = tokio::process::Command::new(path);
    command
        .arg(verb)
        .args(more)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PROBE, command.output()).await;
    let output = output
        .map_err(|_| failed(format!("took longer than {} s and was killed", PROBE.as_secs())))?
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, words.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl OciRuntime {
    /// As the shim is told of it.
    pub fn plan(&self) -> plan::Runtime {
        plan::Runtime {
            path: self.path.display().to_string(),
            args: self.args.clone(),
            timeout: self.timeout,
            exec_cgroup: self.exec_cgroup,
        }
    }

    /// Has the runtime forget a container: its shim does so at the end, and may have
    /// died. `bundle` is the container's. Nothing to do when the runtime knows no such
    /// container.
    ///
    /// # Errors
    /// What the runtime said; [`OciRuntime::forget`] is left then.
    pub async fn delete(&self, id: &str, bundle: &Path) -> Result<(), Error> {
        if !self.root.join(id).exists() {
            return Ok(());
        }
        let (plan, id, bundle) = (self.plan(), id.to_owned(), bundle.to_owned());
        let done = tokio::task::spawn_blocking(move || Runtime::new(&plan, &id, &bundle)?.delete()).await;
        match done {
            Ok(done) => Ok(done?),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Removes what the runtime has left of a container whose processes and cgroup are
    /// gone: its binary may be gone too. Idempotent; blocks.
    pub fn forget(&self, id: &str) -> io::Result<()> {
        match std::fs::remove_dir_all(self.root.join(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_for() {
        assert!(find(Path::new("sh")).unwrap().is_absolute());
        assert_eq!(find(Path::new("/bin/sh")).unwrap(), Path::new("/bin/sh"));
        for missing in ["/nonexistent/runc", "no-such-runtime", "/etc/passwd", "/bin"] {
            assert!(find(Path::new(missing)).is_err(), "{missing}");
        }
    }

    #[test]
    fn features_are_those_that_are_said() {
        let text = r#"{"mountOptions":["ro","rro"],"linux":{"mountExtensions":{"idmap":{"enabled":true}}}}"#;
        let read = Features::read(text);
        assert!(read.recursive_read_only() && read.id_mapped_mounts);
        let silent = Features::read("no json");
        assert!(!silent.recursive_read_only() && !silent.id_mapped_mounts);
        assert!(silent.mount_options.contains("nosuid"));
        assert_eq!(Features::read("{}"), silent);
    }
}
