//! Starts processes of containers: [`create`] makes cgroup, root and init, which
//! waits for [`Init::start`]; [`exec`] adds a process to a running container. Where the
//! plan names an OCI runtime, that does both (`oci`).
//!
//! A launch has two halves. The parent checks the plan and turns it into strings and
//! descriptors (`prepare`); the child, after clone, walks (`child`, `identity`): no
//! allocation, no lock, no log there. They talk through `channel`.
//!
//! This module must not look anything up: users, paths and numbers are resolved in the plan.

mod channel;
mod child;
mod console;
mod device;
mod error;
mod exec;
mod filesystem;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod hook;
mod identity;
mod image_volume;
mod mapped_layers;
mod mask;
mod member;
mod mount;
mod namespace;
mod oci;
mod overlay;
mod path;
mod plan;
mod prepare;
mod process;
mod sandbox_init;
mod step;
mod user_namespace;

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::cgroup::{self, Cgroup, Layout, OomWatch};
use crate::proto::plan::{LaunchPlan, Resources};
use crate::sys::clone::Forked;
use crate::sys::signalfd;

pub use error::{Cause, Error};
pub use exec::{ExecProcess, ExecTarget, exec, target_is_gone};
pub use hook::{run as run_hook, state as hook_state};
pub use oci::Runtime;
pub use step::Step;
pub use user_namespace::{Holder, Range, Ranges};

use channel::Word;
use error::Names;
use overlay::{Problem, Way};
use step::{At, Failure};

/// The child's ends of standard input and output. Unused when a terminal is asked
/// for; /dev/null is right then.
#[derive(Debug)]
pub struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl Stdio {
    /// Away from 0, 1 and 2, which are about to be replaced in the child. Pipes are given
    /// to the user (the node's number), who may want to open /dev/stdout; /dev/null and
    /// files stay whose they are.
    fn into_array(self, uid: u32) -> Result<[OwnedFd; 3], Errno> {
        for fd in [&self.stdin, &self.stdout, &self.stderr] {
            let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
            if matches!(kind, rustix::fs::FileType::Fifo | rustix::fs::FileType::Socket) {
                // Sockets may refuse; it is a courtesy.
                let _ = rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None);
            }
        }
        let high = |fd: OwnedFd| {
            if fd.as_raw_fd() > 2 {
                Ok(fd)
            } else {
                rustix::io::fcntl_dupfd_cloexec(&fd, 3)
            }
        };
        Ok([high(self.stdin)?, high(self.stdout)?, high(self.stderr)?])
    }
}

/// The first process of a container, created and maybe started. The caller is its parent, and reaps it.
#[derive(Debug)]
pub struct Init {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The master side of its terminal.
    pub console: Option<OwnedFd>,
    /// To be killed and removed by the caller when the init has ended; knows which parents were made for it.
    pub cgroup: Cgroup,
    /// What the OOM killer does to it, since before it was ready.
    pub oom: OomWatch,
    /// Of its user namespace, when it has one.
    pub user: Option<Ranges>,
    by: By,
}

/// The folder in the bundle where config.json has the image volumes of a container that
/// an OCI runtime makes, each by its place among the mounts.
pub const VOLUMES: &str = "volumes";

/// Who made an init, and lets it execute.
#[derive(Debug)]
enum By {
    Launcher {
        /// Gone when it has been started.
        channel: Option<OwnedFd>,
        names: Names,
        hooks: Option<hook::AtStart>,
    },
    Runtime(Runtime),
}

/// Makes the cgroup with its limits, the root and the init; returns when the init has
/// its root and waits to be started. `bundle` is the container's state folder; its
/// `rootfs` is the mount point inside the init's own mount namespace. The calling
/// process becomes undumpable and stays so.
///
/// # Errors
/// The failing step with the object's name. Nothing that was made is left then.
pub fn create(plan: &LaunchPlan, bundle: &Path, stdio: Stdio) -> Result<Init, Error> {
    if let Some(surroundings) = &plan.surroundings {
        Layout::know(&surroundings.hierarchies);
    }
    if let Some(runtime) = &plan.runtime {
        return oci::create(plan, runtime, bundle, stdio);
    }
    create_by(plan, bundle, stdio, Way::Newest)
}

