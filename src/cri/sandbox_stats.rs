//! PodSandboxStats and ListPodSandboxStats.
//!
//! A pod's totals are those of its cgroup where it has one of its own, which is so
//! below a kubelet: the parent's name has the pod's uid in it. Else, as with crictl,
//! many pods share a parent: then the totals are the sum of the containers that
//! there are now, and what cannot be added up (a limit, pressure) is left out.

use std::sync::Arc;

use super::{
    container_stats::{self, Measured, blocking, close_when_idle, number, side_by_side},
    error::Error,
    node::Node,
    sandbox_list::selects,
};
use crate::{
    cgroup::stats::{Detail, Stats},
    network::stats::{self as links, DEFAULT_LINK, LinkCounters},
    pod::{Sandbox, SandboxState, now},
    proto::cri,
};

/// Of one pod. A stopped one has its containers' writable layers left.
pub async fn stats(
    node: &Arc<Node>,
    request: cri::PodSandboxStatsRequest,
) -> Result<cri::PodSandboxStatsResponse, Error> {
    let sandbox = node.pods.sandbox(&request.pod_sandbox_id)?;
    close_when_idle(node);
    let at = node.clone();
    let stats = blocking(move || measure(&at, &sandbox)).await?;
    Ok(cri::PodSandboxStatsResponse { stats: Some(stats) })
}

/// Of all ready pods that the filter takes, the newest first.
pub async fn list(
    node: &Arc<Node>,
    filter: Option<cri::PodSandboxStatsFilter>,
) -> Result<Vec<cri::PodSandboxStats>, Error> {
    let filter = filter.unwrap_or_default();
    let id = match filter.id.as_str() {
        "" => None,
        prefix => match node.pods.sandbox(prefix) {
            Ok(sandbox) => Some(sandbox.id.clone()),
            Err(_) => return Ok(Vec::new()),
        },
    };
    let mut chosen = node.pods.sandboxes();
    chosen.retain(|sandbox| {
        sandbox.state() == SandboxState::Ready
            && id.as_ref().is_none_or(|id| *id == sandbox.id)
            && selects(&filter.label_selector, &sandbox.config().labels)
    });
    close_when_idle(node);
    let at = node.clone();
    let measured = side_by_side(chosen, move |sandbox| {
        let stats = measure(&at, sandbox);
        stats
            .map_err(|error| tracing::warn!(sandbox = %sandbox.id, %error, "measure"))
            .ok()
    });
    Ok(measured.await?.into_iter().flatten().collect())
}

/// Blocks.
fn measure(node: &Node, sandbox: &Sandbox) -> Result<cri::PodSandboxStats, Error> {
    let config = sandbox.config();
    let containers: Vec<_> = node
        .pods
        .containers_of(&sandbox.id)
        .iter()
        .filter_map(|container| container_stats::measured(node, container, Detail::Processes))
        .collect();
    let at = now();
    let mut linux = match own_cgroup(sandbox) {
        Some(path) => match container_stats::read(&sandbox.id, &sandbox.samples, &path, Detail::Processes)? {
            Some(counted) => whole(at, sandbox, &counted),
            // Nothing has run in it yet.
            None => sum(at, &containers),
        },
        None => sum(at, &containers),
    };
    linux.network = counters(node, sandbox)?.map(|links| network(at, &links));
    linux.containers = containers.into_iter().map(|container| container.stats).collect();
    Ok(cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: sandbox.id.clone(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        linux: Some(linux),
        windows: None,
    })
}

/// The pod's cgroup, when it is not shared with other pods. The kubelet names it by
/// the uid, with the systemd driver with "_" for "-".
pub fn own_cgroup(sandbox: &Sandbox) -> Option<String> {
    let config = sandbox.config();
    let uid = &config.metadata.as_ref()?.uid;
    let parent = sandbox.record().cgroup_parent;
    is_of_pod(&parent, uid).then_some(parent)
}

fn is_of_pod(parent: &str, uid: &str) -> bool {
    let name = parent.rsplit('/').next().unwrap_or_default();
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let ends = |uid: &str| {
        name.strip_suffix(uid)
            .is_some_and(|start| start == "pod" || start.ends_with("-pod"))
    };
    !uid.is_empty() && (ends(uid) || ends(&uid.replace('-', "_")))
}

fn whole(at: i64, sandbox: &Sandbox, counted: &Stats) -> cri::LinuxPodSandboxStats {
    let pressure = &counted.pressure;
    let cpu = counted.cpu.as_ref().map(|cpu| {
        let rate = sandbox.samples.nano_cores(at - sandbox.created_at(), cpu.usage);
        container_stats::cpu(at, cpu, rate, pressure.cpu)
    });
    cri::LinuxPodSandboxStats {
        cpu,
        memory: counted
            .memory
            .as_ref()
            .map(|memory| container_stats::memory(at, memory, pressure.memory)),
        process: Some(processes(at, counted.processes)),
        io: Some(container_stats::io(at, pressure.io)),
        ..Default::default()
    }
}

