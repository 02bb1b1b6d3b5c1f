//! The counters of cgroup v1's controllers, and the pressure that a v2 hierarchy
//! beside them has.

use super::{
    Result,
    gauge::Folder,
    stats::{Cpu, CpuLimits, Detail, Disk, HugePages, Keyed, Memory, Stats, Swap, Tasks, pressures},
};

/// Above this v1 means "no limit": the greatest signed number, rounded to a page.
pub const NO_LIMIT: u64 = 1 << 62;

/// `folders` are those of this cgroup, with their controllers.
pub fn read(folders: &[(&[String], &Folder)], unified: Option<&Folder>, detail: Detail) -> Result<Stats> {
    let find = |controller: &str| {
        let mut all = folders.iter();
        let found = all.find(|(controllers, _)| controllers.iter().any(|known| known == controller));
        found.map(|(_, folder)| *folder)
    };
    let mut stats = Stats::default();
    if let Some(folder) = find("cpuacct") {
        stats.cpu = cpu(folder, detail)?;
    }
    if let Some(folder) = find("memory") {
        stats.memory = memory(folder, detail)?;
    }
    // Every hierarchy has all processes; one of execs is below the container's in v2.
    if detail != Detail::Usage
        && let Some(folder) = find("pids")
            .or_else(|| find("memory"))
            .or_else(|| find("cpuacct"))
    {
        stats.processes = folder.processes()?;
    }
    if let Some(folder) = unified {
        stats.pressure = pressures(folder)?;
    }
    if detail != Detail::All {
        return Ok(stats);
    }
    if let Some(folder) = find("cpu") {
        stats.cpu_limits = cpu_limits(folder)?;
        if let (Some(cpu), Some(text)) = (&mut stats.cpu, folder.read("cpu.stat")?) {
            throttling(cpu, &text);
        }
    }
    if let Some(folder) = find("pids")
        && let Some(current) = folder.number("pids.current")?
    {
        let limit = folder.number("pids.max")?;
        stats.tasks = Some(Tasks { current, limit });
    }
    if let Some(folder) = find("blkio") {
        stats.disks = disks(folder)?;
    }
    if let Some(folder) = find("hugetlb") {
        stats.huge_pages = huge_pages(folder)?;
    }
    Ok(stats)
}

fn cpu(folder: &Folder, detail: Detail) -> Result<Option<Cpu>> {
    let Some(usage) = folder.number("cpuacct.usage")? else {
        return Ok(None);
    };
    let mut cpu = Cpu {
        usage,
        ..Cpu::default()
    };
    if detail == Detail::All {
        cpu.user = folder.number("cpuacct.usage_user")?.unwrap_or(0);
        cpu.system = folder.number("cpuacct.usage_sys")?.unwrap_or(0);
    }
    Ok(Some(cpu))
}

fn throttling(cpu: &mut Cpu, text: &str) {
    let stat = Keyed::new(text);
    cpu.periods = stat.of("nr_periods");
    cpu.throttled_periods = stat.of("nr_throttled");
    cpu.throttled = stat.of("throttled_time");
}

fn cpu_limits(folder: &Folder) -> Result<CpuLimits> {
    Ok(CpuLimits {
        period: folder.number("cpu.cfs_period_us")?,
        // -1, which is no limit, is not a number here.
        quota: folder.number("cpu.cfs_quota_us")?,
        shares: folder.number("cpu.shares")?,
    })
}

fn memory(folder: &Folder, detail: Detail) -> Result<Option<Memory>> {
    let (Some(usage), Some(text)) = (
        folder.number("memory.usage_in_bytes")?,
        folder.read("memory.stat")?,
    ) else {
        return Ok(None);
    };
    let stat = Keyed::new(&text);
    // "total_" is with the cgroups below.
    let limit = limit(
        folder,
        &stat,
        "hierarchical_memory_limit",
        "memory.limit_in_bytes",
    )?;
    let mut memory = Memory {
        usage,
        limit,
        cache: stat.of("total_cache"),
        rss: stat.of("total_rss"),
        mapped_file: stat.of("total_mapped_file"),
        active_file: stat.of("total_active_file"),
        inactive_file: stat.of("total_inactive_file"),
        faults: stat.of("total_pgfault"),
        major_faults: stat.of("total_pgmajfault"),
        own_faults: stat.of("pgfault"),
        own_major_faults: stat.of("pgmajfault"),
        swap: swap(folder, &stat, limit)?,
        ..Memory::default()
    };
    if detail == Detail::All {
        memory.max_usage = folder.number("memory.max_usage_in_bytes")?.unwrap_or(usage);
        memory.reservation = limited(folder, "memory.soft_limit_in_bytes")?;
        memory.kernel = folder.number("memory.kmem.usage_in_bytes")?.unwrap_or(0);
        memory.limit_hits = folder.number("memory.failcnt")?.unwrap_or(0);
        let control = folder.read("memory.oom_control")?.unwrap_or_default();
        memory.oom_kills = Keyed::new(&control).of("oom_kill");
    }
    Ok(Some(memory))
}

