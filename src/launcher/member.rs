//! The last step into a pid namespace that others live in.
//!
//! A process that appears there can be reached by its neighbours: with CAP_SYS_PTRACE
//! they may trace it, and open its root and its descriptors by /proc, whether or not it
//! is dumpable. So all of the walk is done by a process that stays outside. When
//! everything is the container's and nothing of the node is open any more, it clones a
//! sibling into the namespace, which only becomes who it is to be, and executes.
//!
//! An init needs a procfs of that namespace before. Linux makes one from outside since
//! 6.18; with an older one inits are inside from the beginning.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::setsid;

use crate::sys::clone::{Forked, clone_sibling, exit};

use super::identity::Labels;
use super::step::{At, Step, Walk};
use super::{channel, child, filesystem, process};

/// Goes on as a sibling in the pid namespace of the caller's children and in the cgroups
/// of `tasks`, leading a session with the terminal that is standard input, if `master` is
/// its other side; says Ready when there is a terminal or the init `waits` to be started;
/// executes. Never returns.
///
/// The sibling joins by itself, for a fork in a cgroup that is full is refused, and a
/// move into it is not: people want to look into just that container. In cgroup v2 the
/// caller is in it already, and there has to be room for both of them for a moment.
pub fn execute(
    process: &process::Prepared,
    tasks: &[OwnedFd],
    master: Option<BorrowedFd<'_>>,
    socket: BorrowedFd<'_>,
    waits: bool,
) -> ! {
    let entered = enter(process, tasks, master, socket).and_then(|labels| {
        if waits || master.is_some() {
            channel::say_ready(socket, master).at(Step::Talk)?;
        }
        Ok(labels)
    });
    match entered {
        Ok(labels) => child::execute(process, &labels, socket, waits),
        Err(failure) => child::fail(&failure, socket),
    }
}

fn enter(
    process: &process::Prepared,
    tasks: &[OwnedFd],
    master: Option<BorrowedFd<'_>>,
    socket: BorrowedFd<'_>,
) -> Walk<Labels> {
    child::close_all_but(socket, master.into_iter().chain(tasks.iter().map(AsFd::as_fd)))?;
    match clone_sibling(0).at(Step::Clone)? {
        // Its words must come after those of its introduction.
        Forked::Child if channel::wait(socket) => {}
        Forked::Child => exit(128),
        Forked::Parent { pidfd, .. } => {
            exit(i32::from(channel::say_moved(socket, pidfd.as_fd()).is_err()));
        }
    }
    child::join_cgroups(tasks)?;
    setsid().at(Step::Session)?;
    if master.is_some() {
        child::control_terminal()?;
    }
    if !process.has_label() {
        return Ok(Labels::default());
    }
    // A process can only label itself, so its own files are needed here.
    Labels::open(process, filesystem::procfs_of_processes()?.as_fd())
}
