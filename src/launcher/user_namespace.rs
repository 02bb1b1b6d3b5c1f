//! User namespaces: their ranges of ids, and one that is made by a process which only
//! waits, for a process with several threads cannot enter a new one itself.

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use crate::proto::plan::IdRange;
use crate::sys::clone::{Forked, clone3, exit};
use crate::sys::{descriptor, namespace};

/// Consecutive ids of a user namespace, and those of the node that they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first in the namespace.
    pub container: u32,
    /// The first on the node.
    pub host: u32,
    /// How many.
    pub length: u32,
}

/// The ranges of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    pub uids: Vec<Range>,
    pub gids: Vec<Range>,
}

impl Ranges {
    /// As a plan has them.
    #[must_use]
    pub fn of_plan(uids: &[IdRange], gids: &[IdRange]) -> Ranges {
        let read = |ranges: &[IdRange]| {
            let range = |range: &IdRange| Range {
                container: range.container,
                host: range.host,
                length: range.length,
            };
            ranges.iter().map(range).collect()
        };
        Ranges {
            uids: read(uids),
            gids: read(gids),
        }
    }

    /// The node's number of a user in the namespace; None: it has none.
    #[must_use]
    pub fn host_uid(&self, uid: u32) -> Option<u32> {
        host(&self.uids, uid)
    }

    /// The node's number of a group in the namespace; None: it has none.
    #[must_use]
    pub fn host_gid(&self, gid: u32) -> Option<u32> {
        host(&self.gids, gid)
    }
}

fn host(ranges: &[Range], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.container)?;
        (offset < range.length)
            .then(|| range.host.checked_add(offset))
            .flatten()
    })
}

/// The lines of uid_map and gid_map, user_namespaces(7).
fn table(ranges: &[Range]) -> String {
    let mut table = String::new();
    for range in ranges {
        let _ = writeln!(table, "{} {} {}", range.container, range.host, range.length);
    }
    table
}

/// A process that was born in new namespaces and holds them until this is dropped. It
/// runs no code but waiting, and dies with the thread that made it.
#[derive(Debug)]
pub struct Holder {
    pid: i32,
    pidfd: OwnedFd,
}

impl Holder {
    /// Makes a user namespace with these ranges, and further ones (`CLONE_NEW*` bits in
    /// `kinds`) that belong to it.
    ///
    /// # Errors
    /// Those of clone3(2); ENOSPC: /proc/sys/user/max_user_namespaces. Those of writing
    /// a map: EINVAL when ranges overlap or leave 32 bits.
    pub fn new(kinds: u64, ranges: &Ranges) -> Result<Holder, Errno> {
        let parent = rustix::process::getpid();
        let Forked::Parent { pid, pidfd } = clone3(namespace::USER | kinds, None)? else {
            hold(parent);
        };
        let holder = Holder { pid, pidfd };
        for (file, ranges) in [("uid_map", &ranges.uids), ("gid_map", &ranges.gids)] {
            std::fs::write(format!("/proc/{pid}/{file}"), table(ranges))
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
        Ok(holder)
    }

    /// The namespace file of this name in /proc/PID/ns.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.pid)
    }

    /// The user namespace itself, which lives as long as the descriptor is open.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(&self) -> Result<OwnedFd, Errno> {
        use rustix::fs::{Mode, OFlags};
        rustix::fs::open(self.path("user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }

    /// For setns(2), which takes several kinds at once from it.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let options = WaitIdOptions::EXITED;
        while let Err(Errno::INTR) = waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {}
    }
}

/// The holder's life. It has a copy of every descriptor of its parent: none may stay open.
fn hold(parent: Pid) -> ! {
    let _ = descriptor::close_all_but(&[]);
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // In case the parent died before that: then somebody else has adopted this process.
    if rustix::process::getppid() != Some(parent) {
        exit(1);
    }
    loop {
        rustix::event::pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Ranges {
        let range = |host| Range {
            container: 0,
            host,
            length: 65536,
        };
        Ranges {
            uids: vec![range(3_516_268_544)],
            gids: vec![range(100_000)],
        }
    }

    #[test]
    fn ids_are_translated_within_their_ranges() {
        let ranges = ranges();
        assert_eq!(ranges.host_uid(0), Some(3_516_268_544));
        assert_eq!(ranges.host_uid(65535), Some(3_516_334_079));
        assert_eq!(ranges.host_uid(65536), None);
        assert_eq!(ranges.host_gid(5), Some(100_005));
        assert_eq!(Ranges::default().host_uid(0), None);
    }

    #[test]
    fn a_holder_has_the_maps_and_goes() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let holder = Holder::new(namespace::NETWORK, &ranges()).unwrap();
        let map = std::fs::read_to_string(format!("/proc/{}/uid_map", holder.pid)).unwrap();
        let words: Vec<&str> = map.split_whitespace().collect();
        assert_eq!(words, ["0", "3516268544", "65536"]);
        let files = || {
            std::fs::read_dir(format!("/proc/{}/fd", holder.pid))
                .unwrap()
                .count()
        };
        // Standard input and output stay; the others go as soon as it runs.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while files() != 3 {
            assert!(
                std::time::Instant::now() < deadline,
                "{} are open in the holder",
                files()
            );
            std::thread::yield_now();
        }
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_ne!(std::fs::read_link(holder.path("net")).unwrap(), own);
        let pid = holder.pid;
        drop(holder);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn wrong_maps_are_errors() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let mut wrong = ranges();
        wrong.uids.push(wrong.uids[0]);
        assert_eq!(Holder::new(0, &wrong).unwrap_err(), Errno::INVAL);
    }
}
