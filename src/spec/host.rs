//! Facts about this node that decide what a container gets.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::process::{Resource, getrlimit};

use super::{Error, selinux::Defaults as SelinuxDefaults};
use crate::config::Config;

const CGROUP2_MAGIC: u64 = 0x6367_7270;
const SELINUX_MAGIC: u64 = 0xf97c_ff8c;
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// Facts about this node, read once at the start.
#[derive(Clone, Debug)]
pub struct Host {
    /// The tree at /sys/fs/cgroup is cgroup v2 alone.
    pub unified: bool,
    /// Controllers of the v2 hierarchy; on a hybrid machine few, with v1 alone none.
    pub v2_controllers: Vec<String>,
    /// Capabilities that containers can be given: those the agent itself holds.
    pub capabilities: u64,
    /// (6, 18)
    pub kernel: (u32, u32),
    /// Pods can have user namespaces of their own.
    pub user_namespaces: bool,
    pub apparmor: bool,
    /// What the policy has for containers, where SELinux is on.
    pub selinux: Option<SelinuxDefaults>,
    /// Swap can be limited.
    pub swap_limit: bool,
    pub hugetlb: bool,
    /// The least oom_score_adj that the agent may set; without CAP_SYS_RESOURCE, its own.
    pub oom_score_adj_min: i32,
    /// Open files of a container, soft and hard, within what the agent may set.
    pub nofile: (u64, u64),
    /// Folder of the seccomp profiles that relative names of `localhost/` refer to.
    pub seccomp_profile_root: PathBuf,
    /// Folders of CDI specifications; a later one wins.
    pub cdi_spec_dirs: Vec<PathBuf>,
}

impl Host {
    /// Reads /proc and /sys. An error means that one of them is not mounted.
    pub fn detect(config: &Config) -> Result<Host, Error> {
        let unified = fs_type(Path::new("/sys/fs/cgroup")) == Some(CGROUP2_MAGIC);
        let capabilities = held_capabilities()?;
        let may_raise = capabilities & CAP_SYS_RESOURCE != 0;
        let own_cgroup = own_v2_cgroup()?;
        let v2_controllers = v2_controllers()?;
        let kernel = kernel_version();
        let most = read("/proc/sys/user/max_user_namespaces")?;
        Ok(Host {
            unified,
            capabilities,
            kernel,
            // Overlays upon mapped layers, and a mapped tmpfs (6.3).
            user_namespaces: kernel >= (6, 7) && most.trim().parse().is_ok_and(|most: u64| most > 0),
            apparmor: read("/sys/module/apparmor/parameters/enabled")?.starts_with('Y'),
            selinux: (fs_type(Path::new("/sys/fs/selinux")) == Some(SELINUX_MAGIC))
                .then(|| SelinuxDefaults::read(Path::new("/etc/selinux"))),
            swap_limit: if unified {
                // The root cgroup has no such file; swap accounting is a default of v2.
                own_cgroup == Path::new("/sys/fs/cgroup") || own_cgroup.join("memory.swap.max").exists()
            } else {
                Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
            },
            hugetlb: v2_controllers.iter().any(|c| c == "hugetlb")
                || Path::new("/sys/fs/cgroup/hugetlb").is_dir(),
            v2_controllers,
            oom_score_adj_min: if may_raise {
                -1000
            } else {
                read("/proc/self/oom_score_adj")?.trim().parse().unwrap_or(0)
            },
            nofile: nofile(config.runtime.nofile, may_raise),
            seccomp_profile_root: config.runtime.seccomp_profile_root.clone(),
            cdi_spec_dirs: config.runtime.cdi_spec_dirs.clone(),
        })
    }

    /// Whether the running kernel is at least this one.
    pub fn kernel_at_least(&self, major: u32, minor: u32) -> bool {
        self.kernel >= (major, minor)
    }
}

/// The configured limits, lowered to the agent's own hard limit when it may not
/// raise that.
fn nofile([soft, hard]: [u64; 2], may_raise: bool) -> (u64, u64) {
    let most = if may_raise {
        u64::MAX
    } else {
        getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
    };
    let hard = hard.min(most);
    (soft.min(hard), hard)
}

/// Contents of a small file of /proc or /sys; empty when it is not there.
fn read(path: &str) -> Result<String, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

fn fs_type(path: &Path) -> Option<u64> {
    let found = rustix::fs::statfs(path).ok()?;
    // Of different width and sign from one architecture to the next; magics have 32 bits.
    u64::try_from(found.f_type & 0xffff_ffff).ok()
}

fn held_capabilities() -> Result<u64, Error> {
    let status = read("/proc/self/status")?;
    let mask = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .ok_or_else(|| Error::io("read", "/proc/self/status")(io::ErrorKind::InvalidData.into()))
    };
    Ok(mask("CapPrm:")? & mask("CapBnd:")?)
}

/// The agent's own cgroup in the v2 hierarchy, as a path.
fn own_v2_cgroup() -> Result<PathBuf, Error> {
    let table = read("/proc/self/cgroup")?;
    let own = table
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    Ok(Path::new("/sys/fs/cgroup").join(own))
}

/// Alone, or beside v1.
fn v2_controllers() -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for folder in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let list = read(&format!("{folder}/cgroup.controllers"))?;
        found.extend(list.split_whitespace().map(str::to_owned));
    }
    Ok(found)
}

fn kernel_version() -> (u32, u32) {
    let uname = rustix::system::uname();
    parse_version(&uname.release().to_string_lossy())
}

/// "6.18.2-amd64" is (6, 18); what cannot be read is 0.
pub(super) fn parse_version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_node_is_described() {
        let host = Host::detect(&Config::default()).unwrap();
        assert!(host.kernel_at_least(5, 14), "{:?}", host.kernel);
        assert_ne!(host.capabilities, 0, "tests run as root");
        assert!(host.nofile.0 <= host.nofile.1);
    }

    #[test]
    fn kernel_releases() {
        assert_eq!(parse_version("6.18.2-amd64"), (6, 18));
        assert_eq!(parse_version("5.14"), (5, 14));
        assert_eq!(parse_version("odd"), (0, 0));
    }
}
