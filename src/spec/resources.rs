//! Limits: of a request to the OCI spec, and of the spec to the plan.
//!
//! Zero means "not set" in the CRI. The CRI has no limit of processes: the kubelet
//! sets that on the pod's cgroup; `unified` may hold "pids.max" on cgroup v2.

use std::collections::HashMap;

use oci_spec::runtime::{
    LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory, LinuxResources, Spec,
};

use super::{Error, host::Host};
use crate::proto::{cri::LinuxContainerResources, plan as wire};

const FIELD: &str = "linux.resources";
/// Least values of the kernel's CPU bandwidth, microseconds.
const MIN_CPU_TIME: i64 = 1_000;
const MAX_CPU_PERIOD: i64 = 1_000_000;

/// The limits of a request as the plan has them; without device rules, which an
/// update leaves as they are.
pub fn resources(asked: &LinuxContainerResources, host: &Host) -> Result<wire::Resources, Error> {
    plan(&to_oci(asked, host)?)
}

/// What an update changes of a container that is there.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// What the shim has to change; without device rules.
    pub limits: wire::Resources,
    /// For every process of the container; `None`: it stays.
    pub oom_score_adj: Option<i32>,
}

/// Writes what a request sets into a stored spec, so that a later reader and every
/// exec find it, and returns what has to change.
pub fn update_resources(
    spec: &mut Spec,
    asked: &LinuxContainerResources,
    host: &Host,
) -> Result<Update, Error> {
    let changed = to_oci(asked, host)?;
    let mut update = Update {
        limits: plan(&changed)?,
        ..Update::default()
    };
    // Zero is "not set", as for all the others.
    update.oom_score_adj = oom_score_adj(Some(asked), host)?.filter(|_| asked.oom_score_adj != 0);
    if let (Some(score), Some(process)) = (update.oom_score_adj, spec.process_mut()) {
        process.set_oom_score_adj(Some(score));
    }
    let linux = spec.linux_mut().get_or_insert_default();
    let stored = linux.resources_mut().get_or_insert_default();
    merge(stored, changed);
    Ok(update)
}

/// The limits that a spec has.
pub fn limits(spec: &Spec) -> Result<wire::Resources, Error> {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    Ok(resources.map(plan).transpose()?.unwrap_or_default())
}

/// Replaces in `stored` what `changed` sets.
fn merge(stored: &mut LinuxResources, changed: LinuxResources) {
    if let Some(new) = changed.cpu() {
        let old = stored.cpu_mut().get_or_insert_default();
        let (shares, quota, period) = (old.shares(), old.quota(), old.period());
        old.set_shares(new.shares().or(shares))
            .set_quota(new.quota().or(quota))
            .set_period(new.period().or(period));
        if new.cpus().is_some() {
            old.set_cpus(new.cpus().clone());
        }
        if new.mems().is_some() {
            old.set_mems(new.mems().clone());
        }
    }
    if let Some(new) = changed.memory() {
        let old = stored.memory_mut().get_or_insert_default();
        let (limit, swap) = (old.limit(), old.swap());
        old.set_limit(new.limit().or(limit)).set_swap(new.swap().or(swap));
    }
    if let Some(new) = changed.hugepage_limits() {
        let old = stored.hugepage_limits_mut().get_or_insert_default();
        old.retain(|limit| !new.iter().any(|other| other.page_size() == limit.page_size()));
        old.extend(new.iter().cloned());
    }
    if let Some(new) = changed.unified() {
        stored.unified_mut().get_or_insert_default().extend(new.clone());
    }
}

/// Checks a request and turns it into the spec's form.
pub(super) fn to_oci(asked: &LinuxContainerResources, host: &Host) -> Result<LinuxResources, Error> {
    let mut made = LinuxResources::default();
    made.set_devices(None)
        .set_cpu(cpu(asked)?)
        .set_memory(memory(asked, host)?)
        .set_hugepage_limits(hugepages(asked, host)?)
        .set_unified(unified(asked, host)?);
    Ok(made)
}

fn wrong(name: &str, message: String) -> Error {
    Error::invalid(format!("{FIELD}.{name}"), message)
}

/// The score of a request, if it has resources at all; without the right to lower it,
/// no lower than the agent's own.
pub fn oom_score_adj(asked: Option<&LinuxContainerResources>, host: &Host) -> Result<Option<i32>, Error> {
    let Some(asked) = asked else {
        return Ok(None);
    };
    let Some(score) = i32::try_from(asked.oom_score_adj)
        .ok()
        .filter(|score| (-1000..=1000).contains(score))
    else {
        return Err(wrong(
            "oom_score_adj",
            format!("{} is not between -1000 and 1000", asked.oom_score_adj),
        ));
    };
    // berthd says so once, at its start: the kubelet asks for it with most pods.
    Ok(Some(score.max(host.oom_score_adj_min)))
}

