//! Limits in cgroup v2.

use crate::proto::plan::Resources;

use super::{Cgroup, Error, Hierarchy, Result, convert, device_bpf, files};
use rustix::io::Errno;

pub fn apply(cgroup: &Cgroup, resources: &Resources) -> Result<()> {
    let Some(hierarchy) = cgroup.hierarchies.iter().find(|h| h.is_v2()) else {
        return Ok(());
    };
    let limits = Limits { cgroup, hierarchy };
    limits.cpu(resources)?;
    limits.memory(resources)?;
    if let Some(pids) = resources.pids_limit {
        limits.set("pids", "pids.max", &convert::max(pids), pids < 0)?;
    }
    huge_pages(cgroup, hierarchy, resources)?;
    unified(cgroup, hierarchy, resources)?;
    if !resources.devices.is_empty() {
        device_bpf::apply(cgroup, &resources.devices)?;
    }
    Ok(())
}

/// Limits of huge pages alone: on a hybrid machine their controller may be in v2.
pub fn huge_pages(cgroup: &Cgroup, hierarchy: &Hierarchy, resources: &Resources) -> Result<()> {
    let limits = Limits { cgroup, hierarchy };
    for limit in &resources.hugepage_limits {
        let value = limit.limit.to_string();
        let file = format!("hugetlb.{}.max", limit.page_size);
        limits.set("hugetlb", &file, &value, false)?;
        // Reserved pages count too where the kernel knows them (5.7).
        let reserved = format!("hugetlb.{}.rsvd.max", limit.page_size);
        match limits.set("hugetlb", &reserved, &value, false) {
            Ok(()) | Err(Error::NoController { .. }) => {}
            other => return other,
        }
    }
    Ok(())
}

/// Files by their names, in this hierarchy.
pub fn unified(cgroup: &Cgroup, hierarchy: &Hierarchy, resources: &Resources) -> Result<()> {
    let wrong = |reason: String| Error::Value {
        cgroup: cgroup.path.clone(),
        reason,
    };
    let mut entries: Vec<_> = resources.unified.iter().collect();
    entries.sort_unstable();
    for (file, value) in entries {
        if file.contains('/') || !file.contains('.') {
            return Err(wrong(format!(
                "unified key {file:?} is not the name of a cgroup file"
            )));
        }
        let path = hierarchy.folder(&cgroup.path).join(file);
        match files::try_write(&path, value) {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                return Err(wrong(format!(
                    "unified key {file:?}: there is no such file in {}; its controller is not enabled there",
                    hierarchy.root.display()
                )));
            }
            Err(errno) => {
                return Err(Error::File {
                    step: "write",
                    path,
                    errno,
                });
            }
        }
    }
    Ok(())
}

struct Limits<'a> {
    cgroup: &'a Cgroup,
    hierarchy: &'a Hierarchy,
}

impl Limits<'_> {
    /// `no_limit`: the value asks for what is true without the controller.
    fn set(&self, controller: &'static str, file: &str, value: &str, no_limit: bool) -> Result<()> {
        let path = self.hierarchy.folder(&self.cgroup.path).join(file);
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

    fn cpu(&self, resources: &Resources) -> Result<()> {
        if let Some(shares) = resources.cpu_shares.filter(|shares| *shares != 0) {
            self.set("cpu", "cpu.weight", &convert::weight(shares).to_string(), false)?;
        }
        if resources.cpu_quota.is_some() || resources.cpu_period.is_some() {
            self.cpu_max(resources)?;
        }
        if !resources.cpuset_cpus.is_empty() {
            self.set("cpuset", "cpuset.cpus", &resources.cpuset_cpus, false)?;
        }
        if !resources.cpuset_mems.is_empty() {
            self.set("cpuset", "cpuset.mems", &resources.cpuset_mems, false)?;
        }
        Ok(())
    }

    /// cpu.max is "quota period": the half that is not asked for stays as it is.
    fn cpu_max(&self, resources: &Resources) -> Result<()> {
        let path = self.hierarchy.folder(&self.cgroup.path).join("cpu.max");
        let present = files::read_if_exists(&path)?.unwrap_or_default();
        let mut present = present.split_whitespace();
        let (old_quota, old_period) = (
            present.next().unwrap_or("max"),
            present.next().unwrap_or("100000"),
        );
        let quota = match resources.cpu_quota {
            // 0 is "not set" in OCI.
            None | Some(0) => old_quota.to_owned(),
            Some(quota) => convert::max(quota),
        };
        let period = match resources.cpu_period {
            None | Some(0) => old_period.to_owned(),
            Some(period) => period.to_string(),
        };
        self.set("cpu", "cpu.max", &format!("{quota} {period}"), quota == "max")
    }

    fn memory(&self, resources: &Resources) -> Result<()> {
        let memory = resources.memory_limit.filter(|limit| *limit != 0);
        let known = match memory {
            Some(_) => memory,
            // An update of swap alone is relative to the limit that is there.
            None => self.present_memory_limit()?,
        };
        let swap = convert::swap_max(known, resources.memory_swap_limit).map_err(|reason| Error::Value {
            cgroup: self.cgroup.path.clone(),
            reason,
        })?;
        if let Some(swap) = swap {
            // A kernel without swap accounting, or a machine without swap, lets nobody swap.
            self.set("memory", "memory.swap.max", &swap, swap == "max" || swap == "0")?;
        }
        if let Some(memory) = memory {
            self.set("memory", "memory.max", &convert::max(memory), memory < 0)?;
        }
        Ok(())
    }

    fn present_memory_limit(&self) -> Result<Option<i64>> {
        let path = self.hierarchy.folder(&self.cgroup.path).join("memory.max");
        Ok(files::read_if_exists(&path)?.and_then(|text| text.trim().parse().ok()))
    }
}
