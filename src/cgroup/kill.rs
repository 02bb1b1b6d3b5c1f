//! Killing everything in a cgroup.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Cgroup, Error, Result, files, tree};

/// Each round kills all that are there; only a fork bomb needs more than two.
const ROUNDS: u32 = 50;
/// What is killed is mostly dead within this.
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};

pub fn kill(cgroup: &Cgroup) -> Result<()> {
    if let Some(unified) = cgroup.hierarchies.iter().find(|h| h.is_v2()) {
        // Linux 5.14: atomic, with everything below, forks included.
        match files::try_write(&unified.folder(&cgroup.path).join("cgroup.kill"), "1") {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
            Err(errno) => {
                return Err(Error::File {
                    step: "write",
                    path: unified.folder(&cgroup.path).join("cgroup.kill"),
                    errno,
                });
            }
        }
    }
    kill_one_by_one(cgroup)
}

/// Without cgroup.kill: until no process is left. Members of a frozen v1 cgroup
/// would not die, so it is thawed.
pub(super) fn kill_one_by_one(cgroup: &Cgroup) -> Result<()> {
    let _ = cgroup.thaw();
    // A process is in every hierarchy, unless it has moved itself: those who did are looked
    // for when one hierarchy has nobody left.
    let mut all = false;
    for round in 0..ROUNDS {
        let mut pids = members(cgroup, all)?;
        if pids.is_empty() && !all {
            all = true;
            pids = members(cgroup, all)?;
        }
        if pids.is_empty() {
            return Ok(());
        }
        let mut last = None;
        for pid in &pids {
            last = kill_member(cgroup, *pid, all)?.or(last);
        }
        if round > 0 {
            std::thread::sleep(Duration::from_millis(u64::from(round.min(20))));
        } else if let Some(last) = &last {
            let _ = poll(&mut [PollFd::new(last, PollFlags::IN)], Some(&AT_ONCE));
        }
    }
    // What stays is dead but not reaped, or hangs in the kernel: both have got their signal.
    let pids: Vec<i32> = cgroup
        .pids()?
        .into_iter()
        .filter(|pid| !is_zombie(*pid))
        .collect();
    if pids.is_empty() {
        return Ok(());
    }
    Err(Error::Unkillable {
        cgroup: cgroup.path.clone(),
        pids,
        rounds: ROUNDS,
    })
}

/// Those of the first hierarchy, or of all.
fn members(cgroup: &Cgroup, all: bool) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    match cgroup.hierarchies.first() {
        Some(first) if !all => tree::collect_pids(&first.folder(&cgroup.path), &mut pids)?,
        _ => pids = cgroup.pids()?,
    }
    Ok(pids)
}

/// Kills by pidfd, after looking whether the pid is still a member: in between it
/// may have died and its number been given to somebody else.
fn kill_member(cgroup: &Cgroup, pid: i32, all: bool) -> Result<Option<OwnedFd>> {
    let pidfd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Some(pidfd) = &pidfd
        && members(cgroup, all)?.contains(&pid)
    {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    Ok(pidfd)
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "pid (name) state ...": the name may hold anything, also parentheses.
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}
