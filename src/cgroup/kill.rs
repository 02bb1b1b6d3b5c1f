//! Killing everything in a cgroup.

use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Cgroup, Error, Result, files};

/// Each round kills all that are there; only a fork bomb needs more than two.
const ROUNDS: u32 = 50;

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
    for round in 0..ROUNDS {
        let pids = cgroup.pids()?;
        if pids.is_empty() {
            return Ok(());
        }
        for pid in &pids {
            kill_member(cgroup, *pid)?;
        }
        if round > 0 {
            std::thread::sleep(Duration::from_millis(u64::from(round.min(20))));
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

/// Kills by pidfd, after looking whether the pid is still a member: in between it
/// may have died and its number been given to somebody else.
fn kill_member(cgroup: &Cgroup, pid: i32) -> Result<()> {
    let Some(target) = Pid::from_raw(pid) else {
        return Ok(());
    };
    let Ok(pidfd) = pidfd_open(target, PidfdFlags::empty()) else {
        return Ok(());
    };
    if cgroup.pids()?.binary_search(&pid).is_ok() {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
    Ok(())
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "pid (name) state ...": the name may hold anything, also parentheses.
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}
