//! The kernel's OOM killer: that it was it, and for whose want of memory.

use std::{env, fs};

use anyhow::Context;
use e2e::{
    Result, Story,
    client::{Pod, resources},
    cri, kernel, machine,
};

/// The end of a container that fills so much memory, `limit` being its own.
async fn exhaust(story: &Story, pod: &Pod, limit: i64, bytes: u64) -> Result<cri::ContainerStatus> {
    let mut config = story.script("c", "");
    let size = format!("bs={bytes}");
    let command = [
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        &size,
        "iflag=fullblock",
        "count=1",
    ];
    config.command = command.map(str::to_owned).to_vec();
    resources(&mut config).memory_limit_in_bytes = limit;
    // Whoever else is there is not to be taken in its stead.
    resources(&mut config).oom_score_adj = 1000;
    let id = story.client.run(pod, config).await?;
    let status = story.client.wait_exit(&id).await?;
    assert_eq!(
        (status.exit_code, &*status.reason),
        (137, "OOMKilled"),
        "{status:?}"
    );
    Ok(status)
}

/// Sets the limit of the cgroup `path` of a pod, whose name as a parent is `asked`.
fn limit(asked: &str, path: &str, bytes: u64) -> Result {
    if machine::has_systemd_cgroups() {
        let property = format!("MemoryMax={bytes}");
        kernel::output("systemctl", &["set-property", "--runtime", asked, &property]);
        return Ok(());
    }
    for root in kernel::hierarchies()? {
        for name in ["memory.limit_in_bytes", "memory.max"] {
            let file = root.join(path.trim_start_matches('/')).join(name);
            if file.exists() {
                fs::write(file, bytes.to_string())?;
                return Ok(());
            }
        }
    }
    anyhow::bail!("cgroup {path} has no limit of memory")
}

#[tokio::test]
async fn the_limit_of_the_container() -> Result {
    let story = Story::begin().await?;
    let pod = story.client.run_pod("oom").await?;
    let status = exhaust(&story, &pod, 20 << 20, 200 << 20).await?;
    let words = format!("the container's memory limit of {} bytes", 20 << 20);
    assert!(
        story.node.is_peer() || status.message.contains(&words),
        "{status:?}"
    );
    story.finish().await
}

#[tokio::test]
async fn the_limit_of_the_pod() -> Result {
    let mut story = Story::begin().await?;
    let (asked, parent) = machine::cgroup_parent(&[&format!("e2e_oom_{:x}", std::process::id())]);
    story.node.also_ours(&parent)?;
    let mut config = story.client.pod_config("oom-pod");
    config.linux.get_or_insert_default().cgroup_parent = asked.clone();
    let pod = story.client.run_pod_with(config).await?;
    // Its cgroup stays while one container is there.
    let other = story
        .client
        .run(&pod, story.script("other", "sleep 1000"))
        .await?;
    limit(&asked, &parent, 30 << 20)?;
    let status = exhaust(&story, &pod, 0, 200 << 20).await?;
    let words = format!("memory limit of {} bytes of its pod", 30 << 20);
    let told = status.message.contains(&words) && status.message.contains(&parent);
    assert!(story.node.is_peer() || told, "{status:?}");
    let other = story.client.status(&other).await?;
    assert_eq!(other.state(), cri::ContainerState::ContainerRunning, "{other:?}");
    story.finish().await
}

#[tokio::test]
async fn the_memory_of_the_node() -> Result {
    if env::var_os("E2E_EXHAUST_NODE").is_none() {
        eprintln!(
            "skipped: it takes all memory of the machine; E2E_EXHAUST_NODE allows it, in one that is thrown away"
        );
        return Ok(());
    }
    let story = Story::begin().await?;
    let pod = story.client.run_pod("oom-node").await?;
    // More than there is, and less than what the kernel would refuse at once.
    let bytes = (memory("MemTotal:")? + memory("MemAvailable:")?) / 2;
    let status = exhaust(&story, &pod, 0, bytes).await?;
    let told = status.message.contains("the node had no memory left");
    assert!(story.node.is_peer() || told, "{status:?}");
    story.finish().await
}

/// A line of /proc/meminfo, in bytes.
fn memory(line: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let found = text.lines().find_map(|found| found.strip_prefix(line));
    let found = found.and_then(|found| found.trim().strip_suffix(" kB"));
    Ok(found.context("a line of /proc/meminfo")?.parse::<u64>()? << 10)
}
