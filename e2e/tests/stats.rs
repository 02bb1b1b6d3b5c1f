//! Statistics and metrics of containers and pods that do something.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use e2e::{Client, Pod, Result, Story, client::resources, cri, machine};

async fn stats(client: &Client, id: &str) -> Result<cri::ContainerStats> {
    let request = cri::ContainerStatsRequest {
        container_id: id.into(),
    };
    let answer = client.runtime.clone().container_stats(request).await?;
    answer.into_inner().stats.context("stats")
}

async fn pod_stats(client: &Client, pod: &Pod) -> Result<cri::LinuxPodSandboxStats> {
    let request = cri::PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let answer = client.runtime.clone().pod_sandbox_stats(request).await?;
    let stats = answer.into_inner().stats.context("stats")?;
    assert_eq!(stats.attributes.context("attributes")?.id, pod.id);
    stats.linux.context("linux")
}

async fn list(client: &Client, filter: cri::ContainerStatsFilter) -> Result<Vec<String>> {
    let request = cri::ListContainerStatsRequest { filter: Some(filter) };
    let answer = client
        .runtime
        .clone()
        .list_container_stats(request)
        .await?
        .into_inner();
    let ids = answer
        .stats
        .into_iter()
        .filter_map(|stats| Some(stats.attributes?.id));
    let mut ids: Vec<_> = ids.collect();
    ids.sort();
    Ok(ids)
}

fn value(number: &Option<cri::UInt64Value>) -> u64 {
    number.as_ref().expect("a value").value
}

#[tokio::test]
async fn cpu_of_one_that_is_busy() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("busy").await?;
    let mut config = story.script("c", "while :; do :; done");
    // A quarter of a CPU: the machine has other work too.
    resources(&mut config).cpu_period = 100_000;
    resources(&mut config).cpu_quota = 25_000;
    let busy = client.run(&pod, config).await?;
    let idle = client.run(&pod, story.script("d", "exec sleep 1000")).await?;
    let first = stats(client, &busy).await?.cpu.context("cpu")?;
    assert!(first.timestamp > 0);
    // Told at once, as the average since the start.
    assert!(first.usage_nano_cores.is_some());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let second = stats(client, &busy).await?.cpu.context("cpu")?;
    let used = value(&second.usage_core_nano_seconds) - value(&first.usage_core_nano_seconds);
    assert!(used > 50_000_000, "{used} ns in 1.5 s");
    assert!(second.timestamp > first.timestamp);
    let rate = value(&second.usage_nano_cores);
    assert!((30_000_000..400_000_000).contains(&rate), "{rate}");
    let calm = stats(client, &idle).await?.cpu.context("cpu")?;
    assert!(value(&calm.usage_core_nano_seconds) < 500_000_000, "{calm:?}");
    // The pod's is the sum.
    let whole = pod_stats(client, &pod).await?;
    let sum = value(&whole.cpu.context("cpu")?.usage_core_nano_seconds);
    assert!(sum >= value(&second.usage_core_nano_seconds) + value(&calm.usage_core_nano_seconds));
    assert_eq!(whole.containers.len(), 2);
    assert!(value(&whole.process.context("processes")?.process_count) >= 2);
    if std::fs::exists("/proc/pressure/cpu")? {
        let pressure = second.psi.context("pressure")?;
        assert!(pressure.some.context("some")?.total > 0);
    }
    story.finish().await
}

/// Files of the container's cgroup that berthd has open.
fn kept(pid: u32, container: &str) -> Result<usize> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    Ok(links
        .filter(|link| link.to_string_lossy().contains(container))
        .count())
}

