//! The counters of cgroup v2.

use super::{
    Result, convert,
    gauge::Folder,
    stats::{Cpu, CpuLimits, Detail, Disk, HugePages, Keyed, Memory, Stats, Swap, Tasks, pressures},
};

pub fn read(folder: &Folder, detail: Detail) -> Result<Stats> {
    let mut stats = Stats {
        cpu: folder.read("cpu.stat")?.map(|text| cpu(&text)),
        memory: memory(folder, detail)?,
        processes: match detail {
            Detail::Usage => 0,
            Detail::Processes | Detail::All => folder.processes()?,
        },
        pressure: pressures(folder)?,
        ..Stats::default()
    };
    if detail == Detail::All {
        stats.tasks = match folder.number("pids.current")? {
            Some(current) => Some(Tasks {
                current,
                limit: folder.number("pids.max")?,
            }),
            None => None,
        };
        stats.cpu_limits = cpu_limits(folder)?;
        stats.disks = folder
            .read("io.stat")?
            .map(|text| disks(&text))
            .unwrap_or_default();
        stats.huge_pages = huge_pages(folder)?;
    }
    Ok(stats)
}

fn cpu(text: &str) -> Cpu {
    let stat = Keyed::new(text);
    let nanoseconds = |key| stat.of(key).saturating_mul(1000);
    Cpu {
        usage: nanoseconds("usage_usec"),
        user: nanoseconds("user_usec"),
        system: nanoseconds("system_usec"),
        periods: stat.of("nr_periods"),
        throttled_periods: stat.of("nr_throttled"),
        throttled: nanoseconds("throttled_usec"),
    }
}

/// None where the controller is not enabled.
fn memory(folder: &Folder, detail: Detail) -> Result<Option<Memory>> {
    let (Some(usage), Some(text)) = (folder.number("memory.current")?, folder.read("memory.stat")?) else {
        return Ok(None);
    };
    let stat = Keyed::new(&text);
    let swap = match folder.number("memory.swap.current")? {
        Some(usage) => {
            let limit = folder.number("memory.swap.max")?;
            Some(Swap {
                usage,
                limit,
                raw_limit: limit,
            })
        }
        None => None,
    };
    let mut memory = Memory {
        usage,
        limit: folder.number("memory.max")?,
        cache: stat.of("file"),
        rss: stat.of("anon"),
        mapped_file: stat.of("file_mapped"),
        active_file: stat.of("active_file"),
        inactive_file: stat.of("inactive_file"),
        kernel: kernel(&stat),
        // v2 counts with the cgroups below only.
        faults: stat.of("pgfault"),
        major_faults: stat.of("pgmajfault"),
        own_faults: stat.of("pgfault"),
        own_major_faults: stat.of("pgmajfault"),
        swap,
        ..Memory::default()
    };
    if detail == Detail::All {
        // Since kernel 5.19; without it, what there is now is the most that is known.
        memory.max_usage = folder.number("memory.peak")?.unwrap_or(usage).max(usage);
        memory.reservation = folder.number("memory.low")?;
        let events = folder.read("memory.events")?.unwrap_or_default();
        memory.limit_hits = Keyed::new(&events).of("max");
        memory.oom_kills = Keyed::new(&events).of("oom_kill");
    }
    Ok(Some(memory))
}

/// One line since kernel 5.18, its parts before.
fn kernel(stat: &Keyed<'_>) -> u64 {
    stat.get("kernel").unwrap_or_else(|| {
        let parts = ["kernel_stack", "pagetables", "percpu", "sock", "slab"];
        parts.iter().map(|part| stat.of(part)).sum()
    })
}

fn cpu_limits(folder: &Folder) -> Result<CpuLimits> {
    let max = folder.read("cpu.max")?.unwrap_or_default();
    let mut words = max.split_whitespace();
    let quota = words.next().and_then(|word| word.parse().ok());
    let period = words.next().and_then(|word| word.parse().ok());
    let shares = folder.number("cpu.weight")?.map(shares);
    Ok(CpuLimits {
        period,
        quota,
        shares,
    })
}

/// The most shares that make this weight: what a request for 1024 became is 1024 again.
fn shares(weight: u64) -> u64 {
    let (mut low, mut high) = (2_u64, 262_144_u64);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if u64::from(convert::weight(middle)) <= weight {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

/// "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6", a line for each disk.
fn disks(text: &str) -> Vec<Disk> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let mut disk = Disk {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..Disk::default()
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().ok()?;
            let (list, name) = match key {
                "rbytes" => (&mut disk.bytes, "Read"),
                "wbytes" => (&mut disk.bytes, "Write"),
                "dbytes" => (&mut disk.bytes, "Discard"),
                "rios" => (&mut disk.operations, "Read"),
                "wios" => (&mut disk.operations, "Write"),
                "dios" => (&mut disk.operations, "Discard"),
                _ => continue,
            };
            list.push((name.to_owned(), value));
        }
        // A disk that was opened and not used has a line without numbers.
        (!disk.bytes.is_empty()).then_some(disk)
    });
    lines.collect()
}

