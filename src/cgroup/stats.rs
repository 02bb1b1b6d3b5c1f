//! What a cgroup has used: one pass over its files, each read once and by one call, relative
//! to the folder's descriptor. Nothing is kept between two calls.

use std::{
    ffi::CString,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};

use super::{Error, Hierarchy, Layout, Result, stats_v1, stats_v2, tree};

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
    fn needs(self, hierarchy: &Hierarchy) -> bool {
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

/// What the cgroup `path` has used; None when it is gone.
///
/// # Errors
/// For a malformed path; the file and the errno.
pub fn measure(path: &str, detail: Detail) -> Result<Option<Stats>> {
    tree::check_path(path)?;
    let layout = Layout::detect()?;
    let mut v1 = Vec::new();
    let mut unified = None;
    for hierarchy in layout.hierarchies.iter().filter(|h| detail.needs(h)) {
        let Some(folder) = Folder::open(&hierarchy.folder(path))? else {
            continue;
        };
        if hierarchy.is_v2() {
            unified = Some(folder);
        } else {
            v1.push((hierarchy.controllers.as_slice(), folder));
        }
    }
    // With controllers in v1, the v2 hierarchy of a hybrid machine has pressure only.
    let stats = match unified {
        Some(folder) if layout.is_pure_v2() => stats_v2::read(&folder, detail)?,
        unified => stats_v1::read(&v1, unified.as_ref(), detail)?,
    };
    // Every cgroup that is there has at least one of them.
    Ok((stats.cpu.is_some() || stats.memory.is_some()).then_some(stats))
}

/// An open cgroup folder.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// None when it does not exist.
    pub fn open(path: &Path) -> Result<Option<Folder>> {
        let found = super::files::open_folder(path)?;
        Ok(found.map(|fd| Folder {
            fd,
            path: path.to_owned(),
        }))
    }

    /// The text of a file; None when there is none, when the kernel has it switched
    /// off, or when the cgroup is being removed.
    pub fn read(&self, name: &str) -> Result<Option<String>> {
        let failed = |step, errno| Error::File {
            step,
            path: self.path.join(name),
            errno,
        };
        let Ok(file) = CString::new(name) else {
            return Ok(None);
        };
        let fd = match openat(&self.fd, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(None),
            Err(errno) => return Err(failed("open", errno)),
        };
        let mut text = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match rustix::io::read(&fd, &mut buffer) {
                Ok(count) => {
                    text.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    // The kernel writes such a file in one go: it gives less than there is
                    // room for only at the end.
                    if count < buffer.len() {
                        return Ok(Some(String::from_utf8_lossy(&text).into_owned()));
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::NODEV | Errno::NOENT | Errno::OPNOTSUPP) => return Ok(None),
                Err(errno) => return Err(failed("read", errno)),
            }
        }
    }

    /// A file with one number; None for "max" too.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.read(name)?.and_then(|text| text.trim().parse().ok()))
    }

    /// The names of its files that begin with `start`.
    pub fn names(&self, start: &str) -> Vec<String> {
        let open = || {
            openat(
                CWD,
                &self.path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let Ok(entries) = open().and_then(rustix::fs::Dir::new) else {
            return Vec::new();
        };
        let names = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.filter(|name| name.starts_with(start)).collect();
        names.sort();
        names
    }

    /// The processes in it and below it.
    pub fn processes(&self) -> Result<u64> {
        let mut pids = Vec::new();
        super::tree::collect_pids(&self.path, &mut pids)?;
        Ok(pids.len().try_into().unwrap_or(u64::MAX))
    }

    /// The pressure files, which are of the v2 hierarchy.
    pub fn pressure(&self) -> Result<PressureSet> {
        let one = |name: &str| Ok(self.read(name)?.and_then(|text| pressure(&text)));
        Ok(PressureSet {
            cpu: one("cpu.pressure")?,
            memory: one("memory.pressure")?,
            io: one("io.pressure")?,
        })
    }
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
pub mod tests {
    use super::*;

    /// A folder with these files, as a cgroup has them.
    pub fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let folder = Folder::open(dir.path()).unwrap().unwrap();
        (dir, folder)
    }

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
    fn what_is_not_there_is_absent() {
        let (_dir, folder) = folder(&[("a", "max\n"), ("b", "12\n")]);
        assert_eq!(folder.read("none").unwrap(), None);
        assert_eq!(folder.number("a").unwrap(), None);
        assert_eq!(folder.number("b").unwrap(), Some(12));
        assert_eq!(folder.names("b"), ["b"]);
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