fn create_by(plan: &LaunchPlan, bundle: &Path, stdio: Stdio, way: Way) -> Result<Init, Error> {
    let names = plan.process.as_ref().map(Names::new).unwrap_or_default();
    let explain = |problem| match problem {
        Problem::Plan(error) => error,
        Problem::Step(failure) => names.describe(&failure, Some(plan)),
    };
    let checked = prepare::check(plan).map_err(explain)?;
    identity::make_undumpable().map_err(|failure| explain(failure.into()))?;
    let wanted = plan
        .cgroup
        .as_ref()
        .ok_or_else(|| Error::plan("cgroup", "it is missing"))?;
    let cgroup = if wanted.delegated {
        Cgroup::adopt(&wanted.path)?
    } else {
        Cgroup::create(&wanted.path)?
    };
    let result = (|| {
        cgroup.apply(wanted.resources.as_ref().unwrap_or(&Resources::default()))?;
        let prepared = prepare::prepare(plan, checked, bundle, stdio, &cgroup, way).map_err(explain)?;
        launch(plan, bundle, prepared, &cgroup, &names)
    })();
    match result {
        Ok(Launched {
            pid,
            pidfd,
            console,
            channel,
            oom,
        }) => Ok(Init {
            pid,
            pidfd,
            console,
            cgroup,
            oom,
            user: Some(Ranges::of_plan(&plan.uids, &plan.gids)).filter(|ranges| *ranges != Ranges::default()),
            by: By::Launcher {
                channel: Some(channel),
                names,
                hooks: hook::AtStart::of(plan, bundle),
            },
        }),
        Err(error) => {
            let _ = cgroup.kill();
            let _ = cgroup.remove();
            cgroup::remove_empty_parents(cgroup.parents_made());
            Err(error)
        }
    }
}

/// An init that is ready.
struct Launched {
    pid: i32,
    pidfd: OwnedFd,
    console: Option<OwnedFd>,
    channel: OwnedFd,
    oom: OomWatch,
}

/// Clones, and speaks with the child until it is ready.
fn launch(
    plan: &LaunchPlan,
    bundle: &Path,
    mut prepared: prepare::Prepared,
    cgroup: &Cgroup,
    names: &Names,
) -> Result<Launched, Error> {
    let describe = |failure: Failure| names.describe(&failure, Some(plan));
    let (socket, child_end) = channel::pair().at(Step::Channel).map_err(describe)?;
    prepared.keep(child_end.as_raw_fd());
    let forked = prepared
        .namespaces
        .clone(cgroup.fd_for_clone())
        .map_err(describe)?;
    let Forked::Parent { mut pid, mut pidfd } = forked else {
        child::run(&prepared, child_end.as_fd())
    };
    drop(child_end);
    drop(prepared);
    // While the child is at its own work.
    let oom = OomWatch::begin(cgroup);
    let ready = (|| {
        loop {
            match channel::hear(socket.as_fd()).at(Step::Talk).map_err(describe)? {
                Word::Moved(next) => {
                    // The first one has ended, or is about to.
                    child::reap(pidfd.as_fd());
                    pid = pid_of(next.as_fd()).at(Step::Talk).map_err(describe)?;
                    pidfd = next;
                    channel::allow(socket.as_fd()).at(Step::Talk).map_err(describe)?;
                }
                Word::Hooks => {
                    hook::before_pivot(plan, bundle, pid, pidfd.as_fd())?;
                    channel::allow(socket.as_fd()).at(Step::Talk).map_err(describe)?;
                }
                Word::Ready(console) => return Ok(console),
                Word::Failed(failure) => return Err(describe(failure)),
                Word::End => return Err(ended(&pidfd)),
            }
        }
    })();
    match ready {
        Ok(console) => Ok(Launched {
            pid,
            pidfd,
            console,
            channel: socket,
            oom,
        }),
        Err(error) => {
            child::kill_and_reap(pidfd.as_fd());
            Err(error)
        }
    }
}

