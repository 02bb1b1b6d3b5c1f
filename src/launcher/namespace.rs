//! Which namespaces a container makes, and which it joins.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, open};

use crate::proto::plan::{Namespace, namespace::Kind};
use crate::sys::clone::{Forked, clone_sibling, clone3, exit};
use crate::sys::namespace as kind;

use super::overlay::Problem;
use super::step::{At, Failure, Step, Walk};
use super::{Error, channel, filesystem};

#[derive(Debug, Default)]
pub struct Namespaces {
    /// CLONE_NEW* bits for clone3.
    made: u64,
    /// Made by unshare in the child, when it is in its cgroups: the cgroup
    /// namespace's root is where the process is at that moment.
    cgroup: bool,
    pid: Option<Pids>,
    joined: Vec<(usize, u64, OwnedFd)>,
    /// The pod's: everything that is made belongs to it.
    user: Option<(usize, OwnedFd)>,
    /// What the new mount namespace is a copy of, if not of the caller's.
    bare: Option<OwnedFd>,
}

/// A pid namespace that others live in.
#[derive(Debug)]
struct Pids {
    index: usize,
    file: OwnedFd,
    /// It is entered when all of the walk is done: see [`super::member`].
    late: bool,
}

pub fn prepare(namespaces: &[Namespace]) -> Result<Namespaces, Problem> {
    let mut prepared = Namespaces::default();
    let mut seen = 0;
    for (index, namespace) in namespaces.iter().enumerate() {
        let bad = |reason: &str| Problem::Plan(Error::plan(format!("namespaces[{index}]"), reason));
        let bit = match Kind::try_from(namespace.kind).map_err(|_| bad("its kind is unknown"))? {
            Kind::Pid => kind::PID,
            Kind::Network => kind::NETWORK,
            Kind::Mount => kind::MOUNT,
            Kind::Ipc => kind::IPC,
            Kind::Uts => kind::UTS,
            Kind::Cgroup => kind::CGROUP,
            Kind::User => kind::USER,
        };
        if seen & bit != 0 {
            return Err(bad("its kind is there twice"));
        }
        seen |= bit;
        if namespace.path.is_empty() {
            if bit == kind::USER {
                return Err(bad("a user namespace is the pod's; the path must not be empty"));
            }
            if bit == kind::CGROUP {
                prepared.cgroup = true;
            } else {
                prepared.made |= bit;
            }
            continue;
        }
        if bit == kind::MOUNT {
            return Err(bad(
                "a container's mount namespace is always its own; the path must be empty",
            ));
        }
        let file = open(
            namespace.path.as_str(),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .at_index(Step::OpenNamespace, index)?;
        match bit {
            kind::PID => {
                prepared.pid = Some(Pids {
                    index,
                    file,
                    late: false,
                });
            }
            kind::USER => prepared.user = Some((index, file)),
            bit => prepared.joined.push((index, bit, file)),
        }
    }
    // In a user namespace the process is out of reach for whoever else is in it: what they
    // may do there says nothing of memory that was the node's.
    if let Some(pids) = &mut prepared.pid {
        pids.late = prepared.user.is_none() && filesystem::has_procfs_of(pids.file.as_fd());
    }
    if prepared.made & kind::MOUNT == 0 {
        return Err(Problem::Plan(Error::plan(
            "namespaces",
            "a new mount namespace is missing",
        )));
    }
    Ok(prepared)
}

impl Namespaces {
    pub fn has_own_uts(&self) -> bool {
        self.made & kind::UTS != 0
    }

    pub fn user(&self) -> Option<BorrowedFd<'_>> {
        self.user.as_ref().map(|(_, file)| file.as_fd())
    }

    /// Has the new mount namespace be a copy of the one at `path`, of berthd's making: then
    /// it costs the same however many mounts the node has. Whether it can be opened: it is
    /// gone with the berthd that made it.
    pub fn begin_with_mounts_of(&mut self, path: &str) -> bool {
        self.bare = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
        self.bare.is_some()
    }

    /// The pid namespace that the process is in at the end only.
    pub fn late_pids(&self) -> Option<BorrowedFd<'_>> {
        let pids = self.pid.as_ref().filter(|pids| pids.late);
        pids.map(|pids| pids.file.as_fd())
    }

    pub fn descriptors(&self, into: &mut Vec<RawFd>) {
        into.extend(self.joined.iter().map(|(_, _, file)| file.as_raw_fd()));
        into.extend(self.user.iter().map(|(_, file)| file.as_raw_fd()));
        into.extend(self.bare.iter().map(AsRawFd::as_raw_fd));
        into.extend(self.late_pids().map(|file| file.as_raw_fd()));
    }

    /// In the parent.
    pub fn clone(&self, cgroup: Option<BorrowedFd<'_>>) -> Walk<Forked> {
        let made = match (&self.user, &self.bare) {
            // What belongs to a user namespace is made in it: see `enter_user`.
            (Some(_), _) => 0,
            // A namespace of mounts is copied from the one where one is: see `leave_mounts`.
            (None, Some(_)) => self.made & !kind::MOUNT,
            (None, None) => self.made,
        };
        match &self.pid {
            Some(pids) if !pids.late => {
                let joined = clone_in_pid_namespace(pids.file.as_fd(), made, cgroup);
                joined.map_err(|failure| Failure {
                    index: u16::try_from(pids.index).unwrap_or(u16::MAX),
                    ..failure
                })
            }
            _ => clone3(made, cgroup).at(Step::Clone),
        }
    }

    /// In the child, which is the node's root: leaves the node's mounts for those that its
    /// own are a copy of.
    pub fn leave_mounts(&self) -> Walk<()> {
        let Some(bare) = &self.bare else { return Ok(()) };
        kind::join(bare.as_fd(), kind::MOUNT).at(Step::MountNamespace)?;
        if self.user.is_none() {
            kind::unshare(kind::MOUNT).at(Step::MountNamespace)?;
        }
        Ok(())
    }

    /// In the child: joins the pod's user namespace, and makes the container's own
    /// namespaces so that they belong to it. A pid namespace is for children, so this
    /// takes a second process, which alone returns: the parent is told of it, and the
    /// first one ends. The second is still the node's root, with rights in the user
    /// namespace only.
    pub fn enter_user(&self, socket: BorrowedFd<'_>) -> Walk<()> {
        let Some((index, file)) = &self.user else {
            return Ok(());
        };
        kind::join(file.as_fd(), kind::USER).at_index(Step::JoinNamespace, *index)?;
        match clone_sibling(self.made).at(Step::Clone)? {
            // Its words must come after those of its introduction.
            Forked::Child if channel::wait(socket) => Ok(()),
            Forked::Child => exit(128),
            Forked::Parent { pidfd, .. } => {
                exit(i32::from(channel::say_moved(socket, pidfd.as_fd()).is_err()));
            }
        }
    }

    /// In the child, when it is in its cgroups. It stays in its pid namespace: only its
    /// children will be in the one that is joined.
    pub fn join(&self) -> Walk<()> {
        if let Some(pids) = self.pid.as_ref().filter(|pids| pids.late) {
            kind::join(pids.file.as_fd(), kind::PID).at_index(Step::JoinPid, pids.index)?;
        }
        for (index, bit, file) in &self.joined {
            kind::join(file.as_fd(), *bit).at_index(Step::JoinNamespace, *index)?;
        }
        if self.cgroup {
            kind::unshare(kind::CGROUP).at(Step::CgroupNamespace)?;
        }
        Ok(())
    }
}

/// A pid namespace is entered by children only: the calling thread joins, clones and
/// goes back, whatever happened. `target` is a namespace file or a pidfd.
pub fn clone_in_pid_namespace(
    target: BorrowedFd<'_>,
    made: u64,
    cgroup: Option<BorrowedFd<'_>>,
) -> Walk<Forked> {
    let own = open(
        c"/proc/thread-self/ns/pid",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(Step::LeavePid)?;
    kind::join(target, kind::PID).at(Step::JoinPid)?;
    let forked = clone3(made, cgroup);
    if matches!(forked, Ok(Forked::Child)) {
        return Ok(Forked::Child);
    }
    let back = kind::join(own.as_fd(), kind::PID).at(Step::LeavePid);
    match (forked.at(Step::Clone)?, back) {
        (forked, Ok(())) => Ok(forked),
        (forked, Err(failure)) => {
            super::child::discard(forked);
            Err(failure)
        }
    }
}
