//! ContainerStats and ListContainerStats: measured when asked, nothing is polled in
//! between.
//!
//! A container that runs, or waits for its start, has everything. One that has ended
//! has its writable layer, which takes up space until it is removed. One whose
//! cgroup goes away while it is looked at is left out of lists.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{error::Error, node::Node, sandbox_list::selects};
use crate::{
    cgroup::stats::{Cpu, Detail, Memory, Pressure, Stall, Stats},
    image::usage::usage,
    kind::{HasKind, Kind},
    pod::{Container, ContainerState, Samples, now},
    proto::cri,
};

/// Of one container.
pub async fn stats(
    node: &Arc<Node>,
    request: cri::ContainerStatsRequest,
) -> Result<cri::ContainerStatsResponse, Error> {
    let container = node.pods.container(&request.container_id)?;
    close_when_idle(node);
    let at = node.clone();
    let stats = blocking(move || {
        // It ended in between: what is left of it is told.
        let measured = measure(&at, &container, Detail::Usage)?;
        Ok(measured.map_or_else(|| outline(&at, &container), |measured| measured.stats))
    })
    .await?;
    Ok(cri::ContainerStatsResponse { stats: Some(stats) })
}

/// Of all that the filter takes, the newest first.
pub async fn list(
    node: &Arc<Node>,
    filter: Option<cri::ContainerStatsFilter>,
) -> Result<Vec<cri::ContainerStats>, Error> {
    let chosen = chosen(node, &filter.unwrap_or_default());
    close_when_idle(node);
    let at = node.clone();
    let measured = side_by_side(chosen, move |c| measured(&at, c, Detail::Usage)).await?;
    Ok(measured.into_iter().flatten().map(|c| c.stats).collect())
}

/// How long the files of cgroups stay open when nobody asks: a kubelet asks every ten seconds.
const IDLE: Duration = Duration::from_secs(60);

/// Whoever is about to measure says so: when nobody has for a while, what is kept open for
/// the next time is closed.
pub fn close_when_idle(node: &Arc<Node>) {
    static WAITS: AtomicBool = AtomicBool::new(false);
    static ASKED: AtomicBool = AtomicBool::new(false);
    ASKED.store(true, Ordering::SeqCst);
    if WAITS.swap(true, Ordering::SeqCst) {
        return;
    }
    let node = Arc::downgrade(node);
    tokio::spawn(async move {
        loop {
            while ASKED.swap(false, Ordering::SeqCst) {
                tokio::time::sleep(IDLE).await;
            }
            if let Some(node) = node.upgrade() {
                let containers = node.pods.containers();
                containers.iter().for_each(|one| one.samples.gauge.close());
                let sandboxes = node.pods.sandboxes();
                sandboxes.iter().for_each(|one| one.samples.gauge.close());
            }
            WAITS.store(false, Ordering::SeqCst);
            // Whoever has asked meanwhile believed that somebody waits.
            if !ASKED.load(Ordering::SeqCst) || WAITS.swap(true, Ordering::SeqCst) {
                return;
            }
        }
    });
}

/// What so few need is sooner done than shared out.
const FEW: usize = 16;

/// `work` on each, in order; on up to four threads when there are many, for most of the time
/// passes in the kernel, and who asks waits for the last one.
pub async fn side_by_side<T, R, W>(mut all: Vec<T>, work: W) -> Result<Vec<R>, Error>
where
    T: Send + 'static,
    R: Send + 'static,
    W: Fn(&T) -> R + Clone + Send + 'static,
{
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    let share = all.len().div_ceil(threads).max(FEW);
    let mut shares = Vec::new();
    while !all.is_empty() {
        let rest = all.split_off(share.min(all.len()));
        let (part, work) = (std::mem::replace(&mut all, rest), work.clone());
        shares.push(tokio::task::spawn_blocking(move || {
            part.iter().map(work).collect::<Vec<_>>()
        }));
    }
    let mut done = Vec::new();
    for share in shares {
        done.extend(share.await.map_err(broken)?);
    }
    Ok(done)
}

/// Reading some hundred files is quick, but waits for the disk now and then.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(broken(e)))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: tokio::task::JoinError) -> Error {
    Error::Wrong {
        what: "statistics",
        id: String::new(),
        kind: Kind::Internal,
        message: error.to_string(),
    }
}

fn chosen(node: &Node, filter: &cri::ContainerStatsFilter) -> Vec<Arc<Container>> {
    // A filter that matches nothing is an empty list, not an error.
    let found = |prefix: &str, id: Option<String>| (prefix.is_empty() || id.is_some()).then_some(id);
    let id = node.pods.container(&filter.id).ok().map(|c| c.id.clone());
    let sandbox = node
        .pods
        .sandbox(&filter.pod_sandbox_id)
        .ok()
        .map(|s| s.id.clone());
    let (Some(id), Some(sandbox)) = (found(&filter.id, id), found(&filter.pod_sandbox_id, sandbox)) else {
        return Vec::new();
    };
    let mut all = node.pods.containers();
    all.retain(|container| {
        id.as_ref().is_none_or(|id| *id == container.id)
            && sandbox.as_ref().is_none_or(|id| *id == container.sandbox)
            && selects(&filter.label_selector, &container.config().labels)
    });
    all
}

/// A measurement, and how many processes there were.
#[derive(Debug)]
pub struct Measured {
    pub stats: cri::ContainerStats,
    pub processes: u64,
}

