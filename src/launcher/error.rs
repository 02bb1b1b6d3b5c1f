//! Why a launch failed, with the names that the plan has for things.

use rustix::io::Errno;

use crate::cgroup;
use crate::proto::plan::{LaunchPlan, Process};

use super::step::{Failure, Step};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan itself is wrong; nothing was made.
    #[error("launch plan: {field}: {reason}")]
    Plan { field: String, reason: String },
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    #[error("{}{object}: {}{detail}", step.text(), explain(*step, *errno))]
    Step {
        step: Step,
        object: String,
        errno: Errno,
        detail: String,
        exit_code: i32,
    },
    /// A hook could not be run, failed, or took too long.
    #[error("{kind} hook {path}: {message}")]
    Hook {
        kind: &'static str,
        path: String,
        message: String,
    },
    /// A run of an OCI runtime: what it said, or that it did not end.
    #[error("{program} {verb}: {message}")]
    Runtime {
        program: String,
        verb: String,
        message: String,
        exit_code: i32,
    },
    /// The child ended without a word.
    #[error("the new process {how} while its root was being set up{remedy}")]
    Ended { how: String, remedy: &'static str },
}

/// Who can do something about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// What was asked for cannot be: whoever asked has to ask for something else.
    Request,
    /// Something that has to be there first is not, or not any more.
    State,
    /// The node, or a limit, is full.
    Resources,
    /// The launcher or the kernel.
    Launcher,
}

impl Error {
    /// Who can do something about it.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::Plan { .. } | Self::Cgroup(cgroup::Error::Path { .. } | cgroup::Error::Value { .. }) => {
                Cause::Request
            }
            Self::Cgroup(cgroup::Error::NoController { .. } | cgroup::Error::InUse { .. }) => Cause::State,
            Self::Step { errno, .. } | Self::Cgroup(cgroup::Error::File { errno, .. }) if is_full(*errno) => {
                Cause::Resources
            }
            // A limit that the kernel refuses: CPUs that are not there, a number out of range.
            Self::Cgroup(cgroup::Error::File {
                step: "write",
                errno: Errno::INVAL | Errno::RANGE,
                ..
            }) => Cause::Request,
            // No program, or none that may be executed: some runtimes look before the start.
            Self::Runtime {
                exit_code: 126 | 127, ..
            } => Cause::State,
            Self::Step { step, .. } => match step {
                Step::OpenSource
                | Step::SourceAttributes
                | Step::MapOwners
                | Step::MakeFileSystem
                | Step::MakeTarget
                | Step::CheckTarget
                | Step::Attach
                | Step::MountAttributes
                | Step::MakeDevice
                | Step::Sysctl
                | Step::MakeCwd
                | Step::Limit => Cause::Request,
                Step::OpenNamespace | Step::JoinNamespace | Step::JoinPid => Cause::State,
                _ => Cause::Launcher,
            },
            // Killed by the kernel for its memory limit.
            Self::Ended { remedy, .. } if !remedy.is_empty() => Cause::Resources,
            _ => Cause::Launcher,
        }
    }

    /// What the process exits, or is said to exit, with: 127 the command was not
    /// found, 126 it may not or cannot be executed, 128 anything else.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Step { exit_code, .. } | Self::Runtime { exit_code, .. } => *exit_code,
            _ => 128,
        }
    }

    pub(super) fn plan(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Plan {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

fn is_full(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOSPC | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::DQUOT
    )
}

/// errno in the words of people, where the kernel's own mislead.
fn explain(step: Step, errno: Errno) -> String {
    let hint = match (step, errno) {
        (Step::Exec, Errno::NOENT) => {
            " (neither the command nor, for a script, its interpreter may be missing)"
        }
        (Step::Exec, Errno::NOEXEC) => " (not a program for this machine, or a script without #!)",
        (Step::JoinPid | Step::Clone, Errno::NOMEM) => " (the pid namespace's first process has ended)",
        (Step::OpenLabel, Errno::NOENT) => " (the kernel has no AppArmor or SELinux)",
        (Step::Overlay, Errno::NODEV) => " (the kernel has no overlay file system: modprobe overlay)",
        (Step::Seccomp, Errno::INVAL) => " (bad program or flags, or a kernel without seccomp)",
        (Step::Attach, Errno::INVAL | Errno::NOTDIR) => {
            " (only a folder goes over a folder, and a file over a file)"
        }
        (Step::MapOwners | Step::MapLayers, Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP) => {
            " (its file system, or that of a mount below it, cannot show other owners: many kinds of \
             network and FUSE file systems cannot; leave it out of pods with hostUsers: false)"
        }
        (Step::MakeTarget, Errno::LOOP) => {
            " (a link of the image is in the way, to itself or in the place of /proc, /sys or /dev)"
        }
        (Step::CheckTarget, Errno::BUSY) => {
            " (they lead to the container's root, which nothing is mounted over)"
        }
        (Step::CheckTarget, Errno::ACCESS) => " (they lead into /proc)",
        (Step::Cwd, Errno::XDEV) => " (it is outside of the container's root)",
        _ => "",
    };
    format!("{errno}{hint}")
}

/// The names that a process's failures need, kept when its plan is dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    command: String,
    cwd: String,
    label: String,
}

