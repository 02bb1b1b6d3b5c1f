//! What a cgroup has used, as [`Gauge`](super::Gauge) finds it.

use super::{Hierarchy, Result, gauge::Folder};

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// CPU, memory, swap and pressure: eight files at most.
    Usage,
    /// The same, and the number of processes.
    Processes,
    /// Everything: limits, disks, huge pages, counters of failures too.
    All,
}

impl Detail {
    /// Whether something is read in that hierarchy.
    pub(super) fn needs(self, hierarchy: &Hierarchy) -> bool {
        let some = |names: &[&str]| names.iter().any(|name| hierarchy.has(name));
        match self {
            Detail::Usage => hierarchy.is_v2() || some(&["cpuacct", "memory"]),
            Detail::Processes => hierarchy.is_v2() || some(&["cpuacct", "memory", "pids"]),
            Detail::All => true,
        }
    }
}

/// What a cgroup and all below it have used. What the kernel does not count here is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    pub cpu: Option<Cpu>,
    pub memory: Option<Memory>,
    /// Processes, not threads; 0 with [`Detail::Usage`].
    pub processes: u64,
    pub pressure: PressureSet,
    /// The following only with [`Detail::All`].
    pub tasks: Option<Tasks>,
    pub cpu_limits: CpuLimits,
    pub disks: Vec<Disk>,
    pub huge_pages: Vec<HugePages>,
}

/// Nanoseconds and counts since the cgroup was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    pub usage: u64,
    pub user: u64,
    pub system: u64,
    /// Of the quota.
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled: u64,
}

/// Absent: no limit, or no such file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuLimits {
    /// Microseconds.
    pub period: Option<u64>,
    /// Microseconds.
    pub quota: Option<u64>,
    /// In v1's unit, 1024 being one share of a CPU.
    pub shares: Option<u64>,
}

/// Bytes, if not said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub usage: u64,
    pub max_usage: u64,
    pub limit: Option<u64>,
    /// Kept from reclaim (v2 `memory.low`), or the soft limit of v1.
    pub reservation: Option<u64>,
    pub cache: u64,
    /// Anonymous memory.
    pub rss: u64,
    pub mapped_file: u64,
    pub active_file: u64,
    pub inactive_file: u64,
    pub kernel: u64,
    /// Count; major ones are in it.
    pub faults: u64,
    pub major_faults: u64,
    /// The same without the cgroups below.
    pub own_faults: u64,
    pub own_major_faults: u64,
    /// How often the limit was hit.
    pub limit_hits: u64,
    pub oom_kills: u64,
    pub swap: Option<Swap>,
}

impl Memory {
    /// What cannot be taken back at once: usage without inactive file pages, as the
    /// kubelet's eviction counts it.
    #[must_use]
    pub fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }

    /// What is left of the limit.
    #[must_use]
    pub fn available(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.working_set()))
    }
}

/// Bytes of swap space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swap {
    pub usage: u64,
    /// None: no limit.
    pub limit: Option<u64>,
    /// The limit as its file has it: with the memory in v1, alone in v2.
    pub raw_limit: Option<u64>,
}

/// Threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tasks {
    pub current: u64,
    pub limit: Option<u64>,
}

/// Input and output on one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub major: u32,
    pub minor: u32,
    /// Bytes by operation as the kernel names it: "Read", "Write", "Sync", ...
    pub bytes: Vec<(String, u64)>,
    /// Operations, named alike.
    pub operations: Vec<(String, u64)>,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// "2MB", "1GB".
    pub size: String,
    pub usage: u64,
    pub max_usage: u64,
}

/// Pressure of the three resources; absent on kernels that do not measure it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PressureSet {
    pub cpu: Option<Pressure>,
    pub memory: Option<Pressure>,
    pub io: Option<Pressure>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

/// Averages in percent over seconds, total in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}

/// Lines of "key value", looked through once.
#[derive(Clone, Debug)]
pub struct Keyed<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Keyed<'a> {
    pub fn new(text: &'a str) -> Keyed<'a> {
        Keyed(text.lines().filter_map(|line| line.split_once(' ')).collect())
    }

    pub fn get(&self, key: &str) -> Option<u64> {
        let found = self.0.iter().find(|(known, _)| *known == key);
        found.and_then(|(_, value)| value.trim().parse().ok())
    }

    /// 0 when it is not there.
    pub fn of(&self, key: &str) -> u64 {
        self.get(key).unwrap_or(0)
    }
}

/// The pressure files, which are of the v2 hierarchy.
pub(super) fn pressures(folder: &Folder) -> Result<PressureSet> {
    let one = |name: &str| Ok(folder.read(name)?.and_then(|text| pressure(&text)));
    Ok(PressureSet {
        cpu: one("cpu.pressure")?,
        memory: one("memory.pressure")?,
        io: one("io.pressure")?,
    })
}

/// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0", then the same for "full".
fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    let mut found = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let stall = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        found = true;
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let percent = || value.parse().unwrap_or(0.0);
            match key {
                "avg10" => stall.avg10 = percent(),
                "avg60" => stall.avg60 = percent(),
                "avg300" => stall.avg300 = percent(),
                // The kernel counts microseconds.
                "total" => stall.total = value.parse::<u64>().unwrap_or(0).saturating_mul(1000),
                _ => {}
            }
        }
    }
    found.then_some(pressure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_in_nanoseconds() {
        let text = "some avg10=97.80 avg60=95.69 avg300=89.27 total=2085103379\nfull avg10=0.50 avg60=0.00 avg300=0.01 total=7\n";
        let found = pressure(text).unwrap();
        assert_eq!(found.some.total, 2_085_103_379_000);
        assert_eq!((found.full.total, found.full.avg300), (7000, 0.01));
        assert!((found.some.avg10 - 97.8).abs() < 1e-9);
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn the_working_set_never_goes_below_zero() {
        let memory = Memory {
            usage: 10,
            inactive_file: 20,
            limit: Some(5),
            ..Memory::default()
        };
        assert_eq!((memory.working_set(), memory.available()), (0, Some(5)));
    }
}
