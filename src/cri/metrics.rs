//! ListPodSandboxMetrics: everything that cAdvisor would tell of the ready pods and
//! their running containers, measured when asked.

use std::{collections::HashMap, fs, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use super::{
    container_stats::{self, blocking},
    error::Error,
    metric_descriptors as m,
    metric_values::{Subject, Values},
    node::Node,
    sandbox_stats::{counters, own_cgroup},
};
use crate::{
    cgroup::{Cgroup, stats::Detail},
    pod::{Container, ContainerState, Sandbox, SandboxState, now},
    proto::cri,
    runtime::cgroup_driver,
};

/// Of all ready pods, the newest first.
pub async fn list(node: &Arc<Node>) -> Result<Vec<cri::PodSandboxMetrics>, Error> {
    let node = node.clone();
    blocking(move || {
        let mut disks = Disks::default();
        let mut ready = node.pods.sandboxes();
        ready.retain(|sandbox| sandbox.state() == SandboxState::Ready);
        Ok(ready
            .iter()
            .map(|sandbox| of_pod(&node, sandbox, &mut disks))
            .collect())
    })
    .await
}

/// What cannot be read is left out, and said in the log.
fn of_pod(node: &Node, sandbox: &Sandbox, disks: &mut Disks) -> cri::PodSandboxMetrics {
    let metadata = sandbox.config().metadata.clone().unwrap_or_default();
    let pod = Subject {
        namespace: metadata.namespace,
        pod: metadata.name,
        ..Subject::default()
    };
    let mut metrics = Vec::new();
    if let Some(path) = own_cgroup(sandbox) {
        let subject = Subject {
            id: path.clone(),
            ..pod.clone()
        };
        match container_stats::read(&sandbox.id, &sandbox.samples, &path, Detail::All) {
            Ok(Some(counted)) => {
                let mut values = Values::new(subject, now());
                values.cgroup(&counted, &mut |major, minor| disks.name(major, minor));
                metrics.extend(values.into_metrics());
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(sandbox = %sandbox.id, %error, "measure"),
        }
    }
    match counters(node, sandbox) {
        Ok(links) => {
            // cAdvisor has them at the container that held the namespace.
            let subject = Subject {
                id: cgroup_driver::path(&sandbox.record().cgroup_parent, &sandbox.id),
                name: sandbox.id.clone(),
                ..pod.clone()
            };
            let mut values = Values::new(subject, now());
            links.iter().flatten().for_each(|link| values.link(link));
            metrics.extend(values.into_metrics());
        }
        Err(error) => tracing::warn!(sandbox = %sandbox.id, %error, "measure"),
    }
    let containers = node.pods.containers_of(&sandbox.id);
    let container_metrics = containers.iter().filter_map(|container| {
        of_container(node, container, &pod, disks)
            .map_err(|error| tracing::warn!(container = %container.id, %error, "measure"))
            .ok()?
    });
    cri::PodSandboxMetrics {
        pod_sandbox_id: sandbox.id.clone(),
        metrics,
        container_metrics: container_metrics.collect(),
    }
}

/// None: it does not run, or no longer.
fn of_container(
    node: &Node,
    container: &Container,
    pod: &Subject,
    disks: &mut Disks,
) -> Result<Option<cri::ContainerMetrics>, Error> {
    let record = container.record();
    if record.state != ContainerState::Running {
        return Ok(None);
    }
    let Some(counted) =
        container_stats::read(&container.id, &container.samples, &record.cgroup, Detail::All)?
    else {
        return Ok(None);
    };
    let config = container.config();
    let image = config.image.clone().unwrap_or_default();
    let subject = Subject {
        container: config.metadata.clone().unwrap_or_default().name,
        id: record.cgroup.clone(),
        // As the user named it; the kubelet resolved it to an id.
        image: if image.user_specified_image.is_empty() {
            image.image
        } else {
            image.user_specified_image
        },
        name: container.id.clone(),
        ..pod.clone()
    };
    let mut values = Values::new(subject, now());
    values.cgroup(&counted, &mut |major, minor| disks.name(major, minor));
    let started = u64::try_from(record.started_at).unwrap_or(0);
    values.put(m::START_TIME, started / 1_000_000_000);
    processes(&mut values, &record.cgroup, record.pid);
    file_system(&mut values, node, container, disks);
    Ok(Some(cri::ContainerMetrics {
        container_id: container.id.clone(),
        metrics: values.into_metrics(),
    }))
}

/// Descriptors and limits, from /proc. A process that ends meanwhile has none.
fn processes(values: &mut Values, cgroup: &str, init: u32) {
    let pids = Cgroup::open(cgroup)
        .and_then(|cgroup| cgroup.pids())
        .unwrap_or_default();
    let (mut descriptors, mut sockets) = (0, 0);
    for pid in pids {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in entries.flatten() {
            descriptors += 1;
            let target = fs::read_link(entry.path()).unwrap_or_default();
            sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
        }
    }
    values.put(m::FILE_DESCRIPTORS, descriptors);
    values.put(m::SOCKETS, sockets);
    let limits = fs::read_to_string(format!("/proc/{init}/limits")).unwrap_or_default();
    if let Some(limit) = open_files(&limits) {
        values.put_with(m::ULIMITS_SOFT, &["max_open_files"], limit);
    }
}

/// The soft limit of open files, which is the one that cAdvisor tells of.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The writable layer and the file system it is on.
fn file_system(values: &mut Values, node: &Node, container: &Container, disks: &mut Disks) {
    let folder = node.paths.container(&container.id);
    let (Ok(whole), Ok(folder)) = (rustix::fs::statvfs(&folder), fs::metadata(&folder)) else {
        return;
    };
    let layer = container_stats::writable_layer(node, container).unwrap_or_default();
    let used = layer.used_bytes.map_or(0, |used| used.value);
    // A layer is not walked through at every call.
    let measured = if layer.timestamp < values.at {
        layer.timestamp
    } else {
        0
    };
    let device = folder.dev();
    let device = disks.name(rustix::fs::major(device), rustix::fs::minor(device));
    let device: &[&str] = &[&device];
    values.put_of(m::FS_USAGE, device, used, measured);
    values.put_with(m::FS_LIMIT, device, whole.f_blocks.saturating_mul(whole.f_frsize));
    values.put_with(m::FS_INODES, device, whole.f_files);
    values.put_with(m::FS_INODES_FREE, device, whole.f_ffree);
}

/// Names of disks by their numbers, each found once in a call.
#[derive(Debug, Default)]
struct Disks(HashMap<(u32, u32), String>);

impl Disks {
    /// "/dev/sda1"; for a file system that is on no one disk what the mount table
    /// calls its source; "8:1" when nothing is known.
    fn name(&mut self, major: u32, minor: u32) -> String {
        let name = self.0.entry((major, minor)).or_insert_with(|| {
            let numbers = format!("{major}:{minor}");
            let found = device_node(&numbers).or_else(|| mount_source(&numbers));
            found.unwrap_or(numbers)
        });
        name.clone()
    }
}

fn device_node(numbers: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/sys/dev/block").join(numbers).join("uevent")).ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(format!("/dev/{name}"))
}

fn mount_source(numbers: &str) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(2) == Some(numbers))?;
    let (_, file_system) = line.split_once(" - ")?;
    file_system.split(' ').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_a_process() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\nMax processes             unlimited            unlimited            processes\nMax open files            1024                 4096                 files\n";
        assert_eq!(open_files(text), Some(1024));
        assert_eq!(open_files(&text.replace("1024", "unlimited")), None);
        assert_eq!(open_files(""), None);
    }

    #[test]
    fn a_disk_that_nobody_knows_has_its_numbers() {
        assert_eq!(Disks::default().name(4000, 4001), "4000:4001");
        let device = fs::metadata("/proc").unwrap().dev();
        let name = Disks::default().name(rustix::fs::major(device), rustix::fs::minor(device));
        assert_eq!(name, "proc");
    }
}