/// The process of a pidfd, by its number here.
fn pid_of(pidfd: BorrowedFd<'_>) -> Result<i32, Errno> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(path).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.and_then(|pid| pid.trim().parse().ok())
        .filter(|pid| *pid > 0)
        .ok_or(Errno::SRCH)
}

/// How a child died that said nothing.
fn ended(pidfd: &OwnedFd) -> Error {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), options).ok().flatten();
    match status.and_then(|status| status.terminating_signal()) {
        Some(libc::SIGKILL) => Error::Ended {
            how: "was killed".to_owned(),
            remedy: " (a memory limit that is too low for a process to start?)",
        },
        Some(signal) => Error::Ended {
            how: format!("died of signal {signal}"),
            remedy: "",
        },
        None => Error::Ended {
            how: "ended".to_owned(),
            remedy: "",
        },
    }
}

impl Init {
    /// Lets it execute; returns when it has. On an error it has exited with
    /// [`Error::exit_code`], and its end is reported as that of any process.
    ///
    /// # Errors
    /// The step between the root and the command that failed.
    pub fn start(&mut self) -> Result<(), Error> {
        let (channel, names, hooks) = match &mut self.by {
            By::Launcher {
                channel,
                names,
                hooks,
            } => (channel.take(), names, hooks),
            By::Runtime(runtime) => {
                let started = runtime.start();
                if started.is_err() {
                    // It may wait for ever.
                    let _ = self.cgroup.kill();
                }
                return started;
            }
        };
        let Some(channel) = channel else {
            return Err(Error::plan("start", "the init was started before"));
        };
        let describe = |failure: Failure| names.describe(&failure, None);
        if let Some(hooks) = hooks {
            let target = ExecTarget {
                pidfd: self.pidfd.as_fd(),
                cgroup: &self.cgroup,
                user: self.user.as_ref(),
                runtime: None,
            };
            hooks.run(self.pid, &target)?;
        }
        match channel::allow(channel.as_fd()) {
            // It was killed while it waited: that is its exit, not a failure to start.
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
            answer => answer.at(Step::Talk).map_err(describe)?,
        }
        match channel::hear(channel.as_fd()).at(Step::Talk).map_err(describe)? {
            Word::End | Word::Ready(_) | Word::Hooks | Word::Moved(_) => Ok(()),
            Word::Failed(failure) => Err(describe(failure)),
        }
    }

    /// What an exec in its container needs.
    #[must_use]
    pub fn target(&self) -> ExecTarget<'_> {
        ExecTarget {
            pidfd: self.pidfd.as_fd(),
            cgroup: &self.cgroup,
            user: self.user.as_ref(),
            runtime: self.runtime(),
        }
    }

    /// Sends a signal: through the runtime, which may have a process of its own in the
    /// place of the init; past it when that fails.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2).
    pub fn signal(&self, signal: i32) -> Result<(), Errno> {
        match self.runtime().map(|runtime| runtime.kill(signal)) {
            Some(Ok(())) => Ok(()),
            _ => signalfd::send(self.pidfd.as_fd(), signal),
        }
    }

    /// Has the runtime forget the container, which has ended, and removes its cgroup.
    ///
    /// # Errors
    /// What stays, each in words.
    pub fn remove(&self) -> Result<(), Error> {
        let forgotten = self.runtime().map_or(Ok(()), Runtime::delete);
        let removed = self.cgroup.remove().map_err(Error::from);
        cgroup::remove_empty_parents(self.cgroup.parents_made());
        forgotten.and(removed)
    }

    fn runtime(&self) -> Option<&Runtime> {
        match &self.by {
            By::Launcher { .. } => None,
            By::Runtime(runtime) => Some(runtime),
        }
    }
}
