//! The cgroup of a container: pure v2, v1, or hybrid (v1 controllers beside a v2
//! hierarchy without them, where processes are nevertheless tracked and killed).
//!
//! A [`Cgroup`] is a path below the root of every hierarchy. Plain files, no D-Bus:
//! systemd's part is in the agent.

pub mod convert;
mod device_bpf;
mod files;
mod gauge;
mod kill;
mod layout;
mod oom;
pub mod stats;
mod stats_v1;
mod stats_v2;
mod tree;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::Errno;

use crate::proto::plan::Resources;

pub use gauge::Gauge;
pub use layout::{Hierarchy, Layout};
pub use oom::{OomKill, OomWatch};
pub use tree::{is_unused, missing, remove_empty_parents};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cgroup path {path:?} is not usable: {reason}")]
    Path { path: String, reason: &'static str },
    #[error(
        "no cgroup hierarchy is mounted (looked in /proc/self/mountinfo); mount cgroup2 on /sys/fs/cgroup"
    )]
    NoHierarchy,
    #[error("{step} cgroup file {}: {errno}", path.display())]
    File {
        step: &'static str,
        path: PathBuf,
        errno: Errno,
    },
    #[error(
        "cannot set {file} to {value:?} in cgroup {cgroup}: the kernel offers no {controller} controller here; \
         enable it (kernel command line, or cgroup.subtree_control of the parent) or leave the limit out"
    )]
    NoController {
        controller: &'static str,
        file: String,
        value: String,
        cgroup: String,
    },
    #[error("cgroup {cgroup}: {reason}")]
    Value { cgroup: String, reason: String },
    #[error("cgroup {cgroup} has processes of somebody else ({pids:?}); a new container needs an empty one")]
    InUse { cgroup: String, pids: Vec<i32> },
    #[error("cgroup {cgroup} is not there: systemd has ended its scope, see `journalctl`")]
    Gone { cgroup: String },
    #[error("device program for cgroup {cgroup}: {step}: {errno}")]
    DeviceProgram {
        cgroup: String,
        step: &'static str,
        errno: Errno,
    },
    #[error("cgroup {cgroup} still has processes {pids:?} after they were killed {rounds} times")]
    Unkillable {
        cgroup: String,
        pids: Vec<i32>,
        rounds: u32,
    },
}

pub type Result<T> = std::result::Result<T, Error>;

/// One cgroup, by its path below the root of each hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    path: String,
    /// The folders it has: all hierarchies, or for an exec of a hybrid machine the v2 one alone.
    hierarchies: &'static [Hierarchy],
    /// The v2 folder, for CLONE_INTO_CGROUP.
    unified: Option<OwnedFd>,
    parents_made: Vec<String>,
    /// The folder itself is systemd's.
    delegated: bool,
}

impl Cgroup {
    /// Makes the cgroup and its missing parents in every hierarchy, and enables
    /// the v2 controllers for it. An empty one that was left over is made anew.
    ///
    /// # Errors
    /// [`Error::InUse`] when it has processes; otherwise the folder and the errno.
    pub fn create(path: &str) -> Result<Self> {
        let hierarchies = &Layout::detect()?.hierarchies;
        tree::check_path(path)?;
        let parents_made = tree::create(path, hierarchies)?;
        let opened = Self::open_in(path, hierarchies);
        if opened.is_err() {
            let _ = tree::remove(path, hierarchies);
            tree::remove_empty_parents(&parents_made);
        }
        Ok(Self {
            parents_made,
            ..opened?
        })
    }

    /// Takes a scope that systemd has made and delegated: what is below it is ours, and
    /// it has a process already that keeps it there.
    ///
    /// # Errors
    /// [`Error::Gone`] when it is not there.
    pub fn adopt(path: &str) -> Result<Self> {
        let hierarchies = &Layout::detect()?.hierarchies;
        tree::check_path(path)?;
        tree::enable_above(path, hierarchies)?;
        let opened = Self::open_in(path, hierarchies)?;
        if opened.unified.is_none() {
            return Err(Error::Gone {
                cgroup: path.to_owned(),
            });
        }
        Ok(Self {
            delegated: true,
            ..opened
        })
    }

    /// A handle of a cgroup that exists, or that may be gone already: it can be killed, read and removed.
    ///
    /// # Errors
    /// For a malformed path, or when no hierarchy is mounted.
    pub fn open(path: &str) -> Result<Self> {
        Self::open_in(path, &Layout::detect()?.hierarchies)
    }

    fn open_in(path: &str, hierarchies: &'static [Hierarchy]) -> Result<Self> {
        tree::check_path(path)?;
        let unified = match hierarchies.iter().find(|h| h.is_v2()) {
            Some(hierarchy) => files::open_folder(&hierarchy.folder(path))?,
            None => None,
        };
        Ok(Self {
            path: path.to_owned(),
            hierarchies,
            unified,
            parents_made: Vec::new(),
            delegated: false,
        })
    }

    /// Below the root of each hierarchy, "/parent/id".
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The cgroups above this one that [`Cgroup::create`] had to make in at least one
    /// hierarchy, outermost first: whoever made them removes them when they are
    /// empty, with [`remove_empty_parents`].
    #[must_use]
    pub fn parents_made(&self) -> &[String] {
        &self.parents_made
    }

