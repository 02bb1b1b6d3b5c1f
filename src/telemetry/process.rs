//! What this process takes of the machine, as /proc says it.

use std::{fs, io, time::Duration};

/// Clock ticks of /proc a second: the kernel's interface has 100 on every machine.
const TICKS: u64 = 100;

/// At one moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Bytes.
    pub resident: i64,
    pub descriptors: i64,
    pub cpu: Duration,
    /// Since the epoch.
    pub started: Duration,
}

pub fn usage() -> io::Result<Usage> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name, in parentheses, may have blanks in it.
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // proc_pid_stat(5), whose third field is our first.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    let ticks = |count: u64| Duration::from_millis(count * 1000 / TICKS);
    let booted = fs::read_to_string("/proc/stat")?
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.parse().ok())
        .unwrap_or(0);
    let status = fs::read_to_string("/proc/self/status")?;
    let kilobytes: i64 = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .unwrap_or(0);
    Ok(Usage {
        resident: kilobytes * 1024,
        descriptors: i64::try_from(fs::read_dir("/proc/self/fd")?.count()).unwrap_or(i64::MAX),
        cpu: ticks(field(14) + field(15)),
        started: Duration::from_secs(booted) + ticks(field(22)),
    })
}