fn huge_pages(folder: &Folder) -> Result<Vec<HugePages>> {
    let mut all = Vec::new();
    for name in folder.names("hugetlb.") {
        let Some(size) = name
            .strip_prefix("hugetlb.")
            .and_then(|n| n.strip_suffix(".current"))
        else {
            continue;
        };
        if size.contains('.') {
            // "hugetlb.2MB.rsvd.current": reserved, not used.
            continue;
        }
        let usage = folder.number(&name)?.unwrap_or(0);
        all.push(HugePages {
            size: size.to_owned(),
            usage,
            // v2 keeps no maximum.
            max_usage: usage,
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::gauge::tests::folder;

    const FILES: &[(&str, &str)] = &[
        (
            "cpu.stat",
            "usage_usec 4500000\nuser_usec 3000000\nsystem_usec 1500000\nnr_periods 7\nnr_throttled 2\nthrottled_usec 99\n",
        ),
        ("cpu.max", "50000 100000\n"),
        ("cpu.weight", "100\n"),
        ("memory.current", "10485760\n"),
        ("memory.peak", "20971520\n"),
        ("memory.max", "67108864\n"),
        ("memory.low", "0\n"),
        (
            "memory.stat",
            "anon 4194304\nfile 5242880\nkernel_stack 16384\npagetables 4096\nslab 1000\nfile_mapped 100\ninactive_file 3145728\nactive_file 2097152\npgfault 500\npgmajfault 5\n",
        ),
        ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n"),
        ("memory.swap.current", "4096\n"),
        ("memory.swap.max", "max\n"),
        ("pids.current", "3\n"),
        ("pids.max", "max\n"),
        (
            "io.stat",
            "8:0 rbytes=1000 wbytes=2000 rios=3 wios=4 dbytes=0 dios=0\n7:1 \n253:16 rbytes=5 wbytes=6 rios=1 wios=1 dbytes=0 dios=0\n",
        ),
        ("hugetlb.2MB.current", "2097152\n"),
        ("hugetlb.2MB.rsvd.current", "0\n"),
        ("cgroup.procs", "10\n11\n"),
        (
            "memory.pressure",
            "some avg10=1.00 avg60=0.00 avg300=0.00 total=10\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=4\n",
        ),
    ];

    #[test]
    fn everything_is_read() {
        let (_dir, folder) = folder(FILES);
        let stats = read(&folder, Detail::All).unwrap();
        let cpu = stats.cpu.unwrap();
        assert_eq!(
            (cpu.usage, cpu.user, cpu.system),
            (4_500_000_000, 3_000_000_000, 1_500_000_000)
        );
        assert_eq!(
            (cpu.periods, cpu.throttled_periods, cpu.throttled),
            (7, 2, 99_000)
        );
        let memory = stats.memory.unwrap();
        assert_eq!(memory.working_set(), 7 << 20);
        assert_eq!(memory.available(), Some(57 << 20));
        assert_eq!(
            (memory.max_usage, memory.rss, memory.cache),
            (20 << 20, 4 << 20, 5 << 20)
        );
        assert_eq!(
            (memory.kernel, memory.limit_hits, memory.oom_kills),
            (21_480, 3, 1)
        );
        assert_eq!((memory.faults, memory.major_faults), (500, 5));
        assert_eq!(
            memory.swap,
            Some(Swap {
                usage: 4096,
                limit: None,
                raw_limit: None
            })
        );
        assert_eq!(
            stats.tasks,
            Some(Tasks {
                current: 3,
                limit: None
            })
        );
        assert_eq!(stats.processes, 2);
        assert_eq!(
            stats.cpu_limits,
            CpuLimits {
                period: Some(100_000),
                quota: Some(50_000),
                shares: Some(1024)
            }
        );
        let disks: Vec<_> = stats.disks.iter().map(|d| (d.major, d.minor)).collect();
        assert_eq!(disks, [(8, 0), (253, 16)]);
        assert_eq!(stats.disks[0].bytes[1], ("Write".into(), 2000));
        assert_eq!(stats.disks[0].operations[0], ("Read".into(), 3));
        assert_eq!(stats.huge_pages.len(), 1);
        assert_eq!(
            (&*stats.huge_pages[0].size, stats.huge_pages[0].usage),
            ("2MB", 2 << 20)
        );
        assert_eq!(stats.pressure.memory.unwrap().full.total, 4000);
        assert_eq!(stats.pressure.io, None);
    }

    #[test]
    fn no_limit_and_no_controllers() {
        let (_dir, bare) = folder(&[("cpu.stat", "usage_usec 1\n"), ("cgroup.procs", "")]);
        let stats = read(&bare, Detail::All).unwrap();
        assert_eq!(stats.memory, None);
        assert_eq!(stats.cpu.unwrap().usage, 1000);
        let (_dir, folder) = folder(&[
            ("memory.current", "5\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 5\nkernel 77\n"),
            ("cpu.max", "max 100000\n"),
        ]);
        let stats = read(&folder, Detail::All).unwrap();
        let memory = stats.memory.unwrap();
        assert_eq!(
            (memory.limit, memory.available(), memory.kernel, memory.swap),
            (None, None, 77, None)
        );
        assert_eq!(stats.cpu_limits.quota, None);
        assert_eq!(stats.cpu_limits.period, Some(100_000));
    }
}