    /// Sets the limits that `resources` has; absent ones are left as they are.
    ///
    /// # Errors
    /// The first limit that could not be set: file, value and errno, or the controller that is missing.
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        let mut v1_controllers = false;
        for hierarchy in self.hierarchies.iter().filter(|h| !h.is_v2()) {
            v1_controllers |= !hierarchy.controllers.is_empty();
        }
        if v1_controllers {
            v1::apply(self, resources)
        } else {
            v2::apply(self, resources)
        }
    }

    /// Moves a process into the cgroup, in every hierarchy.
    ///
    /// # Errors
    /// The hierarchy's file and the errno.
    pub fn add(&self, pid: i32) -> Result<()> {
        self.hierarchies
            .iter()
            .try_for_each(|hierarchy| self.add_to(hierarchy, pid))
    }

    /// What a process that CLONE_INTO_CGROUP has put into the v2 hierarchy writes "0" to,
    /// to join those of v1 too. The kernel moves a thread that asks for itself at once; to
    /// have a process moved, as by [`Cgroup::add`], all forks of the machine have to wait
    /// first, for an RCU grace period (5 to 30 ms, `cgroup_threadgroup_rwsem`).
    ///
    /// # Errors
    /// The file and the errno.
    pub fn tasks(&self) -> Result<Vec<OwnedFd>> {
        let v1 = self.hierarchies.iter().filter(|h| !h.is_v2());
        v1.map(|hierarchy| files::open_for_writing(&hierarchy.folder(&self.path).join("tasks")))
            .collect()
    }

    fn add_to(&self, hierarchy: &Hierarchy, pid: i32) -> Result<()> {
        files::write(
            &hierarchy.folder(&self.path).join("cgroup.procs"),
            &pid.to_string(),
        )
    }

    /// The v2 folder for CLONE_INTO_CGROUP; None on a machine without a v2 hierarchy.
    #[must_use]
    pub fn fd_for_clone(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// The v1 folders of this cgroup with the names under which a container sees them ("cpu,cpuacct").
    pub fn v1_folders(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.hierarchies
            .iter()
            .filter(|h| !h.is_v2())
            .map(|h| (h.name.as_str(), h.folder(&self.path)))
    }

    /// Kills every process in it and below it. Ends when the kernel has sent the
    /// signals (v2), or when nothing is left (v1).
    ///
    /// # Errors
    /// [`Error::Unkillable`] when processes stay (they hang in the kernel).
    pub fn kill(&self) -> Result<()> {
        kill::kill(self)
    }

    /// Every process in it and below it, each once.
    ///
    /// # Errors
    /// The file and the errno; a cgroup that is gone has none.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for hierarchy in self.hierarchies {
            tree::collect_pids(&hierarchy.folder(&self.path), &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Stops all processes until [`Cgroup::thaw`].
    ///
    /// # Errors
    /// [`Error::NoController`] on v1 without the freezer.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)
    }

    /// # Errors
    /// As [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        if let Some(freezer) = self.hierarchies.iter().find(|h| h.has("freezer")) {
            let state = if frozen { "FROZEN" } else { "THAWED" };
            return files::write(&freezer.folder(&self.path).join("freezer.state"), state);
        }
        let value = if frozen { "1" } else { "0" };
        let Some(unified) = self.hierarchies.iter().find(|h| h.is_v2()) else {
            return Err(self.no_controller("freezer", "freezer.state", value));
        };
        files::write(&unified.folder(&self.path).join("cgroup.freeze"), value)
    }

    /// Makes a cgroup below this one for an exec, in the v2 hierarchy: its processes
    /// are killed and reaped together. None on a machine without v2: the exec then
    /// joins this one.
    ///
    /// # Errors
    /// The folder and the errno.
    pub fn child(&self, name: &str) -> Result<Option<Self>> {
        let Some(unified) = self.hierarchies.iter().find(|h| h.is_v2()) else {
            return Ok(None);
        };
        let path = format!("{}/{name}", self.path);
        tree::check_path(&path)?;
        // No controllers are enabled for it: that would forbid processes in this one.
        tree::make_leaf(&path, unified)?;
        Self::open_in(&path, std::slice::from_ref(unified)).map(Some)
    }

    /// Removes it and all below it. Waits a short while for the last processes to be
    /// gone; what is gone already is no error. Of an adopted one only what is below it:
    /// systemd would not hear that a scope is empty whose folder is gone.
    ///
    /// # Errors
    /// The folder that stays, with its errno.
    pub fn remove(&self) -> Result<()> {
        if self.delegated {
            return tree::remove_children(&self.path, self.hierarchies);
        }
        tree::remove(&self.path, self.hierarchies)
    }

    /// The hierarchy that has a controller: a v1 one by its name, else v2 when enabled here.
    fn controller(&self, name: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.has(name)).or_else(|| {
            self.hierarchies
                .iter()
                .find(|h| h.is_v2() && h.offers(&self.path, name))
        })
    }

    fn no_controller(&self, controller: &'static str, file: &str, value: &str) -> Error {
        Error::NoController {
            controller,
            file: file.to_owned(),
            value: value.to_owned(),
            cgroup: self.path.clone(),
        }
    }
}
