//! A further process in the namespaces, the root and the cgroup of a running init.

use std::convert::Infallible;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::proto::plan;
use crate::sys::clone::{Forked, clone3};
use crate::sys::namespace as kind;

use super::channel::{self, Word};
use super::error::{Error, Names};
use super::identity::{self, Labels};
use super::oci::Runtime;
use super::step::{At, Failure, Step, Walk};
use super::user_namespace::Ranges;
use super::{Stdio, child, console, filesystem, member, namespace, pid_of, process};

/// The container to enter.
#[derive(Debug)]
pub struct ExecTarget<'a> {
    /// Of the init. It is the identity: a number could be somebody else's by now.
    pub pidfd: BorrowedFd<'a>,
    /// Of the container.
    pub cgroup: &'a Cgroup,
    /// Of the container's user namespace, when it has one of its own.
    pub user: Option<&'a Ranges>,
    /// The OCI runtime that has made the container.
    pub runtime: Option<&'a Runtime>,
}

/// A process that was executed. The caller is its parent, and reaps it.
#[derive(Debug)]
pub struct ExecProcess {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The master side of its terminal.
    pub console: Option<OwnedFd>,
    /// Its own cgroup, to kill it with its descendants; to be removed when it has
    /// ended. None on a machine without a v2 hierarchy.
    pub cgroup: Option<Cgroup>,
}

/// Pid, pidfd and terminal of a process that was executed.
pub(super) type Executed = (i32, OwnedFd, Option<OwnedFd>);

impl ExecProcess {
    /// What was executed, with its cgroup; after an error the cgroup is ended and removed.
    pub(super) fn of(executed: Result<Executed, Error>, cgroup: Option<Cgroup>) -> Result<Self, Error> {
        match executed {
            Ok((pid, pidfd, console)) => Ok(Self {
                pid,
                pidfd,
                console,
                cgroup,
            }),
            Err(error) => {
                if let Some(cgroup) = cgroup {
                    let _ = cgroup.kill();
                    let _ = cgroup.remove();
                }
                Err(error)
            }
        }
    }
}

/// All that a container may have of its own. To join what is shared with the host anyway changes nothing.
const JOINED: u64 = kind::MOUNT | kind::NETWORK | kind::IPC | kind::UTS | kind::CGROUP;

/// Runs `process` in the container of `target`, in a cgroup of its own named after
/// `exec_id`; returns when the exec succeeded or failed.
///
/// # Errors
/// The failing step. Nothing is left then: no process, no cgroup.
pub fn exec(
    target: &ExecTarget<'_>,
    process: &plan::Process,
    exec_id: &str,
    stdio: Stdio,
) -> Result<ExecProcess, Error> {
    if let Some(runtime) = target.runtime {
        return runtime.exec(target, process, exec_id, stdio);
    }
    let names = Names::new(process);
    let describe = |failure: Failure| names.describe(&failure, None);
    let prepared = process::prepare(process, target.user)?;
    identity::make_undumpable().map_err(describe)?;
    let stdio = stdio
        .into_array(prepared.host_uid)
        .at(Step::Stdio)
        .map_err(describe)?;
    let (socket, child_end) = channel::pair().at(Step::Channel).map_err(describe)?;
    let pidfd = rustix::io::fcntl_dupfd_cloexec(target.pidfd, 3)
        .at(Step::Channel)
        .map_err(describe)?;
    let mut keep: Vec<RawFd> = stdio.iter().map(AsRawFd::as_raw_fd).collect();
    keep.extend([child_end.as_raw_fd(), pidfd.as_raw_fd()]);
    let tasks = target.cgroup.tasks()?;
    keep.extend(tasks.iter().map(AsRawFd::as_raw_fd));
    keep.sort_unstable();

    let cgroup = target.cgroup.child(&format!("exec-{exec_id}"))?;
    let started = (|| {
        let into = cgroup.as_ref().and_then(Cgroup::fd_for_clone);
        // Who is in a user namespace with others is out of their reach all the time.
        let forked = match target.user {
            Some(_) => namespace::clone_in_pid_namespace(pidfd.as_fd(), 0, into),
            None => clone3(0, into).at(Step::Clone),
        };
        let Forked::Parent {
            mut pid,
            pidfd: mut started,
        } = forked.map_err(describe)?
        else {
            let stdio = stdio.each_ref().map(AsFd::as_fd);
            let target = (pidfd.as_fd(), target.user.is_some());
            let Err(failure) = walk(&prepared, target, stdio, (&keep, &tasks), child_end.as_fd());
            child::fail(&failure, child_end.as_fd())
        };
        drop(child_end);
        match converse(socket.as_fd(), &mut pid, &mut started) {
            Ok(console) => Ok((pid, started, console)),
            Err(failure) => {
                child::kill_and_reap(started.as_fd());
                Err(describe(failure))
            }
        }
    })();
    ExecProcess::of(started, cgroup)
}