/// The limit in the file `name`, which is not opened when `memory.stat` says under `least`
/// that neither this cgroup nor one above it has one.
fn limit(folder: &Folder, stat: &Keyed<'_>, least: &str, name: &str) -> Result<Option<u64>> {
    match stat.get(least) {
        Some(NO_LIMIT..) => Ok(None),
        _ => limited(folder, name),
    }
}

fn limited(folder: &Folder, name: &str) -> Result<Option<u64>> {
    Ok(folder.number(name)?.filter(|limit| *limit < NO_LIMIT))
}

/// v1 limits memory and swap together.
fn swap(folder: &Folder, stat: &Keyed<'_>, memory: Option<u64>) -> Result<Option<Swap>> {
    let Some(usage) = stat.get("total_swap") else {
        return Ok(None);
    };
    let both = limit(
        folder,
        stat,
        "hierarchical_memsw_limit",
        "memory.memsw.limit_in_bytes",
    )?;
    let limit = match (both, memory) {
        (Some(both), Some(memory)) => Some(both.saturating_sub(memory)),
        _ => None,
    };
    Ok(Some(Swap {
        usage,
        limit,
        raw_limit: both,
    }))
}

/// The counters of the scheduler of the disks, where it keeps some, else those of
/// the throttle, which sees every request.
fn disks(folder: &Folder) -> Result<Vec<Disk>> {
    for name in [
        "bfq.io_service_bytes_recursive",
        "throttle.io_service_bytes_recursive",
    ] {
        let Some(bytes) = folder.read(&format!("blkio.{name}"))? else {
            continue;
        };
        let mut disks = Vec::new();
        add(&mut disks, &bytes, |disk| &mut disk.bytes);
        if disks.is_empty() {
            continue;
        }
        let name = name.replace("io_service_bytes", "io_serviced");
        if let Some(operations) = folder.read(&format!("blkio.{name}"))? {
            add(&mut disks, &operations, |disk| &mut disk.operations);
        }
        return Ok(disks);
    }
    Ok(Vec::new())
}

/// "8:0 Read 4096", a line for each disk and operation, then "Total 4096".
fn add(disks: &mut Vec<Disk>, text: &str, list: impl Fn(&mut Disk) -> &mut Vec<(String, u64)>) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(device), Some(operation), Some(value)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let numbers = device
            .split_once(':')
            .and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)));
        let (Some((major, minor)), Ok(value)) = (numbers, value.parse()) else {
            continue;
        };
        let at = disks
            .iter()
            .position(|disk| (disk.major, disk.minor) == (major, minor))
            .unwrap_or_else(|| {
                disks.push(Disk {
                    major,
                    minor,
                    ..Disk::default()
                });
                disks.len() - 1
            });
        if let Some(disk) = disks.get_mut(at) {
            list(disk).push((operation.to_owned(), value));
        }
    }
}

