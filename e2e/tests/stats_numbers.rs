//! Statistics, number by number against the kernel's own files.

use std::fs;

use anyhow::Context;
use e2e::{
    Result, Story, cri, kernel,
    measured::{LIMIT, Links, Measured, SWAP, USAGE, keyed, links, now, same, value},
};

/// usage, rss, working set, faults, major faults.
fn memory(usage: &str, stat: &str) -> Result<[u64; 5]> {
    let usage = keyed(usage, &[""])?;
    let inactive = keyed(stat, &["total_inactive_file", "inactive_file"])?;
    Ok([
        usage,
        keyed(stat, &["total_rss", "anon"])?,
        usage.saturating_sub(inactive),
        keyed(stat, &["total_pgfault", "pgfault"])?,
        keyed(stat, &["total_pgmajfault", "pgmajfault"])?,
    ])
}

fn told_memory(memory: &cri::MemoryUsage) -> [u64; 5] {
    [
        value(&memory.usage_bytes),
        value(&memory.rss_bytes),
        value(&memory.working_set_bytes),
        value(&memory.page_faults),
        value(&memory.major_page_faults),
    ]
}

/// A pressure file: total in nanoseconds and the three averages, of some and of full.
type Pressure = [(u64, f64, f64, f64); 2];

fn pressure(text: &str) -> Result<Pressure> {
    let line = |kind: &str| -> Result<(u64, f64, f64, f64)> {
        let line = text.lines().find_map(|line| line.strip_prefix(kind));
        let line = line.with_context(|| format!("{kind} in {text}"))?;
        let of = |key: &str| {
            let mut words = line.split_whitespace();
            words.find_map(|word| word.strip_prefix(key)).unwrap_or_default()
        };
        Ok((
            of("total=").parse::<u64>()? * 1000,
            of("avg10=").parse()?,
            of("avg60=").parse()?,
            of("avg300=").parse()?,
        ))
    };
    Ok([line("some ")?, line("full ")?])
}

fn told_pressure(psi: Option<cri::PsiStats>) -> Result<Pressure> {
    let psi = psi.context("pressure")?;
    let of = |data: Option<cri::PsiData>| -> Result<(u64, f64, f64, f64)> {
        let data = data.context("a half of the pressure")?;
        Ok((data.total, data.avg10, data.avg60, data.avg300))
    };
    Ok([of(psi.some)?, of(psi.full)?])
}

fn told_link(link: &cri::NetworkInterfaceUsage) -> (String, [u64; 4]) {
    let numbers = [&link.rx_bytes, &link.rx_errors, &link.tx_bytes, &link.tx_errors];
    (link.name.clone(), numbers.map(value))
}