fn sum(at: i64, containers: &[Measured]) -> cri::LinuxPodSandboxStats {
    let value = |number: &Option<cri::UInt64Value>| number.as_ref().map_or(0, |number| number.value);
    let cpus = || {
        containers
            .iter()
            .filter_map(|container| container.stats.cpu.as_ref())
    };
    let memories = || {
        containers
            .iter()
            .filter_map(|container| container.stats.memory.as_ref())
    };
    let of_memory = |field: fn(&cri::MemoryUsage) -> &Option<cri::UInt64Value>| {
        number(memories().map(|memory| value(field(memory))).sum())
    };
    cri::LinuxPodSandboxStats {
        cpu: Some(cri::CpuUsage {
            timestamp: at,
            usage_core_nano_seconds: number(cpus().map(|cpu| value(&cpu.usage_core_nano_seconds)).sum()),
            usage_nano_cores: number(cpus().map(|cpu| value(&cpu.usage_nano_cores)).sum()),
            psi: None,
        }),
        memory: Some(cri::MemoryUsage {
            timestamp: at,
            working_set_bytes: of_memory(|memory| &memory.working_set_bytes),
            available_bytes: None,
            usage_bytes: of_memory(|memory| &memory.usage_bytes),
            rss_bytes: of_memory(|memory| &memory.rss_bytes),
            page_faults: of_memory(|memory| &memory.page_faults),
            major_page_faults: of_memory(|memory| &memory.major_page_faults),
            psi: None,
        }),
        process: Some(processes(
            at,
            containers.iter().map(|container| container.processes).sum(),
        )),
        io: Some(container_stats::io(at, None)),
        ..Default::default()
    }
}

fn processes(at: i64, count: u64) -> cri::ProcessUsage {
    cri::ProcessUsage {
        timestamp: at,
        process_count: number(count),
    }
}

/// What the pod's links have carried; None when it uses the node's network, or has
/// been stopped. Blocks.
pub fn counters(node: &Node, sandbox: &Sandbox) -> Result<Option<Vec<LinkCounters>>, Error> {
    if !sandbox.record().namespaces.iter().any(|name| name == "net") {
        return Ok(None);
    }
    let netns = node.paths.namespaces(&sandbox.id).join("net");
    links::read(&netns).map_err(|source| Error::Left {
        what: "sandbox",
        id: sandbox.id.clone(),
        step: "read the counters of its links",
        message: source.to_string(),
    })
}

fn network(at: i64, links: &[LinkCounters]) -> cri::NetworkUsage {
    let interfaces: Vec<_> = links.iter().map(interface).collect();
    let default = interfaces.iter().find(|interface| interface.name == DEFAULT_LINK);
    cri::NetworkUsage {
        timestamp: at,
        default_interface: default.or(interfaces.first()).cloned(),
        interfaces,
    }
}

fn interface(link: &LinkCounters) -> cri::NetworkInterfaceUsage {
    cri::NetworkInterfaceUsage {
        name: link.name.clone(),
        rx_bytes: number(link.received.bytes),
        rx_errors: number(link.received.errors),
        tx_bytes: number(link.sent.bytes),
        tx_errors: number(link.sent.errors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_names_of_a_pods_cgroup() {
        let uid = "0f3c-11";
        for own in [
            "/kubepods/burstable/pod0f3c-11",
            "/kubepods/pod0f3c-11",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0f3c_11.slice",
        ] {
            assert!(is_of_pod(own, uid), "{own}");
        }
        for shared in [
            "/berth",
            "/kubepods",
            "/x/pod0f3c-111",
            "/pod0f3c-11/deep",
            "/tripod0f3c-11",
        ] {
            assert!(!is_of_pod(shared, uid), "{shared}");
        }
        assert!(!is_of_pod("/pod", ""));
    }

    #[test]
    fn the_default_link_is_eth0_wherever_it_stands() {
        let link = |name: &str| LinkCounters {
            name: name.into(),
            ..Default::default()
        };
        let name = |links: &[LinkCounters]| network(1, links).default_interface.map(|i| i.name);
        assert_eq!(name(&[link("net1"), link("eth0")]).as_deref(), Some("eth0"));
        assert_eq!(name(&[link("net1")]).as_deref(), Some("net1"));
        assert_eq!(name(&[]), None);
    }
}