fn huge_pages(folder: &Folder) -> Result<Vec<HugePages>> {
    let mut all = Vec::new();
    for name in folder.names("hugetlb.") {
        let size = name
            .strip_prefix("hugetlb.")
            .and_then(|n| n.strip_suffix(".usage_in_bytes"));
        // "2MB.rsvd" is reserved, not used.
        let Some(size) = size.filter(|size| !size.contains('.')) else {
            continue;
        };
        all.push(HugePages {
            size: size.to_owned(),
            usage: folder.number(&name)?.unwrap_or(0),
            max_usage: folder
                .number(&format!("hugetlb.{size}.max_usage_in_bytes"))?
                .unwrap_or(0),
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::gauge::tests::folder;

    const FILES: &[(&str, &str)] = &[
        ("cpuacct.usage", "4500000000\n"),
        ("cpuacct.usage_user", "3000000000\n"),
        ("cpuacct.usage_sys", "1500000000\n"),
        ("cpu.stat", "nr_periods 7\nnr_throttled 2\nthrottled_time 99\n"),
        ("cpu.cfs_period_us", "100000\n"),
        ("cpu.cfs_quota_us", "-1\n"),
        ("cpu.shares", "1024\n"),
        ("memory.usage_in_bytes", "10485760\n"),
        ("memory.max_usage_in_bytes", "20971520\n"),
        ("memory.limit_in_bytes", "67108864\n"),
        ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
        ("memory.memsw.limit_in_bytes", "77108864\n"),
        ("memory.kmem.usage_in_bytes", "1234\n"),
        ("memory.failcnt", "9\n"),
        (
            "memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        ),
        (
            "memory.stat",
            "cache 1\nrss 2\npgfault 50\npgmajfault 4\ntotal_cache 5242880\ntotal_rss 4194304\ntotal_mapped_file 100\ntotal_swap 4096\ntotal_pgfault 500\ntotal_pgmajfault 5\ntotal_inactive_file 3145728\ntotal_active_file 2097152\n",
        ),
        ("pids.current", "3\n"),
        ("pids.max", "100\n"),
        ("cgroup.procs", "10\n11\n"),
        ("blkio.bfq.io_service_bytes_recursive", "Total 0\n"),
        (
            "blkio.throttle.io_service_bytes_recursive",
            "8:0 Read 1000\n8:0 Write 2000\n8:0 Total 3000\nTotal 3000\n",
        ),
        (
            "blkio.throttle.io_serviced_recursive",
            "8:0 Read 3\n8:0 Write 4\n8:0 Total 7\nTotal 7\n",
        ),
        ("hugetlb.2MB.usage_in_bytes", "2097152\n"),
        ("hugetlb.2MB.max_usage_in_bytes", "4194304\n"),
        ("hugetlb.2MB.rsvd.usage_in_bytes", "0\n"),
    ];

    #[test]
    fn everything_is_read() {
        let (_v1, all) = folder(FILES);
        let (_v2, unified) = folder(&[("cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=8\n")]);
        let controllers = ["cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"].map(String::from);
        let stats = read(&[(&controllers, &all)], Some(&unified), Detail::All).unwrap();
        let cpu = stats.cpu.unwrap();
        assert_eq!(
            (cpu.usage, cpu.user, cpu.system),
            (4_500_000_000, 3_000_000_000, 1_500_000_000)
        );
        assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled), (7, 2, 99));
        let memory = stats.memory.unwrap();
        assert_eq!(
            (memory.working_set(), memory.available()),
            (7 << 20, Some(57 << 20))
        );
        assert_eq!(
            (memory.max_usage, memory.reservation, memory.kernel),
            (20 << 20, None, 1234)
        );
        assert_eq!(
            (
                memory.faults,
                memory.own_faults,
                memory.limit_hits,
                memory.oom_kills
            ),
            (500, 50, 9, 2)
        );
        let swap = Swap {
            usage: 4096,
            limit: Some(10_000_000),
            raw_limit: Some(77_108_864),
        };
        assert_eq!(memory.swap, Some(swap));
        assert_eq!(
            stats.tasks,
            Some(Tasks {
                current: 3,
                limit: Some(100)
            })
        );
        assert_eq!(stats.processes, 2);
        assert_eq!(
            stats.cpu_limits,
            CpuLimits {
                period: Some(100_000),
                quota: None,
                shares: Some(1024)
            }
        );
        let disk = &stats.disks[0];
        assert_eq!((stats.disks.len(), disk.major, disk.minor), (1, 8, 0));
        assert_eq!(
            disk.bytes,
            [
                ("Read".into(), 1000),
                ("Write".into(), 2000),
                ("Total".into(), 3000)
            ]
        );
        assert_eq!(disk.operations[1], ("Write".into(), 4));
        assert_eq!(
            (stats.huge_pages.len(), stats.huge_pages[0].max_usage),
            (1, 4 << 20)
        );
        assert_eq!(stats.pressure.cpu.unwrap().some.total, 8000);
    }

    #[test]
    fn only_what_is_asked_for_is_read() {
        let (_dir, all) = folder(FILES);
        let controllers = ["cpu", "cpuacct", "memory", "pids", "blkio"].map(String::from);
        let stats = read(&[(&controllers, &all)], None, Detail::Usage).unwrap();
        assert!(stats.cpu.is_some() && stats.memory.is_some());
        assert!(stats.disks.is_empty() && stats.tasks.is_none());
    }

    /// The limits of the pod are not the container's.
    #[test]
    fn limits_are_of_the_cgroup_itself() {
        let limits = |least: &str| {
            let stat = format!(
                "hierarchical_memory_limit {least}\nhierarchical_memsw_limit {least}\ntotal_swap 0\n"
            );
            let (_dir, all) = folder(&[
                ("memory.usage_in_bytes", "4096\n"),
                ("memory.stat", &stat),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.memsw.limit_in_bytes", "8192\n"),
            ]);
            let stats = read(&[(&["memory".to_owned()], &all)], None, Detail::Usage).unwrap();
            let memory = stats.memory.unwrap();
            (memory.limit, memory.swap.unwrap().raw_limit)
        };
        assert_eq!(limits("8192"), (None, Some(8192)));
        assert_eq!(limits("9223372036854771712"), (None, None), "not even looked for");
    }

    #[test]
    fn a_controller_that_is_missing_is_absent() {
        let (_dir, bare) = folder(&[("cgroup.procs", "1\n")]);
        let controllers = ["memory".to_owned()];
        let stats = read(&[(&controllers, &bare)], None, Detail::All).unwrap();
        assert_eq!((stats.cpu, stats.memory, stats.processes), (None, None, 1));
    }
}
