//! Metrics, value by value against the kernel's own files.

use anyhow::Context;
use e2e::{
    Result, Story, cri,
    measured::{LIMIT, Measured, USAGE, keyed, links, now, same, value},
};

#[tokio::test]
async fn every_kind_of_metric() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: peers name other metrics");
        return story.finish().await;
    }
    let measured = Measured::begin(&mut story, "metrics").await?;
    let client = &story.client;
    let mut runtime = client.runtime.clone();
    let request = cri::ListMetricDescriptorsRequest::default();
    let answer = runtime.list_metric_descriptors(request).await?;
    let descriptors = answer.into_inner().descriptors;
    let mut helps = std::collections::BTreeSet::new();
    for descriptor in &descriptors {
        assert!(descriptor.name.starts_with("container_"), "{descriptor:?}");
        assert!(
            !descriptor.help.is_empty() && helps.insert(&descriptor.help),
            "{descriptor:?}"
        );
    }
    let metrics = async || -> Result<cri::PodSandboxMetrics> {
        let request = cri::ListPodSandboxMetricsRequest::default();
        let answer = client.runtime.clone().list_pod_sandbox_metrics(request).await?;
        let mut pods = answer.into_inner().pod_metrics;
        assert_eq!(pods.len(), 1);
        Ok(pods.remove(0))
    };
    let told = metrics().await?;
    assert_eq!(told.pod_sandbox_id, measured.pod.id);
    let container = told.container_metrics.first().context("container")?;
    assert_eq!(
        (told.container_metrics.len(), &container.container_id),
        (1, &measured.id)
    );
    for metric in told.metrics.iter().chain(&container.metrics) {
        assert!(
            descriptors.iter().any(|known| known.name == metric.name),
            "{metric:?}"
        );
        // What may only grow is a counter.
        let grows = metric.name.ends_with("_total") && metric.name != "container_fs_inodes_total";
        let kind = if grows || metric.name == "container_memory_failcnt" {
            cri::MetricType::Counter
        } else {
            cri::MetricType::Gauge
        };
        assert_eq!(metric.metric_type(), kind, "{metric:?}");
        // 0 is now; only a layer is not measured for every answer.
        let earlier =
            metric.name == "container_fs_usage_bytes" && (measured.begun..=now()).contains(&metric.timestamp);
        assert!(metric.timestamp == 0 || earlier, "{metric:?}");
    }

    // Values that stand still, and those that move.
    let find = |list: &[cri::Metric], name: &str, label: &str| -> Result<u64> {
        let mut all = list.iter().filter(|metric| metric.name == name);
        let found = all.find(|m| label.is_empty() || m.label_values.iter().any(|l| l == label));
        Ok(value(&found.with_context(|| name.to_owned())?.value))
    };
    let of = |name: &str| find(&container.metrics, name, "");
    let status = client.status(&measured.id).await?;
    let started = u64::try_from(status.started_at)? / 1_000_000_000;
    for (name, expected) in [
        ("container_spec_memory_limit_bytes", LIMIT),
        ("container_spec_cpu_quota", 50_000),
        ("container_spec_cpu_period", 100_000),
        ("container_start_time_seconds", started),
        ("container_processes", 2),
    ] {
        assert_eq!(of(name)?, expected, "{name}");
    }
    let seen = of("container_last_seen")?;
    let second = |time: i64| u64::try_from(time / 1_000_000_000);
    assert!(
        (second(measured.begun)?..=second(now())?).contains(&seen),
        "{seen}"
    );
    assert!(of("container_cpu_cfs_periods_total")? > 0);
    for name in [
        "container_memory_usage_bytes",
        "container_memory_rss",
        "container_cpu_usage_seconds_total",
    ] {
        let kernel = || match name {
            "container_memory_rss" => {
                let stat = measured.file(&["memory.stat"])?.context("stat")?;
                keyed(&stat, &["total_rss", "anon"])
            }
            "container_memory_usage_bytes" => keyed(&measured.file(&USAGE)?.context("usage")?, &[""]),
            _ => Ok(measured.cpu()? / 1_000_000_000),
        };
        let told = async || find(&metrics().await?.container_metrics[0].metrics, name, "");
        same(name, kernel, told).await?;
    }
    for (name, at) in [
        ("container_network_receive_bytes_total", 0),
        ("container_network_transmit_bytes_total", 2),
    ] {
        let kernel = || Ok(links(measured.pid)?["eth0"][at]);
        let told = async || find(&metrics().await?.metrics, name, "eth0");
        same(name, kernel, told).await?;
    }
    let kernel = || keyed(&measured.pods_file(&USAGE)?, &[""]);
    let told = async || find(&metrics().await?.metrics, "container_memory_usage_bytes", "");
    same("memory of the pod", kernel, told).await?;

    client.stop_pod(&measured.pod.id).await?;
    client.remove_pod(&measured.pod.id).await?;
    story.finish().await
}