/// As [`measure`]; an error is logged, for it must not cost the other containers
/// their numbers.
pub fn measured(node: &Node, container: &Container, detail: Detail) -> Option<Measured> {
    measure(node, container, detail).unwrap_or_else(|error| {
        tracing::warn!(container = %container.id, %error, "measure");
        None
    })
}

/// None: it is not there, or no longer. Blocks.
fn measure(node: &Node, container: &Container, detail: Detail) -> Result<Option<Measured>, Error> {
    let record = container.record();
    match record.state {
        ContainerState::Making | ContainerState::Removing => return Ok(None),
        ContainerState::Exited => {
            let stats = outline(node, container);
            return Ok(Some(Measured { stats, processes: 0 }));
        }
        ContainerState::Created | ContainerState::Running => {}
    }
    let counted = read(&container.id, &container.samples, &record.cgroup, detail)?;
    // It may have ended in between, and whoever told that closed nothing yet.
    if container.state() == ContainerState::Exited {
        container.samples.gauge.close();
    }
    let Some(counted) = counted else {
        return Ok(None);
    };
    let at = now();
    let nano_cores = |cpu: &Cpu| container.samples.nano_cores(at - record.created_at, cpu.usage);
    let mut stats = outline(node, container);
    stats.cpu = counted
        .cpu
        .as_ref()
        .map(|c| cpu(at, c, nano_cores(c), counted.pressure.cpu));
    stats.memory = counted
        .memory
        .as_ref()
        .map(|m| memory(at, m, counted.pressure.memory));
    stats.swap = counted.memory.as_ref().and_then(|m| swap(at, m));
    stats.io = Some(io(at, counted.pressure.io));
    let processes = counted.processes;
    Ok(Some(Measured { stats, processes }))
}

/// Who it is, and its writable layer.
fn outline(node: &Node, container: &Container) -> cri::ContainerStats {
    let config = container.config();
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: container.id.clone(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        writable_layer: writable_layer(node, container),
        ..Default::default()
    }
}

/// What the container wrote over its image. Volumes are not in it.
pub fn writable_layer(node: &Node, container: &Container) -> Option<cri::FilesystemUsage> {
    let upper = node.paths.container(&container.id).join("upper");
    let measured = container
        .samples
        .layer(now(), || usage(&upper).map(|usage| (usage.bytes, usage.inodes)));
    match measured {
        Ok(measured) => Some(cri::FilesystemUsage {
            timestamp: measured.at,
            fs_id: Some(file_system(node)),
            used_bytes: number(measured.bytes),
            inodes_used: number(measured.inodes),
        }),
        Err(error) => {
            if error.kind() != Kind::NotFound {
                tracing::warn!(container = %container.id, %error, "measure the writable layer");
            }
            None
        }
    }
}

/// The file system of the writable layers, as ImageFsInfo has it too: that of the
/// images, unless a disk of its own is mounted for the containers.
pub fn file_system(node: &Node) -> cri::FilesystemIdentifier {
    let (root, containers) = (&node.paths.root, node.paths.root.join("containers"));
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    let own = device(&containers).is_some_and(|own| device(root) != Some(own));
    let mountpoint = if own { &containers } else { root };
    cri::FilesystemIdentifier {
        mountpoint: mountpoint.to_string_lossy().into_owned(),
    }
}

/// The counters of an object's cgroup; None when it is gone. Blocks.
pub fn read(id: &str, samples: &Samples, path: &str, detail: Detail) -> Result<Option<Stats>, Error> {
    samples.gauge.measure(path, detail).map_err(|source| Error::Step {
        what: "cgroup of",
        id: id.to_owned(),
        step: "read its counters",
        kind: Kind::Internal,
        source: Box::new(source),
    })
}

pub fn cpu(at: i64, cpu: &Cpu, nano_cores: u64, pressure: Option<Pressure>) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: number(cpu.usage),
        usage_nano_cores: number(nano_cores),
        psi: pressure.map(psi),
    }
}

/// Without a limit nothing can be said of what is available: it is left out.
pub fn memory(at: i64, memory: &Memory, pressure: Option<Pressure>) -> cri::MemoryUsage {
    cri::MemoryUsage {
        timestamp: at,
        working_set_bytes: number(memory.working_set()),
        available_bytes: memory.available().and_then(number),
        usage_bytes: number(memory.usage),
        rss_bytes: number(memory.rss),
        page_faults: number(memory.faults),
        major_page_faults: number(memory.major_faults),
        psi: pressure.map(psi),
    }
}

fn swap(at: i64, memory: &Memory) -> Option<cri::SwapUsage> {
    let swap = memory.swap?;
    let available = swap.limit.map(|limit| limit.saturating_sub(swap.usage));
    Some(cri::SwapUsage {
        timestamp: at,
        swap_available_bytes: available.and_then(number),
        swap_usage_bytes: number(swap.usage),
    })
}

pub fn io(at: i64, pressure: Option<Pressure>) -> cri::IoUsage {
    cri::IoUsage {
        timestamp: at,
        psi: pressure.map(psi),
    }
}

fn psi(pressure: Pressure) -> cri::PsiStats {
    let data = |stall: Stall| cri::PsiData {
        total: stall.total,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    cri::PsiStats {
        full: Some(data(pressure.full)),
        some: Some(data(pressure.some)),
    }
}

pub fn number(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}
