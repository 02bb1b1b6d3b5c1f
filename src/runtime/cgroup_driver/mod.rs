//! Who makes the cgroups of containers: the shim by itself ("cgroupfs"), or systemd
//! ("systemd"), which then has one delegated transient scope per container, in the
//! slice that the kubelet names. D-Bus is spoken here and nowhere else.
//!
//! A scope needs a process to begin with, and the init must be cloned into a cgroup
//! that is there. So berthd starts the scope with a process that only waits (the
//! shim's binary, [`Hold`]), the shim clones the init into the scope, and then the
//! waiting one ends. It ends with berthd too, and a scope without processes is
//! taken away by systemd: whatever dies in between, nothing is left.
//!
//! The path of a cgroup says by whom it is: scopes end in ".scope". So what was made
//! with one driver is removed rightly after berthd was told to use the other.

pub mod shims;
mod systemd;
mod unit;

use std::{path::Path, process::Stdio, sync::Arc};

use zbus::Variant;

use self::{shims::Shims, systemd::Systemd, unit::Property};
use super::ShimBinary;
use crate::{
    cgroup::{self, Cgroup, Layout},
    kind::{HasKind, Kind},
    proto::plan::Resources,
};

/// systemd ends a scope that it is told to stop with SIGTERM, and after this long
/// with SIGKILL. The kubelet's grace periods are berthd's business, not systemd's.
const STOP_TIMEOUT_USEC: u64 = 10_000_000;

/// Errors of this module; each names the unit or the cgroup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cgroup.driver is \"systemd\", but {0}; use \"auto\" or \"cgroupfs\"")]
    Unfit(String),
    #[error("cgroup parent {parent:?} {reason}")]
    Parent { parent: String, reason: &'static str },
    #[error("limits of {path}: {reason}")]
    Limits { path: String, reason: String },
    #[error("start the process that holds {path}: {source}")]
    Hold { path: String, source: std::io::Error },
    #[error("ask systemd to stop {path}: {source}")]
    Runtime { path: String, source: std::io::Error },
    #[error(transparent)]
    Systemd(#[from] systemd::Error),
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Parent { .. } | Error::Limits { .. } => Kind::InvalidArgument,
            Error::Unfit(_) => Kind::FailedPrecondition,
            Error::Systemd(systemd::Error::Unreachable(_)) => Kind::Unavailable,
            Error::Systemd(systemd::Error::Slow { .. }) => Kind::DeadlineExceeded,
            _ => Kind::Internal,
        }
    }
}

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Cgroupfs,
    Systemd,
}

impl Driver {
    /// The parent of pods that name none, as a pod would ask for it.
    fn own_parent(self, instance: &str) -> String {
        match self {
            Driver::Cgroupfs => format!("/{instance}"),
            // A "-" would put it below the slice of another instance.
            Driver::Systemd => format!("{}.slice", instance.replace('-', "_")),
        }
    }
}

/// The driver of this node.
#[derive(Debug)]
pub struct CgroupDriver {
    driver: Driver,
    /// Parent of the cgroups of pods that name none, a path.
    own_parent: String,
    systemd: Arc<Systemd>,
    /// Where shims go; None: they stay in the cgroup of berthd.
    shims: Option<Arc<Shims>>,
}

/// The process that holds a scope until it has an init; it ends when this is dropped.
#[derive(Debug)]
pub struct Hold {
    /// Its standard input: it waits for the end of that.
    _input: tokio::process::ChildStdin,
}