#[tokio::test]
async fn what_is_kept_open_goes_with_the_container() -> Result {
    let story = Story::begin().await?;
    let Some(pid) = story.node.pid() else {
        eprintln!("skipped: another server keeps what it likes");
        return story.finish().await;
    };
    let client = &story.client;
    let pod = client.run_pod("counted").await?;
    let id = client.run(&pod, story.script("c", "exec sleep 1000")).await?;
    assert_eq!(kept(pid, &id)?, 0);
    stats(client, &id).await?;
    let first = kept(pid, &id)?;
    assert!(first > 0);
    for _ in 0..5 {
        stats(client, &id).await?;
        pod_stats(client, &pod).await?;
    }
    // Folders, and two files of the pod's statistics more.
    let more = kept(pid, &id)?;
    assert!(more < first + 4, "{first} {more}");
    client.stop(&id, 0).await?;
    assert_eq!(kept(pid, &id)?, 0);
    assert!(stats(client, &id).await?.cpu.is_none());
    assert_eq!(kept(pid, &id)?, 0);
    story.finish().await
}

#[tokio::test]
async fn memory_of_one_that_allocates() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("hungry").await?;
    let mut config = story.script("c", "exec sleep 1000");
    resources(&mut config).memory_limit_in_bytes = 128 << 20;
    let id = client.run(&pod, config).await?;
    let before = stats(client, &id).await?.memory.context("memory")?;
    // dd keeps a block of that size, and waits for the rest of its input.
    let eats = "(sleep 1000 | dd bs=40M of=/dev/null iflag=fullblock) & x=$(head -c 30000000 /dev/zero | tr '\\0' x); sleep 1000; :";
    let runtime = client.clone();
    let eater = {
        let (runtime, id) = (runtime.clone(), id.clone());
        tokio::spawn(async move { runtime.exec_within(&id, &["sh", "-c", eats], 60).await })
    };
    let mut after = before;
    for _ in 0..500 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        after = stats(client, &id).await?.memory.context("memory")?;
        if value(&after.usage_bytes) > value(&before.usage_bytes) + (25 << 20) {
            break;
        }
    }
    assert!(
        value(&after.usage_bytes) > value(&before.usage_bytes) + (25 << 20),
        "{before:?} {after:?}"
    );
    assert!(
        value(&after.rss_bytes) > value(&before.rss_bytes) + (20 << 20),
        "{after:?}"
    );
    assert!(value(&after.page_faults) > value(&before.page_faults));
    assert_eq!(
        value(&after.available_bytes),
        (128 << 20) - value(&after.working_set_bytes)
    );
    assert!(value(&after.working_set_bytes) <= value(&after.usage_bytes) && after.timestamp > 0);
    // The exec ends with its container.
    client.stop(&id, 0).await?;
    let _ = eater.await?;
    story.finish().await
}

#[tokio::test]
async fn network_of_one_that_sends() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (pod, _) = story.sleeper("first").await?;
    let (other, sender) = story.sleeper("second").await?;
    let address = client.addresses(&pod).await?.first().context("address")?.clone();
    let before = pod_stats(client, &pod).await?.network.context("network")?;
    assert_eq!(before.default_interface.as_ref().map(|i| &*i.name), Some("eth0"));
    assert!(before.interfaces.iter().all(|interface| interface.name != "lo"));
    client
        .sh(&sender, &format!("ping -c 3 -s 1000 -W 2 {address} >/dev/null"))
        .await?;
    let after = pod_stats(client, &pod).await?.network.context("network")?;
    let (a, b) = (
        before.default_interface.context("eth0")?,
        after.default_interface.context("eth0")?,
    );
    assert!(value(&b.rx_bytes) >= value(&a.rx_bytes) + 3000, "{a:?} {b:?}");
    assert!(value(&b.tx_bytes) >= value(&a.tx_bytes) + 3000, "{a:?} {b:?}");
    let far = pod_stats(client, &other).await?.network.context("network")?;
    assert!(value(&far.default_interface.context("eth0")?.tx_bytes) >= 3000);
    story.finish().await
}

#[tokio::test]
async fn the_writable_layer_grows_and_outlives_the_process() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (_, id) = story.sleeper("writer").await?;
    let before = stats(client, &id).await?.writable_layer.context("layer")?;
    client.sh(&id, "dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; for n in 1 2 3; do echo x > /small$n; done; sync").await?;
    // It is not walked through again at once.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after = stats(client, &id).await?.writable_layer.context("layer")?;
    assert!(
        value(&after.used_bytes) >= value(&before.used_bytes) + (8 << 20),
        "{before:?} {after:?}"
    );
    assert_eq!(value(&after.inodes_used), value(&before.inodes_used) + 4);
    let mountpoint = after.fs_id.context("fs_id")?.mountpoint;
    assert!(std::fs::exists(&mountpoint)?, "{mountpoint}");
    assert!(after.timestamp > before.timestamp && before.timestamp > 0);
    client.stop(&id, 0).await?;
    let ended = stats(client, &id).await?;
    assert!(ended.cpu.is_none() && ended.memory.is_none(), "{ended:?}");
    assert!(value(&ended.writable_layer.context("layer")?.used_bytes) >= 8 << 20);
    story.finish().await
}