/// The parent's side; ends when the child, or the one that follows it, has executed.
fn converse(socket: BorrowedFd<'_>, pid: &mut i32, pidfd: &mut OwnedFd) -> Walk<Option<OwnedFd>> {
    let mut console = None;
    loop {
        match channel::hear(socket).at(Step::Talk)? {
            Word::Moved(next) => {
                // The first one has ended, or is about to.
                child::reap(pidfd.as_fd());
                *pid = pid_of(next.as_fd()).at(Step::Talk)?;
                *pidfd = next;
                channel::allow(socket).at(Step::Talk)?;
            }
            Word::Ready(master) => console = master,
            Word::Hooks => {}
            Word::Failed(failure) => return Err(failure),
            Word::End => return Ok(console),
        }
    }
}

/// The child's side: no allocation, no lock, no log.
fn walk(
    process: &process::Prepared,
    (init, user): (BorrowedFd<'_>, bool),
    stdio: [BorrowedFd<'_>; 3],
    (keep, tasks): (&[RawFd], &[OwnedFd]),
    socket: BorrowedFd<'_>,
) -> Walk<Infallible> {
    child::begin(keep, if user { tasks } else { &[] })?;
    // What takes rights on the node, and a procfs that the container's mounts do not cover.
    let procfs = filesystem::private_procfs()?;
    identity::set_oom_score(process.oom_score_adj, procfs.as_fd())?;
    let mut labels = Labels::default();
    if user {
        labels = Labels::open(process, procfs.as_fd())?;
        identity::set_limits(process)?;
    } else {
        kind::join(init, kind::PID).at(Step::JoinPid)?;
    }
    // Refused with ESRCH when the init has ended. The mount namespace brings its root
    // and working folder with it.
    let kinds = if user { JOINED | kind::USER } else { JOINED };
    kind::join(init, kinds).at(Step::JoinNamespace)?;
    if user {
        identity::become_root()?;
    }
    const ROOT: &CStr = c"/";
    let root = open(
        ROOT,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(Step::OpenRoot)?;
    let console = match process.terminal {
        Some(size) => Some(console::open(root.as_fd(), process.uid.as_raw(), size).at(Step::Console)?),
        None => None,
    };
    child::install_stdio(stdio, console.as_ref())?;
    let master = console.as_ref().map(|console| console.master.as_fd());
    if !user {
        member::execute(process, tasks, master, socket, false);
    }
    if let Some(master) = master {
        child::control_terminal()?;
        channel::say_ready(socket, Some(master)).at(Step::Talk)?;
    }
    child::execute(process, &labels, socket, false)
}

/// Whether an exec failed because the container has ended.
#[must_use]
pub fn target_is_gone(error: &Error) -> bool {
    matches!(
        error,
        Error::Step {
            step: Step::JoinPid | Step::JoinNamespace | Step::Clone,
            errno: Errno::SRCH | Errno::NOMEM,
            ..
        }
    )
}
