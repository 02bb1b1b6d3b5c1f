//! What the kernel of this machine has, where a story needs to know: a small one,
//! as User Mode Linux, lacks some things. A story says what it leaves out.

use std::{fs, process::Command};

/// Whether the kernel has the cgroup controller `name`, on v1 or v2.
pub fn has_controller(name: &str) -> bool {
    let known = |path: &str| fs::read_to_string(path).unwrap_or_default();
    // The second only where v1 is compiled in.
    known("/sys/fs/cgroup/cgroup.controllers")
        .split_whitespace()
        .chain(
            known("/proc/cgroups")
                .lines()
                .filter_map(|line| line.split('\t').next()),
        )
        .any(|controller| controller == name)
}

/// Whether the kernel has nf_tables: without it berthd has neither masquerade nor
/// host ports, and the CNI plugin portmap does not work.
pub fn has_nftables() -> bool {
    // A listing is empty there and no error; a trial changes nothing.
    Command::new("nft")
        .args(["--check", "add table inet e2e_trial"])
        .output()
        .is_ok_and(|output| output.status.success())
}