#[tokio::test]
async fn filters() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (first, a) = story.sleeper("first").await?;
    let mut red = client.pod_config("second");
    red.labels.insert("color".into(), "red".into());
    let second = client.run_pod_with(red).await?;
    let mut config = story.script("b", "exec sleep 1000");
    config.labels.insert("kind".into(), "special".into());
    let b = client.run(&second, config).await?;
    let filter = cri::ContainerStatsFilter::default;
    let mut both = [a.clone(), b.clone()];
    both.sort();
    assert_eq!(list(client, filter()).await?, both);
    let by = |id: &str| cri::ContainerStatsFilter {
        id: id.into(),
        ..filter()
    };
    assert_eq!(list(client, by(&a)).await?, [a.as_str()]);
    assert_eq!(list(client, by(&a[..16])).await?, [a.as_str()]);
    assert!(list(client, by("ffff-none")).await?.is_empty());
    let of = |id: &str| cri::ContainerStatsFilter {
        pod_sandbox_id: id.into(),
        ..filter()
    };
    assert_eq!(list(client, of(&second.id)).await?, [b.as_str()]);
    assert!(list(client, of("ffff-none")).await?.is_empty());
    let special = cri::ContainerStatsFilter {
        label_selector: [("kind".into(), "special".into())].into(),
        ..filter()
    };
    assert_eq!(list(client, special.clone()).await?, [b.as_str()]);
    assert!(
        list(client, cri::ContainerStatsFilter { id: a, ..special })
            .await?
            .is_empty()
    );
    let error = stats(client, "ffff-none").await.expect_err("there is none");
    assert!(error.to_string().contains("ffff-none"), "{error}");

    let request = |filter| cri::ListPodSandboxStatsRequest { filter: Some(filter) };
    let mut runtime = client.runtime.clone();
    let by_id = |id: &str| cri::PodSandboxStatsFilter {
        id: id.into(),
        ..Default::default()
    };
    let by_label = |color: &str| cri::PodSandboxStatsFilter {
        label_selector: [("color".into(), color.into())].into(),
        ..Default::default()
    };
    let both = cri::PodSandboxStatsFilter {
        id: first.id.clone(),
        ..by_label("red")
    };
    for (filter, expected) in [
        (by_id(&first.id), &[&first.id][..]),
        (by_id("ffff-none"), &[]),
        (by_label("red"), &[&second.id]),
        (by_label("blue"), &[]),
        (both, &[]),
    ] {
        let answer = runtime.list_pod_sandbox_stats(request(filter)).await?;
        let stats = answer.into_inner().stats;
        let found: Vec<_> = stats
            .iter()
            .map(|s| &s.attributes.as_ref().expect("told").id)
            .collect();
        assert_eq!(found, expected);
    }
    // A pod that is stopped is not listed.
    client.stop_pod(&first.id).await?;
    let all = runtime
        .list_pod_sandbox_stats(request(Default::default()))
        .await?
        .into_inner()
        .stats;
    assert_eq!(all.len(), 1);
    story.finish().await
}