impl CgroupDriver {
    /// The driver that the configuration asks for. "auto" is systemd where process 1
    /// is systemd, answers, and cgroup v2 is alone. `configured` is the parent of the
    /// configuration, may be empty; `instance` is the name of this berthd.
    ///
    /// # Errors
    /// [`Error::Unfit`] when systemd is asked for and cannot be, [`Error::Parent`]
    /// when the configured parent is one of the other driver.
    pub async fn choose(asked: &str, configured: &str, instance: &str) -> Result<CgroupDriver, Error> {
        let systemd = Arc::new(Systemd::default());
        let driver = match asked {
            "cgroupfs" => Driver::Cgroupfs,
            asked => match fitness(&systemd).await {
                Ok(version) => {
                    tracing::info!(version, "cgroups are made by systemd");
                    Driver::Systemd
                }
                Err(why) if asked == "systemd" => return Err(Error::Unfit(why)),
                Err(why) => {
                    tracing::info!(why, "cgroups are made without systemd");
                    Driver::Cgroupfs
                }
            },
        };
        let mut chosen = CgroupDriver {
            driver,
            own_parent: String::new(),
            shims: (driver == Driver::Systemd).then(|| Arc::new(Shims::new(systemd.clone(), instance))),
            systemd,
        };
        let default = driver.own_parent(instance);
        chosen.own_parent = chosen.parent(if configured.is_empty() {
            &default
        } else {
            configured
        })?;
        Ok(chosen)
    }

    /// Who makes cgroups.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The scope that new shims are moved to, with the systemd driver.
    pub fn shims(&self) -> Option<Arc<Shims>> {
        self.shims.clone()
    }

    /// The path of the cgroup that a pod asks for as its parent; empty: our own.
    pub fn parent(&self, asked: &str) -> Result<String, Error> {
        let refused = |reason| {
            Err(Error::Parent {
                parent: asked.into(),
                reason,
            })
        };
        match (self.driver, asked) {
            (_, "") => Ok(self.own_parent.clone()),
            (Driver::Systemd, asked) => match unit::slice_of(asked) {
                Some(path) => Ok(path),
                None => refused(
                    "is not the name of a systemd slice (\"kubepods-burstable-pod1.slice\"), and the systemd driver is used: \
                     have the kubelet use the same driver",
                ),
            },
            (Driver::Cgroupfs, asked) if asked.trim_end_matches('/').ends_with(".slice") => refused(
                "is a systemd slice, and the cgroupfs driver is used: have the kubelet use the same driver",
            ),
            (Driver::Cgroupfs, asked) if asked.split('/').any(|part| part == "..") => refused("has a \"..\""),
            (Driver::Cgroupfs, asked) if asked.contains(char::is_control) => {
                refused("has a control character")
            }
            (Driver::Cgroupfs, asked) => Ok(format!("/{}", asked.trim_matches('/'))),
        }
    }

    /// Has systemd make the scope of a container, with its limits. None when the shim
    /// makes the cgroup by itself. What is returned must live until the init is there.
    pub async fn make(
        &self,
        binary: &ShimBinary,
        path: &str,
        resources: Option<&Resources>,
    ) -> Result<Option<Hold>, Error> {
        if !is_scope(path) {
            return Ok(None);
        }
        let limits = resources.map(properties(path)).transpose()?.unwrap_or_default();
        let (hold, pid) = hold(binary, path)?;
        let scope = scope(path, pid, limits);
        let holds = || holds(path, pid);
        match self.systemd.start_scope(unit::name(path), &scope, holds).await {
            // The rest of an earlier init of the same pod.
            Err(error) if error.is_there() => {
                self.remove(path).await?;
                self.systemd.start_scope(unit::name(path), &scope, holds).await?;
            }
            answer => answer?,
        }
        Ok(Some(hold))
    }

    /// Tells systemd of limits that the cgroup has got: else it would set the old ones again.
    pub async fn update(&self, path: &str, resources: &Resources) -> Result<(), Error> {
        if !is_scope(path) {
            return Ok(());
        }
        let limits = properties(path)(resources)?;
        if limits.is_empty() {
            return Ok(());
        }
        Ok(self.systemd.set_properties(unit::name(path), &limits).await?)
    }

    /// Kills what is in a container's cgroup, and removes it. Idempotent.
    pub async fn remove(&self, path: &str) -> Result<(), Error> {
        blocking(path, Cgroup::kill).await?;
        if is_scope(path) {
            self.systemd.stop(unit::name(path), || is_gone(path)).await?;
        }
        blocking(path, Cgroup::remove).await
    }

