//! Limits in the controllers of cgroup v1.

use std::path::PathBuf;

use rustix::io::Errno;

use crate::proto::plan::{DeviceRule, Resources};

use super::{Cgroup, Error, Result, device_bpf, files, v2};

pub fn apply(cgroup: &Cgroup, resources: &Resources) -> Result<()> {
    // A hybrid machine has some controllers in v2.
    let unified = cgroup.hierarchies.iter().find(|h| h.is_v2());
    match (unified, resources.unified.keys().min()) {
        (Some(hierarchy), _) => v2::unified(cgroup, hierarchy, resources)?,
        (None, None) => {}
        (None, Some(file)) => {
            return Err(Error::Value {
                cgroup: cgroup.path.clone(),
                reason: format!("{file} can only be set in cgroup v2, and this machine has only v1"),
            });
        }
    }
    let limits = Limits { cgroup };
    limits.cpu(resources)?;
    limits.memory(resources)?;
    if let Some(pids) = resources.pids_limit {
        let value = if pids < 0 {
            "max".to_owned()
        } else {
            pids.to_string()
        };
        limits.set("pids", "pids.max", &value, pids < 0)?;
    }
    match cgroup.controller("hugetlb") {
        Some(hierarchy) if hierarchy.is_v2() => v2::huge_pages(cgroup, hierarchy, resources)?,
        _ => limits.huge_pages(resources)?,
    }
    limits.devices(&resources.devices)
}

struct Limits<'a> {
    cgroup: &'a Cgroup,
}