#[tokio::test]
async fn a_pod_with_a_cgroup_of_its_own_is_that_cgroup() -> Result {
    let mut story = Story::begin().await?;
    let mut config = story.client.pod_config("own");
    let uid = config.metadata.clone().context("metadata")?.uid;
    let kubepods = format!("e2e_kubepods_{:x}", std::process::id());
    let (_, parent) = machine::cgroup_parent(&[&kubepods]);
    story.node.also_ours(&parent)?;
    let (asked, own) = machine::cgroup_parent(&[&kubepods, &format!("pod{uid}")]);
    config.linux.get_or_insert_default().cgroup_parent = asked;
    let client = &story.client;
    let pod = client.run_pod_with(config).await?;
    // Without a kubelet the parent stays only while somebody is in it.
    client.run(&pod, story.script("d", "exec sleep 1000")).await?;
    let id = client
        .run(&pod, story.script("c", "head -c 30000000 /dev/zero | md5sum"))
        .await?;
    client.wait_exit(&id).await?;
    let first = pod_stats(client, &pod).await?.cpu.context("cpu")?;
    client.remove(&id).await?;
    // What a container that is gone used stays the pod's.
    let after = pod_stats(client, &pod).await?.cpu.context("cpu")?;
    assert!(value(&first.usage_core_nano_seconds) > 0);
    assert!(value(&after.usage_core_nano_seconds) >= value(&first.usage_core_nano_seconds));
    let request = cri::ListPodSandboxMetricsRequest::default();
    let metrics = client
        .runtime
        .clone()
        .list_pod_sandbox_metrics(request)
        .await?
        .into_inner()
        .pod_metrics;
    let usage = metrics[0]
        .metrics
        .iter()
        .find(|m| m.name == "container_memory_usage_bytes")
        .context("usage")?;
    assert_eq!(usage.label_values[1], own);
    client.stop_pod(&pod.id).await?;
    client.remove_pod(&pod.id).await?;
    story.finish().await
}

#[tokio::test]
async fn metrics_have_the_labels_of_their_descriptors() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (pod, id) = story.sleeper("measured").await?;
    let mut runtime = client.runtime.clone();
    let request = cri::ListMetricDescriptorsRequest::default();
    let descriptors = runtime
        .list_metric_descriptors(request)
        .await?
        .into_inner()
        .descriptors;
    let keys: BTreeMap<_, _> = descriptors
        .iter()
        .map(|d| (d.name.as_str(), &d.label_keys))
        .collect();
    assert_eq!(keys.len(), descriptors.len());
    let request = cri::ListPodSandboxMetricsRequest::default();
    let pods = runtime
        .list_pod_sandbox_metrics(request)
        .await?
        .into_inner()
        .pod_metrics;
    let [metrics] = pods.as_slice() else {
        anyhow::bail!("{} pods", pods.len())
    };
    assert_eq!(metrics.pod_sandbox_id, pod.id);
    let [container] = metrics.container_metrics.as_slice() else {
        anyhow::bail!("no container")
    };
    assert_eq!(container.container_id, id);
    for metric in metrics.metrics.iter().chain(&container.metrics) {
        let keys = keys
            .get(metric.name.as_str())
            .with_context(|| metric.name.clone())?;
        assert_eq!(keys.len(), metric.label_values.len(), "{}", metric.name);
        // Measured for this answer, as 0 says; only a layer is not walked through each time.
        assert!(metric.timestamp == 0 || metric.name == "container_fs_usage_bytes");
        assert!(metric.value.is_some(), "{}", metric.name);
        let labels: BTreeMap<_, _> = keys
            .iter()
            .map(String::as_str)
            .zip(&metric.label_values)
            .collect();
        assert_eq!(
            (labels["pod"].as_str(), labels["namespace"].as_str()),
            ("measured", "e2e")
        );
    }
    let of = |list: &[cri::Metric], name: &str| list.iter().find(|m| m.name == name).cloned();
    let memory = of(&container.metrics, "container_memory_working_set_bytes").context("memory")?;
    assert!(value(&memory.value) > 0);
    assert!(memory.label_values.contains(&id) && memory.label_values.contains(&story.image.tag));
    assert_eq!(
        value(
            &of(&container.metrics, "container_processes")
                .context("processes")?
                .value
        ),
        1
    );
    assert!(
        value(
            &of(&container.metrics, "container_file_descriptors")
                .context("fds")?
                .value
        ) >= 3
    );
    let received = of(&metrics.metrics, "container_network_receive_bytes_total").context("network")?;
    assert_eq!(received.label_values.last().map(String::as_str), Some("eth0"));
    story.finish().await
}