impl Names {
    pub fn new(process: &Process) -> Self {
        let label = if process.apparmor_profile.is_empty() {
            process.selinux_label.clone()
        } else {
            process.apparmor_profile.clone()
        };
        Self {
            command: process.args.first().cloned().unwrap_or_default(),
            cwd: process.cwd.clone(),
            label,
        }
    }

    /// Of a program of the host.
    pub fn of_program(path: &str) -> Self {
        Self {
            command: path.to_owned(),
            ..Self::default()
        }
    }

    /// A failure in words; `plan` is at hand until the root is there.
    pub fn describe(&self, failure: &Failure, plan: Option<&LaunchPlan>) -> Error {
        let quoted = |text: &str| format!(" {text:?}");
        let index = usize::from(failure.index);
        let object = match failure.step {
            Step::Exec => quoted(&self.command),
            Step::Cwd | Step::MakeCwd => quoted(&self.cwd),
            Step::Label | Step::OpenLabel => quoted(&self.label),
            Step::Limit => format!(" {index} (RLIMIT_ number)"),
            step => plan.and_then(|plan| name(plan, step, index)).unwrap_or_default(),
        };
        let detail = String::from_utf8_lossy(failure.detail.as_bytes());
        let detail = detail.trim();
        Error::Step {
            step: failure.step,
            object,
            errno: failure.errno,
            detail: if detail.is_empty() {
                String::new()
            } else {
                format!(" ({detail})")
            },
            exit_code: failure.exit_code(),
        }
    }
}

/// What `index` counts in each step.
fn name(plan: &LaunchPlan, step: Step, index: usize) -> Option<String> {
    Some(match step {
        Step::OpenNamespace | Step::JoinNamespace | Step::JoinPid => {
            let namespace = plan.namespaces.get(index)?;
            format!(" {:?} ({})", namespace.path, namespace.kind().as_str_name())
        }
        Step::OpenLayer => format!(" {:?}", plan.rootfs.as_ref()?.lower.get(index)?),
        Step::OpenSource
        | Step::SourceAttributes
        | Step::UserNamespace
        | Step::MapOwners
        | Step::ImageVolume
        | Step::MakeFileSystem
        | Step::MakeTarget
        | Step::CheckTarget
        | Step::Attach
        | Step::MountAttributes => {
            let mount = plan.mounts.get(index)?;
            if mount.source.is_empty() {
                format!(" {:?} ({})", mount.target, mount.kind().as_str_name())
            } else {
                format!(" {:?} (from {:?})", mount.target, mount.source)
            }
        }
        Step::SubPath => {
            let mount = plan.mounts.get(index)?;
            format!(" {:?}: {:?}", mount.target, mount.sub_path)
        }
        Step::MakeDevice => format!(" {:?}", plan.devices.get(index)?.path),
        Step::Mask => format!(" {:?}", plan.masked_paths.get(index)?),
        Step::ReadOnly => format!(" {:?}", plan.readonly_paths.get(index)?),
        Step::Hostname => format!(" {:?}", plan.hostname),
        Step::JoinCgroup => format!(" {:?}", plan.cgroup.as_ref()?.path),
        Step::Sysctl => {
            let mut keys: Vec<_> = plan.sysctls.iter().collect();
            keys.sort_unstable();
            let (key, value) = keys.get(index)?;
            format!(" {key}={value}")
        }
        _ => return None,
    })
}
