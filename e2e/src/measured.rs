//! A pod that has done something and rests, and what the kernel's own files say of it.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use crate::{Client, Pod, Result, Story, client::resources, cri, kernel, machine};

/// Nanoseconds since the epoch, by the clock that berthd has too.
pub fn now() -> i64 {
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
    i64::try_from(now.as_nanos()).expect("before 2262")
}

/// The number, which must be told.
pub fn value(number: &Option<cri::UInt64Value>) -> u64 {
    number.as_ref().expect("a value").value
}

/// A pod with a cgroup of its own, as below a kubelet, whose one container has done
/// some work and rests.
#[derive(Debug)]
pub struct Measured {
    pub pod: Pod,
    /// The container's.
    pub id: String,
    /// The container's first process.
    pub pid: u32,
    /// The pod's cgroup.
    pub cgroup: String,
    /// Before it was made.
    pub begun: i64,
}

/// Its memory limit, bytes.
pub const LIMIT: u64 = 64 << 20;
/// The swap space that it may use, bytes.
pub const SWAP: u64 = 32 << 20;

impl Measured {
    /// `mark` tells the pod's cgroup from those of other stories.
    pub async fn begin(story: &mut Story, mark: &str) -> Result<Measured> {
        let begun = now();
        let mut config = story.client.pod_config("measured");
        let uid = config.metadata.clone().context("metadata")?.uid;
        let parent = format!("e2e-{mark}-{:x}", std::process::id());
        story.node.also_ours(&machine::cgroup_parent(&[&parent]).1)?;
        let (asked, cgroup) = machine::cgroup_parent(&[&parent, &format!("pod{uid}")]);
        config.linux.get_or_insert_default().cgroup_parent = asked;
        config.labels.insert("kind".into(), "pod".into());
        config.annotations.insert("note".into(), "a\nb".into());
        let client = &story.client;
        let pod = client.run_pod_with(config).await?;
        // More than its quota, so that it waits too, and two processes that stay.
        let script = "i=0; while [ $i -lt 250000 ]; do i=$((i+1)); done; \
            x=$(head -c 3000000 /dev/zero | tr '\\0' x); head -c 100000 /dev/zero > /file; \
            sleep 1000 & echo ready; exec sleep 1001";
        let mut config = story.script("c", script);
        config.labels.insert("kind".into(), "container".into());
        config.annotations.insert("note".into(), "c\td".into());
        let limits = resources(&mut config);
        (limits.cpu_period, limits.cpu_quota) = (100_000, 50_000);
        limits.memory_limit_in_bytes = i64::try_from(LIMIT)?;
        limits.memory_swap_limit_in_bytes = i64::try_from(LIMIT + SWAP)?;
        let id = match client.run(&pod, config.clone()).await {
            Err(error) if error.code() == tonic::Code::FailedPrecondition => {
                eprintln!("without swap, which this kernel does not count: {error}");
                resources(&mut config).memory_swap_limit_in_bytes = 0;
                client.run(&pod, config).await?
            }
            made => made?,
        };
        let path = client.status(&id).await?.log_path;
        let deadline = Instant::now() + Duration::from_secs(120);
        while !fs::read_to_string(&path).is_ok_and(|text| text.contains("ready")) {
            ensure!(Instant::now() < deadline, "container {id} does not get ready");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let request = cri::ContainerStatusRequest {
            container_id: id.clone(),
            verbose: true,
        };
        let told = client.runtime.clone().container_status(request).await?;
        let info: serde_json::Value = serde_json::from_str(&told.into_inner().info["info"])?;
        let pid = u32::try_from(info["pid"].as_u64().context("pid")?)?;
        Ok(Measured {
            pod,
            id,
            pid,
            cgroup,
            begun,
        })
    }

    /// A file of the container's cgroup, under its v1 or its v2 name.
    pub fn file(&self, names: &[&str]) -> Result<Option<String>> {
        kernel::cgroup_file(self.pid, names)
    }

    /// The same of the pod's cgroup.
    pub fn pods_file(&self, names: &[&str]) -> Result<String> {
        for root in kernel::hierarchies()? {
            let folder = root.join(self.cgroup.trim_start_matches('/'));
            for name in names {
                if let Ok(text) = fs::read_to_string(folder.join(name)) {
                    return Ok(text);
                }
            }
        }
        anyhow::bail!("none of {names:?} in {}", self.cgroup)
    }

    /// CPU time of the container, nanoseconds.
    pub fn cpu(&self) -> Result<u64> {
        if let Some(text) = self.file(&["cpuacct.usage"])? {
            return keyed(&text, &[""]);
        }
        let text = self.file(&["cpu.stat"])?.context("cpu.stat")?;
        Ok(keyed(&text, &["usage_usec"])? * 1000)
    }

    /// CPU time of the pod, nanoseconds.
    pub fn pods_cpu(&self) -> Result<u64> {
        if let Ok(text) = self.pods_file(&["cpuacct.usage"]) {
            return keyed(&text, &[""]);
        }
        Ok(keyed(&self.pods_file(&["cpu.stat"])?, &["usage_usec"])? * 1000)
    }

    /// What ContainerStats tells of the container.
    pub async fn stats(&self, client: &Client) -> Result<cri::ContainerStats> {
        let request = cri::ContainerStatsRequest {
            container_id: self.id.clone(),
        };
        let answer = client.runtime.clone().container_stats(request).await?;
        answer.into_inner().stats.context("stats")
    }

    /// What PodSandboxStats tells of the pod.
    pub async fn pod_stats(&self, client: &Client) -> Result<cri::PodSandboxStats> {
        let request = cri::PodSandboxStatsRequest {
            pod_sandbox_id: self.pod.id.clone(),
        };
        let answer = client.runtime.clone().pod_sandbox_stats(request).await?;
        answer.into_inner().stats.context("stats")
    }
}

/// What is told is what the kernel has, once that stands still around the call.
pub async fn same<T: PartialEq + Debug>(
    what: &str,
    kernel: impl Fn() -> Result<T>,
    told: impl AsyncFn() -> Result<T>,
) -> Result {
    let mut last = String::new();
    for _ in 0..100 {
        let before = kernel()?;
        let told = told().await?;
        let after = kernel()?;
        if before == told && told == after {
            return Ok(());
        }
        last = format!("{before:?}, told {told:?}, {after:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("{what}: the kernel has {last}")
}

/// The first number of these keys, as v1 and v2 call it.
pub fn keyed(text: &str, keys: &[&str]) -> Result<u64> {
    let found = keys.iter().find_map(|key| kernel::number_of(text, key));
    found.with_context(|| format!("{keys:?} in {text}"))
}

/// The file with the memory in use.
pub const USAGE: [&str; 2] = ["memory.usage_in_bytes", "memory.current"];

/// Received and sent bytes and errors of each link but loopback.
pub type Links = BTreeMap<String, [u64; 4]>;

/// Those of a process's network namespace.
pub fn links(pid: u32) -> Result<Links> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    let mut links = Links::new();
    for line in table.lines().skip(2) {
        let (name, rest) = line.split_once(':').context("a link")?;
        let numbers: Vec<u64> = rest
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        if name.trim() != "lo" {
            let values = [0, 2, 8, 10].map(|at| numbers[at]);
            links.insert(name.trim().into(), values);
        }
    }
    Ok(links)
}
