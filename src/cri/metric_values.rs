//! Values of metrics: what was counted, under cAdvisor's names and in its units.
//! The CRI carries whole numbers, so seconds are whole ones.

use super::{
    container_stats::number,
    metric_descriptors::{self as m, Metric},
};
use crate::{
    cgroup::stats::{Cpu, CpuLimits, Disk, Memory, PressureSet, Stats, Tasks},
    network::stats::LinkCounters,
    proto::cri,
};

const SECOND: u64 = 1_000_000_000;

/// What the common labels say: whom the values are about.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    pub container: String,
    /// The cgroup's path.
    pub id: String,
    pub image: String,
    /// The container's or sandbox's id.
    pub name: String,
    pub namespace: String,
    pub pod: String,
}

/// Collects the values of one subject, measured at one moment.
#[derive(Debug)]
pub struct Values {
    labels: [String; m::LABELS.len()],
    /// Nanoseconds since the epoch.
    pub at: i64,
    values: Vec<cri::Metric>,
}

impl Values {
    pub fn new(subject: Subject, at: i64) -> Values {
        Values {
            // In the order of `LABELS`.
            labels: [
                subject.container,
                subject.id,
                subject.image,
                subject.name,
                subject.namespace,
                subject.pod,
            ],
            at,
            values: Vec::new(),
        }
    }

    pub fn into_metrics(self) -> Vec<cri::Metric> {
        self.values
    }

    pub fn put(&mut self, metric: &Metric, value: u64) {
        self.put_with(metric, &[], value);
    }

    /// `labels` are those that the metric has of its own.
    pub fn put_with(&mut self, metric: &Metric, labels: &[&str], value: u64) {
        self.put_of(metric, labels, value, 0);
    }

