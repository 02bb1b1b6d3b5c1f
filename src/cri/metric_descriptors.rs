//! ListMetricDescriptors: the metrics of ListPodSandboxMetrics. Names, labels and
//! units are cAdvisor's, for the kubelet shows them under /metrics/cadvisor in place
//! of cAdvisor's own.

use crate::proto::cri::{self, MetricType};

/// The labels that every metric begins with. Of a pod's own metrics `container`,
/// `image` and, of its cgroup, `name` are empty.
pub const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// A metric, before it has values.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: MetricType,
    /// Labels after [`LABELS`].
    pub labels: &'static [&'static str],
}

macro_rules! metrics {
    ($($kind:ident $constant:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(pub const $constant: &Metric = &Metric {
            name: $name,
            help: $help,
            kind: MetricType::$kind,
            labels: &$labels,
        };)*
        /// Every metric there is.
        pub const ALL: &[&Metric] = &[$($constant),*];
    };
}

metrics! {
    Counter CPU_USAGE "container_cpu_usage_seconds_total" [], "CPU time that was used, in seconds";
    Counter CPU_USER "container_cpu_user_seconds_total" [], "CPU time that was used outside the kernel, in seconds";
    Counter CPU_SYSTEM "container_cpu_system_seconds_total" [], "CPU time that was used in the kernel, in seconds";
    Counter CPU_PERIODS "container_cpu_cfs_periods_total" [], "Periods of the CPU quota that have passed";
    Counter CPU_THROTTLED_PERIODS "container_cpu_cfs_throttled_periods_total" [], "Periods in which the CPU quota was used up";
    Counter CPU_THROTTLED "container_cpu_cfs_throttled_seconds_total" [], "Time spent waiting for the next period of the CPU quota, in seconds";
    Gauge MEMORY_USAGE "container_memory_usage_bytes" [], "Memory in use, caches counted in";
    Gauge MEMORY_WORKING_SET "container_memory_working_set_bytes" [], "Memory in use without inactive file pages";
    Gauge MEMORY_MAX_USAGE "container_memory_max_usage_bytes" [], "The most memory that was in use";
    Gauge MEMORY_RSS "container_memory_rss" [], "Anonymous memory in bytes";
    Gauge MEMORY_CACHE "container_memory_cache" [], "Page cache in bytes";
    Gauge MEMORY_KERNEL "container_memory_kernel_usage" [], "Memory of the kernel on behalf of the container, in bytes";
    Gauge MEMORY_MAPPED_FILE "container_memory_mapped_file" [], "Mapped files in bytes";
    Gauge MEMORY_SWAP "container_memory_swap" [], "Swap space in use, in bytes";
    Gauge MEMORY_ACTIVE_FILE "container_memory_total_active_file_bytes" [], "File pages that were used lately, in bytes";
    Gauge MEMORY_INACTIVE_FILE "container_memory_total_inactive_file_bytes" [], "File pages that were not used lately, in bytes";
    Counter MEMORY_FAILCNT "container_memory_failcnt" [], "How often the memory limit was hit";
    Counter MEMORY_FAILURES "container_memory_failures_total" ["failure_type", "scope"], "Page faults by kind, of the cgroup alone and with those below it";
    Counter OOM_EVENTS "container_oom_events_total" [], "Processes that were killed for want of memory";
    Counter FS_READS_BYTES "container_fs_reads_bytes_total" ["device"], "Bytes read from the disk";
    Counter FS_READS "container_fs_reads_total" ["device"], "Reads from the disk";
    Counter FS_WRITES_BYTES "container_fs_writes_bytes_total" ["device"], "Bytes written to the disk";
    Counter FS_WRITES "container_fs_writes_total" ["device"], "Writes to the disk";
    Counter BLKIO "container_blkio_device_usage_total" ["device", "major", "minor", "operation"], "Bytes moved from and to the disk, by operation";
    Gauge FS_USAGE "container_fs_usage_bytes" ["device"], "Bytes that the writable layer takes";
    Gauge FS_LIMIT "container_fs_limit_bytes" ["device"], "Size of the file system of the writable layer in bytes";
    Gauge FS_INODES "container_fs_inodes_total" ["device"], "Inodes of the file system of the writable layer";
    Gauge FS_INODES_FREE "container_fs_inodes_free" ["device"], "Free inodes of the file system of the writable layer";
    Gauge HUGETLB_USAGE "container_hugetlb_usage_bytes" ["pagesize"], "Huge pages in use, in bytes";
    Gauge HUGETLB_MAX_USAGE "container_hugetlb_max_usage_bytes" ["pagesize"], "The most huge pages that were in use, in bytes";
    Counter NETWORK_RECEIVE_BYTES "container_network_receive_bytes_total" ["interface"], "Bytes received";
    Counter NETWORK_RECEIVE_PACKETS "container_network_receive_packets_total" ["interface"], "Packets received";
    Counter NETWORK_RECEIVE_DROPPED "container_network_receive_packets_dropped_total" ["interface"], "Packets dropped while receiving";
    Counter NETWORK_RECEIVE_ERRORS "container_network_receive_errors_total" ["interface"], "Errors while receiving";
    Counter NETWORK_TRANSMIT_BYTES "container_network_transmit_bytes_total" ["interface"], "Bytes sent";
    Counter NETWORK_TRANSMIT_PACKETS "container_network_transmit_packets_total" ["interface"], "Packets sent";
    Counter NETWORK_TRANSMIT_DROPPED "container_network_transmit_packets_dropped_total" ["interface"], "Packets dropped while sending";
    Counter NETWORK_TRANSMIT_ERRORS "container_network_transmit_errors_total" ["interface"], "Errors while sending";
    Counter PRESSURE_CPU_WAITING "container_pressure_cpu_waiting_seconds_total" [], "Time in which a task waited for a CPU, in seconds";
    Counter PRESSURE_CPU_STALLED "container_pressure_cpu_stalled_seconds_total" [], "Time in which all tasks waited for a CPU, in seconds";
    Counter PRESSURE_MEMORY_WAITING "container_pressure_memory_waiting_seconds_total" [], "Time in which a task waited for memory, in seconds";
    Counter PRESSURE_MEMORY_STALLED "container_pressure_memory_stalled_seconds_total" [], "Time in which all tasks waited for memory, in seconds";
    Counter PRESSURE_IO_WAITING "container_pressure_io_waiting_seconds_total" [], "Time in which a task waited for a disk, in seconds";
    Counter PRESSURE_IO_STALLED "container_pressure_io_stalled_seconds_total" [], "Time in which all tasks waited for a disk, in seconds";
    Gauge PROCESSES "container_processes" [], "Processes";
    Gauge THREADS "container_threads" [], "Threads";
    Gauge THREADS_MAX "container_threads_max" [], "The most threads that there may be, 0 for no limit";
    Gauge FILE_DESCRIPTORS "container_file_descriptors" [], "Open file descriptors";
    Gauge SOCKETS "container_sockets" [], "Open sockets";
    Gauge ULIMITS_SOFT "container_ulimits_soft" ["ulimit"], "Soft limits of the first process; one without a limit is left out";
    Gauge LAST_SEEN "container_last_seen" [], "When this was measured, in seconds since 1970";
    Gauge START_TIME "container_start_time_seconds" [], "When the container was started, in seconds since 1970";
    Gauge SPEC_CPU_PERIOD "container_spec_cpu_period" [], "Period of the CPU quota in microseconds";
    Gauge SPEC_CPU_QUOTA "container_spec_cpu_quota" [], "CPU quota of a period in microseconds";
    Gauge SPEC_CPU_SHARES "container_spec_cpu_shares" [], "CPU shares, 1024 for one CPU";
    Gauge SPEC_MEMORY_LIMIT "container_spec_memory_limit_bytes" [], "Memory limit, 0 for none";
    Gauge SPEC_MEMORY_RESERVATION "container_spec_memory_reservation_limit_bytes" [], "Memory that is kept for the container, 0 for none";
    Gauge SPEC_MEMORY_SWAP "container_spec_memory_swap_limit_bytes" [], "Limit of swap space (of memory and swap together on cgroup v1), 0 for none";
}

/// The descriptors, always the same ones.
pub fn all() -> Vec<cri::MetricDescriptor> {
    ALL.iter()
        .map(|metric| cri::MetricDescriptor {
            name: metric.name.to_owned(),
            help: metric.help.to_owned(),
            label_keys: LABELS
                .iter()
                .chain(metric.labels)
                .map(|label| (*label).to_owned())
                .collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_everything_is_said() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for descriptor in all() {
            assert!(descriptor.name.starts_with("container_"), "{}", descriptor.name);
            assert!(!descriptor.help.is_empty() && descriptor.label_keys.len() >= LABELS.len());
            let unique: BTreeSet<_> = descriptor.label_keys.iter().collect();
            assert_eq!(unique.len(), descriptor.label_keys.len(), "{}", descriptor.name);
        }
    }

    /// Prometheus wants counters, and only those, to end in "_total"; cAdvisor's one
    /// exception is an old name.
    #[test]
    fn counters_are_totals() {
        for metric in ALL {
            let total = metric.name.ends_with("_total") && metric.name != FS_INODES.name;
            let counter = metric.kind == MetricType::Counter && metric.name != MEMORY_FAILCNT.name;
            assert_eq!(total, counter, "{}", metric.name);
        }
    }
}