impl Limits<'_> {
    fn file(&self, controller: &str, file: &str) -> Option<PathBuf> {
        let hierarchy = self.cgroup.hierarchies.iter().find(|h| h.has(controller))?;
        Some(hierarchy.folder(&self.cgroup.path).join(file))
    }

    fn set(&self, controller: &'static str, file: &str, value: &str, no_limit: bool) -> Result<()> {
        let Some(path) = self.file(controller, file) else {
            if no_limit {
                return Ok(());
            }
            return Err(self.cgroup.no_controller(controller, file, value));
        };
        match files::try_write(&path, value) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) if no_limit => Ok(()),
            Err(Errno::NOENT) => Err(self.cgroup.no_controller(controller, file, value)),
            Err(errno) => Err(Error::File {
                step: "write",
                path,
                errno,
            }),
        }
    }

    fn huge_pages(&self, resources: &Resources) -> Result<()> {
        for limit in &resources.hugepage_limits {
            let (size, value) = (&limit.page_size, limit.limit.to_string());
            let file = format!("hugetlb.{size}.limit_in_bytes");
            self.set("hugetlb", &file, &value, false)?;
            // Reserved pages count too where the kernel knows them (5.7).
            let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
            match self.set("hugetlb", &reserved, &value, false) {
                Ok(()) | Err(Error::NoController { .. }) => {}
                other => return other,
            }
        }
        Ok(())
    }

    fn cpu(&self, resources: &Resources) -> Result<()> {
        if let Some(shares) = resources.cpu_shares.filter(|shares| *shares != 0) {
            self.set("cpu", "cpu.shares", &shares.to_string(), false)?;
        }
        let quota = resources.cpu_quota.filter(|quota| *quota != 0);
        let period = resources.cpu_period.filter(|period| *period != 0);
        let set_period = || match period {
            Some(period) => self.set(
                "cpu",
                "cpu.cfs_period_us",
                &period.to_string(),
                quota.is_none_or(|q| q < 0),
            ),
            None => Ok(()),
        };
        let set_quota = || match quota {
            Some(quota) => self.set("cpu", "cpu.cfs_quota_us", &quota.to_string(), quota < 0),
            None => Ok(()),
        };
        // The kernel refuses a share above the parent's at every step: when the new
        // period does not go with the old quota, the quota goes first.
        match set_period() {
            Err(Error::File {
                errno: Errno::INVAL, ..
            }) if quota.is_some() => {
                set_quota()?;
                set_period()?;
            }
            answer => {
                answer?;
                set_quota()?;
            }
        }
        if !resources.cpuset_cpus.is_empty() {
            self.set("cpuset", "cpuset.cpus", &resources.cpuset_cpus, false)?;
        }
        if !resources.cpuset_mems.is_empty() {
            self.set("cpuset", "cpuset.mems", &resources.cpuset_mems, false)?;
        }
        Ok(())
    }

    /// At any moment memory must be at most memory and swap together, or the kernel
    /// says EINVAL: what grows is set in the other order than what shrinks.
    fn memory(&self, resources: &Resources) -> Result<()> {
        let memory = resources.memory_limit.filter(|limit| *limit != 0);
        let total = resources.memory_swap_limit.filter(|limit| *limit != 0);
        if let (Some(memory), Some(total)) = (memory, total)
            && total >= 0
            && (memory < 0 || total < memory)
        {
            return Err(Error::Value {
                cgroup: self.cgroup.path.clone(),
                reason: format!(
                    "memory and swap together ({total} bytes) are less than the memory limit ({memory})"
                ),
            });
        }
        let (Some(memory), Some(total)) = (memory, total) else {
            if let Some(total) = total {
                self.total_alone(total)?;
            }
            return memory.map_or(Ok(()), |memory| self.only_memory(memory));
        };
        // The first order is right when the limits grow; with limits that shrink it
        // is refused with EINVAL, and then the other one is right.
        match self.total(total, Some(memory)) {
            Err(Error::File {
                errno: Errno::INVAL, ..
            }) => {
                self.only_memory(memory)?;
                self.total(total, Some(memory))
            }
            answer => {
                answer?;
                self.only_memory(memory)
            }
        }
    }

    /// Memory and swap together, with the memory limit that is there.
    fn total_alone(&self, total: i64) -> Result<()> {
        match self.total(total, None) {
            Err(Error::File {
                errno: Errno::INVAL, ..
            }) => Err(Error::Value {
                cgroup: self.cgroup.path.clone(),
                reason: format!(
                    "a limit of memory and swap together ({total} bytes) needs a memory limit that is no larger"
                ),
            }),
            answer => answer,
        }
    }

    fn only_memory(&self, memory: i64) -> Result<()> {
        self.set("memory", "memory.limit_in_bytes", &memory.to_string(), memory < 0)
    }

    fn total(&self, total: i64, memory: Option<i64>) -> Result<()> {
        // A kernel without swap accounting has no such file: to forbid swap is then
        // what cannot be promised, but on a machine without swap it is so anyway.
        let harmless = total < 0 || (memory == Some(total) && !has_swap());
        self.set(
            "memory",
            "memory.memsw.limit_in_bytes",
            &total.to_string(),
            harmless,
        )
    }

    fn devices(&self, rules: &[DeviceRule]) -> Result<()> {
        if rules.is_empty() {
            return Ok(());
        }
        let (Some(allow), Some(deny)) = (
            self.file("devices", "devices.allow"),
            self.file("devices", "devices.deny"),
        ) else {
            // The controller is not in v1 here: a program in the v2 hierarchy does it.
            return device_bpf::apply(self.cgroup, rules);
        };
        let allow = (files::open_for_writing(&allow)?, allow);
        let deny = (files::open_for_writing(&deny)?, deny);
        for rule in rules {
            let (file, path) = if rule.allow { &allow } else { &deny };
            let number = |part: Option<u32>| part.map_or_else(|| "*".to_owned(), |n| n.to_string());
            let value = format!(
                "{} {}:{} {}",
                rule.kind,
                number(rule.major),
                number(rule.minor),
                rule.access
            );
            // Each write is a rule of its own.
            rustix::io::write(file, value.as_bytes()).map_err(|errno| Error::File {
                step: "write",
                path: path.clone(),
                errno,
            })?;
        }
        Ok(())
    }
}

fn has_swap() -> bool {
    // One line of heading, then one for each swap area.
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}
