//! UpdatePodSandboxResources: the kubelet tells what the pod as a whole may use, after
//! it has changed the pod's cgroup itself. Recorded, so that whoever asks for the pod's
//! resources later, also after a restart, is told the new ones.

use std::sync::Arc;

use super::{error::Error, node::Node};
use crate::proto::cri;

pub async fn update(
    node: &Arc<Node>,
    request: cri::UpdatePodSandboxResourcesRequest,
) -> Result<cri::UpdatePodSandboxResourcesResponse, Error> {
    let sandbox = node.pods.sandbox(&request.pod_sandbox_id)?;
    // Not while it is stopped or removed: its record must not come back.
    let _gate = sandbox.gate.read().await;
    let sandbox = node.pods.sandbox(&sandbox.id)?;
    sandbox.update(&node.store, |record| {
        // A part that the request leaves out stays as it is.
        if request.overhead.is_some() {
            record.overhead = request.overhead;
        }
        if request.resources.is_some() {
            record.resources = request.resources;
        }
    })?;
    tracing::info!(sandbox = %sandbox.id, "resources are updated");
    Ok(cri::UpdatePodSandboxResourcesResponse {})
}

/// For the verbose status.
pub fn describe(resources: Option<&cri::LinuxContainerResources>) -> serde_json::Value {
    let Some(r) = resources else {
        return serde_json::Value::Null;
    };
    let pages = r
        .hugepage_limits
        .iter()
        .map(|limit| (&limit.page_size, limit.limit));
    serde_json::json!({
        "cpuPeriod": r.cpu_period,
        "cpuQuota": r.cpu_quota,
        "cpuShares": r.cpu_shares,
        "memoryLimitInBytes": r.memory_limit_in_bytes,
        "memorySwapLimitInBytes": r.memory_swap_limit_in_bytes,
        "oomScoreAdj": r.oom_score_adj,
        "cpusetCpus": r.cpuset_cpus,
        "cpusetMems": r.cpuset_mems,
        "hugepageLimits": pages.collect::<std::collections::BTreeMap<_, _>>(),
        "unified": r.unified,
    })
}