    /// Removes those of `parents` (paths, outermost first) in which nothing is.
    pub async fn remove_parents(&self, parents: &[String]) {
        for path in parents.iter().rev() {
            if !path.ends_with(".slice") {
                cgroup::remove_empty_parents(std::slice::from_ref(path));
            } else if cgroup::is_unused(path)
                && let Err(error) = self.systemd.stop(unit::name(path), || is_gone(path)).await
            {
                tracing::warn!(slice = path, %error, "stop an empty slice");
            }
        }
    }
}

/// The path of the cgroup of a container, or of a pod's init, below the pod's: in a
/// slice it is a scope.
pub fn path(parent: &str, id: &str) -> String {
    let parent = parent.trim_end_matches('/');
    if parent.ends_with(".slice") {
        format!("{parent}/berth-{id}.scope")
    } else {
        format!("{parent}/{id}")
    }
}

/// The paths of the cgroups below which a berthd puts pods that name no parent, with
/// whichever driver: `configured` and `instance` as for [`CgroupDriver::choose`].
pub fn own_parents(configured: &str, instance: &str) -> Vec<String> {
    let asked = match configured {
        "" => [Driver::Cgroupfs, Driver::Systemd]
            .map(|driver| driver.own_parent(instance))
            .to_vec(),
        configured => vec![configured.to_owned()],
    };
    let path =
        |asked: String| unit::slice_of(&asked).unwrap_or_else(|| format!("/{}", asked.trim_matches('/')));
    asked.into_iter().map(path).collect()
}

/// Whether the last part of a cgroup's path is as [`path()`] makes it.
pub fn is_of_container(name: &str) -> bool {
    let scope = name.strip_prefix("berth-").and_then(|n| n.strip_suffix(".scope"));
    let id = scope.unwrap_or(name);
    id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Kills what is in a cgroup and removes it, with its unit when it is one of systemd's.
/// For those who have no runtime, and no driver to ask.
pub fn end_blocking(path: &str) -> Result<(), Error> {
    let cgroup = Cgroup::open(path)?;
    cgroup.kill()?;
    let unit = unit::name(path);
    if (is_scope(path) || path.ends_with(".slice")) && Path::new("/run/systemd/system").is_dir() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::Runtime {
                path: path.into(),
                source,
            })?;
        runtime.block_on(Systemd::default().stop(unit, || is_gone(path)))?;
    }
    Ok(cgroup.remove()?)
}

/// Whether a cgroup is one that systemd makes, by its path.
pub fn is_scope(path: &str) -> bool {
    path.ends_with(".scope")
}

/// Whether systemd can make cgroups here: its version, or why not.
async fn fitness(systemd: &Systemd) -> Result<String, String> {
    let layout = Layout::detect().map_err(|error| error.to_string())?;
    if !layout.is_pure_v2() {
        return Err("cgroup v1 controllers are in use here".into());
    }
    // As sd_booted(3) finds out.
    if !Path::new("/run/systemd/system").is_dir() {
        return Err("process 1 is not systemd".into());
    }
    systemd.version().await.map_err(|error| error.to_string())
}

fn properties(path: &str) -> impl Fn(&Resources) -> Result<Vec<Property>, Error> {
    move |resources| {
        unit::properties(resources).map_err(|reason| Error::Limits {
            path: path.into(),
            reason,
        })
    }
}

/// The scope of a container. Without default dependencies, as with the peers: at a
/// shutdown it is the kubelet that ends pods.
fn scope(path: &str, pid: u32, limits: Vec<Property>) -> Vec<Property> {
    let mut all: Vec<Property> = vec![
        ("Description", format!("container {}", unit::name(path)).into()),
        ("Slice", unit::slice_of_scope(path).to_owned().into()),
        ("Delegate", true.into()),
        ("PIDs", vec![pid].into()),
        ("DefaultDependencies", false.into()),
        ("CollectMode", "inactive-or-failed".into()),
        ("TimeoutStopUSec", STOP_TIMEOUT_USEC.into()),
        ("MemoryAccounting", true.into()),
        ("IOAccounting", true.into()),
        ("TasksAccounting", true.into()),
    ];
    // systemd has a limit of its own for units that name none.
    if !limits.iter().any(|(name, _)| *name == "TasksMax") {
        all.push(("TasksMax", Variant::from(u64::MAX)));
    }
    all.extend(limits);
    all
}