    /// With the moment of an earlier measurement; 0, as the interface has it, is now.
    pub fn put_of(&mut self, metric: &Metric, labels: &[&str], value: u64, measured: i64) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let own = labels.iter().map(|label| (*label).to_owned());
        self.values.push(cri::Metric {
            name: metric.name.to_owned(),
            timestamp: measured,
            metric_type: metric.kind as i32,
            label_values: self.labels.iter().cloned().chain(own).collect(),
            value: number(value),
        });
    }

    /// All that a cgroup has. `device` names a disk by its numbers.
    pub fn cgroup(&mut self, stats: &Stats, device: &mut dyn FnMut(u32, u32) -> String) {
        if let Some(cpu) = &stats.cpu {
            self.cpu(cpu);
        }
        if let Some(memory) = &stats.memory {
            self.memory(memory);
        }
        self.pressure(&stats.pressure);
        self.put(m::PROCESSES, stats.processes);
        if let Some(tasks) = &stats.tasks {
            self.tasks(tasks);
        }
        self.cpu_limits(&stats.cpu_limits);
        for disk in &stats.disks {
            self.disk(disk, &device(disk.major, disk.minor));
        }
        for pages in &stats.huge_pages {
            self.put_with(m::HUGETLB_USAGE, &[&pages.size], pages.usage);
            self.put_with(m::HUGETLB_MAX_USAGE, &[&pages.size], pages.max_usage);
        }
        let now = u64::try_from(self.at).unwrap_or(0);
        self.put(m::LAST_SEEN, now / SECOND);
    }

    fn cpu(&mut self, cpu: &Cpu) {
        self.put(m::CPU_USAGE, cpu.usage / SECOND);
        self.put(m::CPU_USER, cpu.user / SECOND);
        self.put(m::CPU_SYSTEM, cpu.system / SECOND);
        self.put(m::CPU_PERIODS, cpu.periods);
        self.put(m::CPU_THROTTLED_PERIODS, cpu.throttled_periods);
        self.put(m::CPU_THROTTLED, cpu.throttled / SECOND);
    }

    fn memory(&mut self, memory: &Memory) {
        self.put(m::MEMORY_USAGE, memory.usage);
        self.put(m::MEMORY_WORKING_SET, memory.working_set());
        self.put(m::MEMORY_MAX_USAGE, memory.max_usage);
        self.put(m::MEMORY_RSS, memory.rss);
        self.put(m::MEMORY_CACHE, memory.cache);
        self.put(m::MEMORY_KERNEL, memory.kernel);
        self.put(m::MEMORY_MAPPED_FILE, memory.mapped_file);
        self.put(m::MEMORY_SWAP, memory.swap.map_or(0, |swap| swap.usage));
        self.put(m::MEMORY_ACTIVE_FILE, memory.active_file);
        self.put(m::MEMORY_INACTIVE_FILE, memory.inactive_file);
        self.put(m::MEMORY_FAILCNT, memory.limit_hits);
        for (kind, scope, value) in [
            ("pgfault", "container", memory.own_faults),
            ("pgmajfault", "container", memory.own_major_faults),
            ("pgfault", "hierarchy", memory.faults),
            ("pgmajfault", "hierarchy", memory.major_faults),
        ] {
            self.put_with(m::MEMORY_FAILURES, &[kind, scope], value);
        }
        self.put(m::OOM_EVENTS, memory.oom_kills);
        self.put(m::SPEC_MEMORY_LIMIT, memory.limit.unwrap_or(0));
        self.put(m::SPEC_MEMORY_RESERVATION, memory.reservation.unwrap_or(0));
        let swap = memory.swap.and_then(|swap| swap.raw_limit);
        self.put(m::SPEC_MEMORY_SWAP, swap.unwrap_or(0));
    }

    fn pressure(&mut self, pressure: &PressureSet) {
        for (pressure, waiting, stalled) in [
            (pressure.cpu, m::PRESSURE_CPU_WAITING, m::PRESSURE_CPU_STALLED),
            (
                pressure.memory,
                m::PRESSURE_MEMORY_WAITING,
                m::PRESSURE_MEMORY_STALLED,
            ),
            (pressure.io, m::PRESSURE_IO_WAITING, m::PRESSURE_IO_STALLED),
        ] {
            if let Some(pressure) = pressure {
                self.put(waiting, pressure.some.total / SECOND);
                self.put(stalled, pressure.full.total / SECOND);
            }
        }
    }

    fn tasks(&mut self, tasks: &Tasks) {
        self.put(m::THREADS, tasks.current);
        self.put(m::THREADS_MAX, tasks.limit.unwrap_or(0));
    }

    fn cpu_limits(&mut self, limits: &CpuLimits) {
        for (metric, value) in [
            (m::SPEC_CPU_PERIOD, limits.period),
            (m::SPEC_CPU_QUOTA, limits.quota),
            (m::SPEC_CPU_SHARES, limits.shares),
        ] {
            if let Some(value) = value {
                self.put(metric, value);
            }
        }
    }

    fn disk(&mut self, disk: &Disk, device: &str) {
        let (major, minor) = (disk.major.to_string(), disk.minor.to_string());
        for (operation, value) in &disk.bytes {
            self.put_with(m::BLKIO, &[device, &major, &minor, operation], *value);
        }
        let of = |list: &[(String, u64)], name: &str| {
            let found = list.iter().find(|(operation, _)| operation == name);
            found.map_or(0, |(_, value)| *value)
        };
        self.put_with(m::FS_READS_BYTES, &[device], of(&disk.bytes, "Read"));
        self.put_with(m::FS_WRITES_BYTES, &[device], of(&disk.bytes, "Write"));
        self.put_with(m::FS_READS, &[device], of(&disk.operations, "Read"));
        self.put_with(m::FS_WRITES, &[device], of(&disk.operations, "Write"));
    }

    pub fn link(&mut self, link: &LinkCounters) {
        let name: &[&str] = &[&link.name];
        self.put_with(m::NETWORK_RECEIVE_BYTES, name, link.received.bytes);
        self.put_with(m::NETWORK_RECEIVE_PACKETS, name, link.received.packets);
        self.put_with(m::NETWORK_RECEIVE_DROPPED, name, link.received.dropped);
        self.put_with(m::NETWORK_RECEIVE_ERRORS, name, link.received.errors);
        self.put_with(m::NETWORK_TRANSMIT_BYTES, name, link.sent.bytes);
        self.put_with(m::NETWORK_TRANSMIT_PACKETS, name, link.sent.packets);
        self.put_with(m::NETWORK_TRANSMIT_DROPPED, name, link.sent.dropped);
        self.put_with(m::NETWORK_TRANSMIT_ERRORS, name, link.sent.errors);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cgroup::stats::{HugePages, Pressure};

    /// A cgroup of which the kernel counts everything.
    fn full() -> Stats {
        let pressure = Some(Pressure::default());
        Stats {
            cpu: Some(Cpu {
                usage: 2_999_999_999,
                ..Cpu::default()
            }),
            memory: Some(Memory::default()),
            processes: 3,
            pressure: PressureSet {
                cpu: pressure,
                memory: pressure,
                io: pressure,
            },
            tasks: Some(Tasks {
                current: 4,
                limit: None,
            }),
            cpu_limits: CpuLimits {
                period: Some(1),
                quota: Some(2),
                shares: Some(3),
            },
            disks: vec![Disk {
                major: 8,
                minor: 1,
                bytes: vec![("Read".into(), 10), ("Write".into(), 20)],
                operations: vec![("Write".into(), 2)],
            }],
            huge_pages: vec![HugePages::default()],
        }
    }

    #[test]
    fn every_value_has_the_labels_of_its_descriptor() {
        let subject = Subject {
            container: "c".into(),
            pod: "p".into(),
            ..Subject::default()
        };
        let mut values = Values::new(subject, 5_000_000_000);
        values.cgroup(&full(), &mut |major, minor| format!("/dev/{major}-{minor}"));
        values.link(&LinkCounters::default());
        let metrics = values.into_metrics();
        let descriptors = m::all();
        for metric in &metrics {
            let found = descriptors.iter().find(|d| d.name == metric.name).unwrap();
            assert_eq!(
                metric.label_values.len(),
                found.label_keys.len(),
                "{}",
                metric.name
            );
            assert_eq!(
                (metric.label_values[0].as_str(), metric.label_values[5].as_str()),
                ("c", "p")
            );
            assert_eq!(metric.timestamp, 0);
        }
        let value = |name: &str| {
            let found = metrics.iter().find(|metric| metric.name == name).unwrap();
            found.value.as_ref().unwrap().value
        };
        assert_eq!(value("container_cpu_usage_seconds_total"), 2);
        assert_eq!(value("container_threads_max"), 0);
        assert_eq!(
            (
                value("container_fs_reads_total"),
                value("container_fs_writes_total")
            ),
            (0, 2)
        );
        assert_eq!(value("container_last_seen"), 5);
        // What is not of the cgroup is added by `metrics`.
        let names: BTreeSet<_> = metrics.iter().map(|metric| &*metric.name).collect();
        let missing: Vec<_> = m::ALL
            .iter()
            .map(|metric| metric.name)
            .filter(|name| !names.contains(name))
            .collect();
        assert_eq!(
            missing,
            [
                "container_fs_usage_bytes",
                "container_fs_limit_bytes",
                "container_fs_inodes_total",
                "container_fs_inodes_free",
                "container_file_descriptors",
                "container_sockets",
                "container_ulimits_soft",
                "container_start_time_seconds",
            ]
        );
    }
}