#[tokio::test]
async fn every_number_of_the_statistics() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: peers round and leave out otherwise");
        return story.finish().await;
    }
    let measured = Measured::begin(&mut story, "numbers").await?;
    let client = &story.client;
    // Some traffic to count.
    let gateway = "ping -c 2 -W 2 $(ip route | grep default | cut -d' ' -f3) >/dev/null; true";
    client.sh(&measured.id, gateway).await?;

    // Who it is, and when it was measured.
    let before = now();
    let told = measured.stats(client).await?;
    let pod = measured.pod_stats(client).await?;
    let span = before..=now();
    let container = client.containers(None).await?.remove(0);
    let expected = cri::ContainerAttributes {
        id: measured.id.clone(),
        metadata: container.metadata,
        labels: container.labels,
        annotations: container.annotations,
    };
    assert_eq!(expected.annotations["note"], "c\td");
    assert_eq!(told.attributes.as_ref(), Some(&expected));
    let expected = cri::PodSandboxAttributes {
        id: measured.pod.id.clone(),
        metadata: measured.pod.config.metadata.clone(),
        labels: measured.pod.config.labels.clone(),
        annotations: measured.pod.config.annotations.clone(),
    };
    assert_eq!(pod.attributes, Some(expected));
    let linux = pod.linux.context("linux")?;
    let of_pod = linux.containers.first().context("the container")?;
    assert_eq!(
        (linux.containers.len(), &of_pod.attributes),
        (1, &told.attributes)
    );
    let times = |stats: &cri::ContainerStats| {
        [
            stats.cpu.as_ref().map(|cpu| cpu.timestamp),
            stats.memory.as_ref().map(|memory| memory.timestamp),
            stats.io.as_ref().map(|io| io.timestamp),
        ]
    };
    let of_the_pod = [
        linux.cpu.as_ref().map(|cpu| cpu.timestamp),
        linux.memory.as_ref().map(|memory| memory.timestamp),
        linux.io.as_ref().map(|io| io.timestamp),
        linux.process.as_ref().map(|process| process.timestamp),
        linux.network.as_ref().map(|network| network.timestamp),
    ];
    let all = times(&told).into_iter().chain(times(of_pod)).chain(of_the_pod);
    for (number, time) in all.enumerate() {
        let time = time.with_context(|| format!("the {number}th is not told"))?;
        assert!(span.contains(&time), "the {number}th: {time} is not in {span:?}");
    }

    // CPU and memory, of the container and of the pod's cgroup.
    let kernel = || measured.cpu();
    let told = async || {
        Ok(value(
            &measured
                .stats(client)
                .await?
                .cpu
                .context("cpu")?
                .usage_core_nano_seconds,
        ))
    };
    same("cpu", kernel, told).await?;
    let kernel = || measured.pods_cpu();
    let linux = async || measured.pod_stats(client).await?.linux.context("linux");
    let told = async || Ok(value(&linux().await?.cpu.context("cpu")?.usage_core_nano_seconds));
    same("cpu of the pod", kernel, told).await?;
    let kernel = || {
        let stat = measured.file(&["memory.stat"])?.context("stat")?;
        memory(&measured.file(&USAGE)?.context("usage")?, &stat)
    };
    let told = async || {
        Ok(told_memory(
            &measured.stats(client).await?.memory.context("memory")?,
        ))
    };
    same("memory", kernel, told).await?;
    let kernel = || {
        memory(
            &measured.pods_file(&USAGE)?,
            &measured.pods_file(&["memory.stat"])?,
        )
    };
    let told = async || Ok(told_memory(&linux().await?.memory.context("memory")?));
    same("memory of the pod", kernel, told).await?;
    let memory = measured.stats(client).await?.memory.context("memory")?;
    assert_eq!(
        value(&memory.available_bytes) + value(&memory.working_set_bytes),
        LIMIT
    );

    // Swap, where the kernel counts it: v1 limits it together with the memory.
    let both = measured.file(&["memory.memsw.limit_in_bytes"])?;
    let alone = measured.file(&["memory.swap.max"])?;
    let before = now();
    let swap = measured.stats(client).await?.swap;
    if both.is_some() || alone.is_some() {
        let limit = match (&both, &alone) {
            (Some(both), _) => keyed(both, &[""])? - LIMIT,
            (_, alone) => keyed(alone.as_deref().unwrap_or_default(), &[""])?,
        };
        assert_eq!(limit, SWAP);
        let swap = swap.context("swap")?;
        assert!((before..=now()).contains(&swap.timestamp));
        let used = || match measured.file(&["memory.swap.current"])? {
            Some(used) => keyed(&used, &[""]),
            None => keyed(
                &measured.file(&["memory.stat"])?.context("stat")?,
                &["total_swap"],
            ),
        };
        let kernel = || used().map(|used| (used, limit - used));
        let told = async || {
            let swap = measured.stats(client).await?.swap.context("swap")?;
            Ok((value(&swap.swap_usage_bytes), value(&swap.swap_available_bytes)))
        };
        same("swap", kernel, told).await?;
    } else {
        eprintln!("not seen: this kernel does not count swap");
        assert_eq!(swap, None);
    }

    // Processes: the two that stay.
    let count = || {
        let text = measured.file(&["cgroup.procs"])?.context("procs")?;
        Ok(u64::try_from(text.lines().count())?)
    };
    assert_eq!(count()?, 2);
    let told = async || Ok(value(&linux().await?.process.context("process")?.process_count));
    same("processes of the pod", count, told).await?;

    // Pressure of the three resources.
    if fs::exists("/proc/pressure/cpu")? && measured.file(&["cpu.pressure"])?.is_some() {
        for name in ["cpu.pressure", "memory.pressure", "io.pressure"] {
            let pick =
                |cpu: Option<cri::CpuUsage>, memory: Option<cri::MemoryUsage>, io: Option<cri::IoUsage>| {
                    told_pressure(match name {
                        "cpu.pressure" => cpu.context("cpu")?.psi,
                        "memory.pressure" => memory.context("memory")?.psi,
                        _ => io.context("io")?.psi,
                    })
                };
            let kernel = || pressure(&measured.file(&[name])?.context("pressure")?);
            if name == "cpu.pressure" {
                assert!(kernel()?[0].0 > 0, "it waited for its quota");
            }
            let told = async || {
                let stats = measured.stats(client).await?;
                pick(stats.cpu, stats.memory, stats.io)
            };
            same(name, kernel, told).await?;
            let kernel = || pressure(&measured.pods_file(&[name])?);
            let told = async || {
                let linux = linux().await?;
                pick(linux.cpu, linux.memory, linux.io)
            };
            same(&format!("{name} of the pod"), kernel, told).await?;
        }
    } else {
        eprintln!("not seen: this kernel measures no pressure");
        assert_eq!(measured.stats(client).await?.io.context("io")?.psi, None);
    }

    // Links, and which one is the default.
    let own = || links(measured.pid);
    assert!(own()?["eth0"].iter().sum::<u64>() > 0);
    let told = async || {
        let network = linux().await?.network.context("network")?;
        let default = told_link(&network.default_interface.context("default")?);
        let all: Links = network.interfaces.iter().map(told_link).collect();
        assert_eq!(all.get("eth0"), Some(&default.1));
        assert_eq!(default.0, "eth0");
        Ok(all)
    };
    same("links", own, told).await?;

    // The writable layer, as du has it; it may have been measured a moment ago.
    let upper = story
        .node
        .root()
        .join("containers")
        .join(&measured.id)
        .join("upper");
    let upper = upper.to_string_lossy();
    let du = || {
        let sum = |option: &str| -> Result<u64> {
            let text = kernel::output("du", &["-s", option, &upper]);
            Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
        };
        Ok((sum("--block-size=1")?, sum("--inodes")?))
    };
    assert!(du()?.0 >= 100_000);
    let told = async || {
        let layer = measured.stats(client).await?.writable_layer.context("layer")?;
        assert!((measured.begun..=now()).contains(&layer.timestamp), "{layer:?}");
        let mountpoint = layer.fs_id.unwrap_or_default().mountpoint;
        assert_eq!(mountpoint, story.node.root().to_string_lossy());
        Ok((value(&layer.used_bytes), value(&layer.inodes_used)))
    };
    same("layer", du, told).await?;

    // The lists tell the same things.
    let mut runtime = client.runtime.clone();
    let request = cri::ListContainerStatsRequest::default();
    let listed = runtime.list_container_stats(request).await?.into_inner().stats;
    let request = cri::ListPodSandboxStatsRequest::default();
    let pods = runtime.list_pod_sandbox_stats(request).await?.into_inner().stats;
    assert_eq!((listed.len(), pods.len()), (1, 1));
    let one = measured.stats(client).await?;
    assert_eq!(listed[0].attributes, one.attributes);
    let memory = |stats: &cri::ContainerStats| stats.memory.as_ref().map(|memory| memory.usage_bytes);
    assert!(memory(&listed[0]).flatten().is_some_and(|usage| usage.value > 0));
    assert_eq!(pods[0].attributes, pod.attributes);
    assert_eq!(
        pods[0].linux.as_ref().map(|linux| linux.containers.len()),
        Some(1)
    );

    client.stop_pod(&measured.pod.id).await?;
    client.remove_pod(&measured.pod.id).await?;
    story.finish().await
}
