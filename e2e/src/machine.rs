//! What the kernel of this machine has, where a story needs to know: a small one,
//! as User Mode Linux, lacks some things. A story says what it leaves out.

use std::{env, fs, path::Path, process::Command};

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

/// Whether the kernel is of this release or a later one.
pub fn kernel_is_at_least(major: u32, minor: u32) -> crate::Result<bool> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = text.split(['.', '-']).map(str::parse::<u32>);
    let (Some(Ok(first)), Some(Ok(second))) = (numbers.next(), numbers.next()) else {
        anyhow::bail!("{text:?} is no kernel release");
    };
    Ok((first, second) >= (major, minor))
}

/// Whether systemd makes the cgroups of the stories: as `E2E_CONFIG` says, else as
/// berthd chooses by itself.
pub fn has_systemd_cgroups() -> bool {
    let told = env::var("E2E_CONFIG").unwrap_or_default();
    let driver = told.lines().find_map(|line| line.trim().strip_prefix("driver"));
    match driver {
        Some(driver) if driver.contains("systemd") => true,
        Some(driver) if driver.contains("cgroupfs") => false,
        _ => {
            Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
                && Path::new("/run/systemd/system").is_dir()
        }
    }
}

/// A cgroup parent as a kubelet with the right driver names it, and its path:
/// "/a/b-c", or "a-b_c.slice" and "/a.slice/a-b_c.slice".
pub fn cgroup_parent(parts: &[&str]) -> (String, String) {
    if !has_systemd_cgroups() {
        let path = format!("/{}", parts.join("/"));
        return (path.clone(), path);
    }
    let mut path = String::new();
    let mut name = String::new();
    for part in parts {
        if !name.is_empty() {
            name.push('-');
        }
        // One of its own would be a parent more.
        name.push_str(&part.replace('-', "_"));
        path.push_str(&format!("/{name}.slice"));
    }
    (format!("{name}.slice"), path)
}