/// Starts the process that holds a scope.
fn hold(binary: &ShimBinary, path: &str) -> Result<(Hold, u32), Error> {
    let failed = |source| Error::Hold {
        path: path.into(),
        source,
    };
    let mut child = tokio::process::Command::new(binary.path())
        .arg("-hold")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let (Some(input), Some(pid)) = (child.stdin.take(), child.id()) else {
        return Err(failed(std::io::Error::other("it has ended at once")));
    };
    // So that it is no zombie when it ends.
    tokio::spawn(async move { child.wait().await });
    Ok((Hold { _input: input }, pid))
}

/// Whether the process is in the cgroup.
fn holds(path: &str, pid: u32) -> bool {
    let pid = i32::try_from(pid).unwrap_or(0);
    Cgroup::open(path)
        .and_then(|cgroup| cgroup.pids())
        .is_ok_and(|pids| pids.contains(&pid))
}

fn is_gone(path: &str) -> bool {
    cgroup::missing(path).is_ok_and(|missing| missing.iter().any(|gone| gone == path))
}

/// Does something with a cgroup apart from the runtime's threads.
async fn blocking(path: &str, act: fn(&Cgroup) -> cgroup::Result<()>) -> Result<(), Error> {
    let path = path.to_owned();
    Ok(blocking_io(move || act(&Cgroup::open(&path)?)).await?)
}

async fn blocking_io<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(act).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(driver: Driver) -> CgroupDriver {
        CgroupDriver {
            driver,
            own_parent: "/own".into(),
            systemd: Arc::default(),
            shims: None,
        }
    }

    #[test]
    fn a_parent_of_the_other_driver_is_refused() {
        let cgroupfs = with(Driver::Cgroupfs);
        assert_eq!(cgroupfs.parent("").unwrap(), "/own");
        assert_eq!(cgroupfs.parent("/kubepods/pod1/").unwrap(), "/kubepods/pod1");
        for wrong in ["kubepods-pod1.slice", "/a/../b", "/kubepods.slice/"] {
            assert!(
                matches!(cgroupfs.parent(wrong), Err(Error::Parent { .. })),
                "{wrong}"
            );
        }
        let systemd = with(Driver::Systemd);
        assert_eq!(
            systemd.parent("kubepods-pod1.slice").unwrap(),
            "/kubepods.slice/kubepods-pod1.slice"
        );
        for wrong in ["/kubepods/pod1", "/a/../b.slice", "a--b.slice"] {
            assert!(
                matches!(systemd.parent(wrong), Err(Error::Parent { .. })),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_a_berthd_has_by_itself() {
        assert_eq!(own_parents("", "berth-1"), ["/berth-1", "/berth_1.slice"]);
        assert_eq!(own_parents("pods/", "berth"), ["/pods"]);
        assert_eq!(own_parents("a-b.slice", "berth"), ["/a.slice/a-b.slice"]);
        let id = "a1".repeat(32);
        assert!(is_of_container(&id) && is_of_container(&format!("berth-{id}.scope")));
        assert!(!is_of_container(&format!("{id}.scope")) && !is_of_container("berth-a1.scope"));
    }

    #[test]
    fn containers_are_below_their_parent() {
        assert_eq!(path("/a/", "1"), "/a/1");
        assert_eq!(path("/", "1"), "/1");
        assert_eq!(
            path("/a.slice/a-b.slice", "1"),
            "/a.slice/a-b.slice/berth-1.scope"
        );
    }

    #[test]
    fn a_scope_without_a_limit_of_tasks_has_none() {
        let tasks = |limits| {
            let all = scope("/a.slice/b.scope", 7, limits);
            let found = all.into_iter().filter(|(name, _)| *name == "TasksMax");
            found.map(|(_, value)| value).collect::<Vec<_>>()
        };
        assert_eq!(tasks(Vec::new()), [Variant::from(u64::MAX)]);
        assert_eq!(tasks(vec![("TasksMax", 5u64.into())]), [Variant::from(5u64)]);
    }
}