fn cpu(asked: &LinuxContainerResources) -> Result<Option<LinuxCpu>, Error> {
    let (period, quota) = (asked.cpu_period, asked.cpu_quota);
    if period != 0 && !(MIN_CPU_TIME..=MAX_CPU_PERIOD).contains(&period) {
        let range = format!("{MIN_CPU_TIME} to {MAX_CPU_PERIOD}");
        return Err(wrong(
            "cpu_period",
            format!("{period} microseconds is not in {range}"),
        ));
    }
    if quota < -1 || (1..MIN_CPU_TIME).contains(&quota) {
        let message = format!("{quota} is neither -1 (no limit) nor at least {MIN_CPU_TIME} microseconds");
        return Err(wrong("cpu_quota", message));
    }
    // The kernel would answer with EINVAL at create; here the field is known.
    let shares = match u64::try_from(asked.cpu_shares) {
        Ok(0) => None,
        Ok(shares) => Some(shares.clamp(2, 262_144)),
        Err(_) => return Err(wrong("cpu_shares", format!("{} is negative", asked.cpu_shares))),
    };
    let cpus = list("cpuset_cpus", &asked.cpuset_cpus)?;
    let mems = list("cpuset_mems", &asked.cpuset_mems)?;
    let mut cpu = LinuxCpu::default();
    cpu.set_period(u64::try_from(period).ok().filter(|period| *period != 0))
        .set_quota(Some(quota).filter(|quota| *quota != 0))
        .set_shares(shares)
        .set_cpus(cpus)
        .set_mems(mems);
    Ok(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()))
}

/// "0-3,8"; `None` for an empty one.
fn list(name: &str, text: &str) -> Result<Option<String>, Error> {
    let number = |part: &str| part.parse::<u16>().is_ok() && part.bytes().all(|b| b.is_ascii_digit());
    let range = |part: &str| match part.split_once('-') {
        Some((from, to)) => number(from) && number(to),
        None => number(part),
    };
    if text.is_empty() {
        return Ok(None);
    }
    if !text.split(',').all(range) {
        return Err(wrong(name, format!("{text:?} is not a list such as \"0-3,8\"")));
    }
    Ok(Some(text.to_owned()))
}

fn memory(asked: &LinuxContainerResources, host: &Host) -> Result<Option<LinuxMemory>, Error> {
    let (limit, swap) = (asked.memory_limit_in_bytes, asked.memory_swap_limit_in_bytes);
    if limit < -1 {
        return Err(wrong("memory_limit_in_bytes", format!("{limit} is negative")));
    }
    if swap < -1 {
        return Err(wrong("memory_swap_limit_in_bytes", format!("{swap} is negative")));
    }
    if swap > 0 && limit > 0 && swap < limit {
        return Err(wrong(
            "memory_swap_limit_in_bytes",
            format!("{swap} is less than the memory limit {limit}; it counts memory and swap together"),
        ));
    }
    if !host.swap_limit && swap > 0 && swap != limit {
        return Err(Error::precondition(
            format!("{FIELD}.memory_swap_limit_in_bytes"),
            format!("{swap}: this kernel does not count swap; boot it with swapaccount=1"),
        ));
    }
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(limit).filter(|limit| *limit != 0));
    if host.swap_limit {
        // Without a word on swap a container has none: the sum equals the limit.
        let sum = if swap != 0 { swap } else { limit };
        memory.set_swap(Some(sum).filter(|sum| *sum != 0));
    }
    Ok(Some(memory).filter(|memory| *memory != LinuxMemory::default()))
}

fn hugepages(asked: &LinuxContainerResources, host: &Host) -> Result<Option<Vec<LinuxHugepageLimit>>, Error> {
    // The kubelet sends a limit of 0 for every page size of the node.
    if !host.hugetlb && asked.hugepage_limits.iter().all(|limit| limit.limit == 0) {
        return Ok(None);
    }
    let mut limits = Vec::new();
    for limit in &asked.hugepage_limits {
        let size = limit.page_size.as_str();
        let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
        if digits.is_none_or(|digits| digits.parse::<u32>().is_err()) {
            return Err(wrong(
                "hugepage_limits",
                format!("page size {size:?} is not like \"2MB\""),
            ));
        }
        if !host.hugetlb {
            return Err(Error::precondition(
                format!("{FIELD}.hugepage_limits"),
                "this kernel has no hugetlb controller for huge pages",
            ));
        }
        let bytes = i64::try_from(limit.limit)
            .map_err(|_| wrong("hugepage_limits", format!("{} is too large", limit.limit)))?;
        let mut made = LinuxHugepageLimit::default();
        made.set_page_size(size.to_owned()).set_limit(bytes);
        limits.push(made);
    }
    Ok(Some(limits).filter(|limits| !limits.is_empty()))
}

