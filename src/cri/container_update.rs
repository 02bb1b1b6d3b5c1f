//! UpdateContainerResources: the cgroup first, then the records, so that the
//! status never says what the kernel does not hold.

use std::{collections::BTreeSet, fs, io::ErrorKind, path::PathBuf, sync::Arc, time::Duration};

use super::{
    bundle,
    error::{Context, Error, io},
    node::Node,
};
use crate::{
    cgroup::{self, Cgroup},
    kind::Kind,
    pod::{Container, ContainerState},
    proto::cri::{self, LinuxContainerResources},
    spec,
};

pub async fn update(
    node: &Arc<Node>,
    request: cri::UpdateContainerResourcesRequest,
    limit: Option<Duration>,
) -> Result<cri::UpdateContainerResourcesResponse, Error> {
    let container = node.pods.container(&request.container_id)?;
    let Some(asked) = request.linux else {
        return Err(Error::Invalid {
            verb: "update container",
            message: format!("container {}: the request has no linux resources", container.id),
        });
    };
    // Apart from the client's connection: cgroup and records change together.
    let key = format!("update container {} to {asked:?}", container.id);
    let at = node.clone();
    node.operate(key, limit, move |_| async move {
        let _gate = container.gate.lock().await;
        apply(&at, &container, asked).await?;
        Ok(String::new())
    })
    .await?;
    Ok(cri::UpdateContainerResourcesResponse {})
}

async fn apply(node: &Node, container: &Container, asked: LinuxContainerResources) -> Result<(), Error> {
    let id = container.id.as_str();
    let state = container.state();
    let (ContainerState::Created | ContainerState::Running, Some(shim)) = (state, container.shim()) else {
        return Err(Error::Wrong {
            what: "container",
            id: id.into(),
            kind: Kind::FailedPrecondition,
            message: format!("cannot be updated while it is {}", state.name()),
        });
    };
    let mut spec = bundle::read_spec(node, id)?;
    let update =
        spec::update_resources(&mut spec, &asked, &node.host).step("container", id, "update resources")?;
    shim.update(&update.limits)
        .await
        .step("container", id, "update resources")?;
    // What it holds in all: systemd has quota and period as one.
    let limits = spec::limits(&spec).step("container", id, "update resources")?;
    node.cgroups
        .update(&container.record().cgroup, &limits)
        .await
        .step("container", id, "tell systemd of its limits")?;
    if let Some(score) = update.oom_score_adj {
        set_oom_score(&container.record().cgroup, score, id)?;
    }
    bundle::write_spec(node, id, &spec)?;
    container.forget_exec_template();
    let mut resources = container.resources().unwrap_or_default();
    merge(&mut resources, asked);
    container.update(&node.store, |record| record.resources = Some(resources))?;
    Ok(())
}

/// For every process of the container: each has a score of its own, which its
/// children inherit. Done again until none is new, for one can fork meanwhile.
fn set_oom_score(cgroup: &str, score: i32, id: &str) -> Result<(), Error> {
    const STEP: &str = "set the oom_score_adj of its processes";
    let failed = |e: cgroup::Error| Error::Wrong {
        what: "container",
        id: id.into(),
        kind: Kind::Internal,
        message: format!("{STEP}: {e}"),
    };
    let cgroup = Cgroup::open(cgroup).map_err(failed)?;
    let mut done = BTreeSet::new();
    loop {
        let pids = cgroup.pids().map_err(failed)?;
        let new: Vec<i32> = pids.into_iter().filter(|pid| done.insert(*pid)).collect();
        if new.is_empty() {
            return Ok(());
        }
        for pid in new {
            let file = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
            match fs::write(&file, score.to_string()) {
                // It has ended.
                Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {}
                answer => answer.map_err(io("container", id, STEP, &file))?,
            }
        }
    }
}

/// Zero and empty mean "as it is".
fn merge(into: &mut LinuxContainerResources, asked: LinuxContainerResources) {
    let number = |into: &mut i64, asked: i64| {
        if asked != 0 {
            *into = asked;
        }
    };
    number(&mut into.cpu_period, asked.cpu_period);
    number(&mut into.cpu_quota, asked.cpu_quota);
    number(&mut into.cpu_shares, asked.cpu_shares);
    number(&mut into.memory_limit_in_bytes, asked.memory_limit_in_bytes);
    number(
        &mut into.memory_swap_limit_in_bytes,
        asked.memory_swap_limit_in_bytes,
    );
    number(&mut into.oom_score_adj, asked.oom_score_adj);
    for (into, asked) in [
        (&mut into.cpuset_cpus, asked.cpuset_cpus),
        (&mut into.cpuset_mems, asked.cpuset_mems),
    ] {
        if !asked.is_empty() {
            *into = asked;
        }
    }
    for limit in asked.hugepage_limits {
        match into
            .hugepage_limits
            .iter_mut()
            .find(|known| known.page_size == limit.page_size)
        {
            Some(known) => known.limit = limit.limit,
            None => into.hugepage_limits.push(limit),
        }
    }
    into.unified.extend(asked.unified);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_stays() {
        let mut have = LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 20,
            cpuset_cpus: "0".into(),
            ..Default::default()
        };
        let asked = LinuxContainerResources {
            memory_limit_in_bytes: 2 << 20,
            ..Default::default()
        };
        merge(&mut have, asked);
        assert_eq!(
            (
                have.cpu_shares,
                have.memory_limit_in_bytes,
                have.cpuset_cpus.as_str()
            ),
            (512, 2 << 20, "0")
        );
    }
}
