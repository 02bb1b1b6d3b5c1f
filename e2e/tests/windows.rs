//! Every Windows field that a request can carry: on Linux nothing comes of any, and
//! no answer has one.

use anyhow::Context;
use e2e::{Result, Story, cri, kernel};

/// Limits that a container could not live with.
fn limits() -> cri::WindowsContainerResources {
    cri::WindowsContainerResources {
        cpu_shares: 2,
        cpu_count: 1,
        cpu_maximum: 1,
        memory_limit_in_bytes: 4096,
        rootfs_size_in_bytes: 1,
        affinity_cpus: vec![cri::WindowsCpuGroupAffinity {
            cpu_mask: 1 << 63,
            cpu_group: 63,
        }],
    }
}

/// The cgroup's limits, whatever the kernel calls them.
fn cgroup(pid: u32) -> Result<Vec<Option<String>>> {
    [
        ["cpu.cfs_quota_us", "cpu.max"],
        ["cpu.shares", "cpu.weight"],
        ["memory.limit_in_bytes", "memory.max"],
        ["cpuset.cpus", "cpuset.cpus.effective"],
    ]
    .iter()
    .map(|names| kernel::cgroup_file(pid, names))
    .collect()
}

#[tokio::test]
async fn nothing_comes_of_them_and_none_is_told() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: the words of others differ");
        return story.finish().await;
    }
    let client = &story.client;
    let mut config = client.pod_config("panes");
    config.windows = Some(cri::WindowsPodSandboxConfig {
        security_context: Some(cri::WindowsSandboxSecurityContext {
            run_as_username: "ContainerUser".into(),
            credential_spec: "{}".into(),
            host_process: true,
            namespace_options: Some(cri::WindowsNamespaceOption {
                network: cri::NamespaceMode::Node.into(),
            }),
        }),
    });
    let pod = client.run_pod_with(config).await?;
    let plain = client.run(&pod, story.script("plain", "exec sleep 1000")).await?;
    let mut config = story.script("panes", "exec sleep 1000");
    config.windows = Some(cri::WindowsContainerConfig {
        resources: Some(limits()),
        security_context: Some(cri::WindowsContainerSecurityContext {
            run_as_username: "ContainerUser".into(),
            credential_spec: "{}".into(),
            host_process: true,
        }),
    });
    let id = client.run(&pod, config).await?;

    // The pod has a network of its own, the container the user of its image, and
    // limits, namespaces and rights are those of one that was asked for nothing.
    assert!(!client.addresses(&pod).await?[0].is_empty());
    let own = std::fs::read_link("/proc/self/ns/net")?;
    let space = client.sh(&id, "readlink /proc/self/ns/net").await?;
    assert_ne!(space, own.to_string_lossy());
    let seen = "id -u; id -G; grep -E '^(Cap|Seccomp|NoNewPrivs|Cpus_allowed)' /proc/self/status; \
        readlink /proc/self/ns/net /proc/self/ns/ipc; head -c 2000000 /dev/zero > /file && echo written";
    let told = client.sh(&id, seen).await?;
    assert_eq!(told, client.sh(&plain, seen).await?);
    assert!(told.starts_with("0\n") && told.ends_with("written"), "{told}");
    let pid = |info: &str| -> Result<u32> {
        let info: serde_json::Value = serde_json::from_str(info)?;
        Ok(u32::try_from(info["pid"].as_u64().context("pid")?)?)
    };
    let mut found = Vec::new();
    for id in [&plain, &id] {
        let request = cri::ContainerStatusRequest {
            container_id: id.clone(),
            verbose: true,
        };
        let told = client.runtime.clone().container_status(request).await?;
        found.push(cgroup(pid(&told.into_inner().info["info"])?)?);
    }
    assert_eq!(found[0], found[1]);

    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        // One without any of Linux is not a request.
        linux: Some(Default::default()),
        windows: Some(limits()),
        ..Default::default()
    };
    client.runtime.clone().update_container_resources(request).await?;
    let status = client.status(&id).await?;
    assert_eq!(status.resources.context("resources")?.windows, None);
    assert_eq!(client.sh(&id, "echo here").await?, "here");

    let request = cri::PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let told = client.runtime.clone().pod_sandbox_stats(request).await?;
    let mut all = vec![told.into_inner().stats.context("stats")?];
    let request = cri::ListPodSandboxStatsRequest::default();
    let told = client.runtime.clone().list_pod_sandbox_stats(request).await?;
    all.extend(told.into_inner().stats);
    assert_eq!(all.len(), 2);
    assert!(
        all.iter()
            .all(|stats| stats.windows.is_none() && stats.linux.is_some())
    );
    story.finish().await
}