fn unified(asked: &LinuxContainerResources, host: &Host) -> Result<Option<HashMap<String, String>>, Error> {
    for key in asked.unified.keys() {
        let plain = key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !plain || !key.contains('.') || key.starts_with('.') || key.starts_with("cgroup.") {
            return Err(wrong(
                "unified",
                format!("{key:?} is not a limit such as \"memory.max\""),
            ));
        }
    }
    if asked.unified.is_empty() {
        return Ok(None);
    }
    let in_v2 = |key: &str| {
        let controller = key.split('.').next().unwrap_or_default();
        host.v2_controllers.iter().any(|known| known == controller)
    };
    // With v2 alone the kernel knows best what there is.
    if !host.unified
        && let Some(key) = asked.unified.keys().filter(|key| !in_v2(key)).min()
    {
        return Err(Error::precondition(
            format!("{FIELD}.unified"),
            format!(
                "{key:?}: this node has no such controller in cgroup v2; boot it with systemd.unified_cgroup_hierarchy=1"
            ),
        ));
    }
    Ok(Some(asked.unified.clone()))
}

/// The limits of a spec. What the shim cannot set is an error, not left out.
pub(super) fn plan(resources: &LinuxResources) -> Result<wire::Resources, Error> {
    refuse(resources)?;
    let mut made = wire::Resources::default();
    if let Some(cpu) = resources.cpu() {
        made.cpu_shares = cpu.shares();
        made.cpu_quota = cpu.quota();
        made.cpu_period = cpu.period();
        made.cpuset_cpus = cpu.cpus().clone().unwrap_or_default();
        made.cpuset_mems = cpu.mems().clone().unwrap_or_default();
    }
    if let Some(memory) = resources.memory() {
        made.memory_limit = memory.limit();
        made.memory_swap_limit = memory.swap();
    }
    made.pids_limit = resources.pids().as_ref().map(|pids| match pids.limit() {
        // As the OCI runtimes read it: 0 and less are no limit.
        limit if limit > 0 => limit,
        _ => -1,
    });
    for limit in resources.hugepage_limits().iter().flatten() {
        made.hugepage_limits.push(wire::HugepageLimit {
            page_size: limit.page_size().clone(),
            limit: u64::try_from(limit.limit())
                .map_err(|_| Error::spec("linux.resources.hugepageLimits", "a limit is negative"))?,
        });
    }
    made.unified = resources.unified().clone().unwrap_or_default();
    made.devices = resources
        .devices()
        .iter()
        .flatten()
        .map(device_rule)
        .collect::<Result<Vec<_>, Error>>()?;
    Ok(made)
}

fn device_rule(rule: &LinuxDeviceCgroup) -> Result<wire::DeviceRule, Error> {
    let field = "linux.resources.devices";
    let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => "a",
        LinuxDeviceType::B => "b",
        LinuxDeviceType::C | LinuxDeviceType::U => "c",
        LinuxDeviceType::P => return Err(Error::spec(field, "no rule is possible for a FIFO")),
    };
    // -1 is the wildcard of some generators.
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| Error::spec(field, format!("device number {number} is out of range"))),
    };
    let access = rule.access().clone().unwrap_or_default();
    if !access.chars().all(|c| "rwm".contains(c)) {
        return Err(Error::spec(
            field,
            format!("access {access:?} is not made of r, w and m"),
        ));
    }
    Ok(wire::DeviceRule {
        allow: rule.allow(),
        kind: kind.into(),
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        access: if access.is_empty() { "rwm".into() } else { access },
    })
}

/// Limits that no request can ask for, but an editor of the spec could.
fn refuse(resources: &LinuxResources) -> Result<(), Error> {
    let cpu = resources.cpu().as_ref();
    let memory = resources.memory().as_ref();
    let set = [
        ("cpu.idle", cpu.is_some_and(|cpu| cpu.idle().is_some())),
        ("cpu.burst", cpu.is_some_and(|cpu| cpu.burst().is_some())),
        (
            "cpu.realtimeRuntime",
            cpu.is_some_and(|cpu| cpu.realtime_runtime().is_some()),
        ),
        (
            "cpu.realtimePeriod",
            cpu.is_some_and(|cpu| cpu.realtime_period().is_some()),
        ),
        (
            "memory.reservation",
            memory.is_some_and(|memory| memory.reservation().is_some()),
        ),
        (
            "memory.swappiness",
            memory.is_some_and(|memory| memory.swappiness().is_some()),
        ),
        (
            "memory.disableOOMKiller",
            memory.is_some_and(|memory| memory.disable_oom_killer() == Some(true)),
        ),
        ("blockIO", resources.block_io().is_some()),
        ("network", resources.network().is_some()),
        ("rdma", resources.rdma().is_some()),
    ];
    match set.iter().find(|(_, set)| *set) {
        None => Ok(()),
        Some((name, _)) => Err(Error::unsupported(
            format!("config.json: linux.resources.{name}"),
            "this limit is not there yet; use linux.resources.unified on cgroup v2",
        )),
    }
}

#[cfg(test)]
#[path = "tests/resources.rs"]
mod tests;
