//! The model, the RPCs and the kernel, compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use berth::cli::Stream;

use super::{
    Shared,
    model::{Expected, Script},
    worker::Worker,
};
use crate::{Client, Node, Result, client::log_lines, cri, kernel, node::binary};

/// How long the kernel and berthd may take to settle after the last fault.
const SETTLE: Duration = Duration::from_secs(30);

/// Compares until all agree; what does not after a while is a violation.
pub async fn compare(node: &Node, workers: &[Worker], shared: &Shared) -> Result<()> {
    let client = node.client().await?;
    let deadline = Instant::now() + SETTLE;
    let wrong = loop {
        let mut wrong = Vec::new();
        rpcs(&client, workers, shared, &mut wrong).await?;
        objects(&client, node, workers, &mut wrong).await?;
        if wrong.is_empty() {
            audit(node, &mut wrong)?;
        }
        if wrong.is_empty() || Instant::now() > deadline {
            break wrong;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    for text in wrong {
        shared.violation(text);
    }
    for text in logs(workers) {
        shared.violation(text);
    }
    Ok(())
}

/// What is listed is what should be there, in the state it should be in.
async fn rpcs(client: &Client, workers: &[Worker], shared: &Shared, wrong: &mut Vec<String>) -> Result<()> {
    let pods: BTreeMap<String, bool> = client
        .pods(None)
        .await?
        .into_iter()
        .map(|pod| (pod.id.clone(), pod.state() == cri::PodSandboxState::SandboxReady))
        .collect();
    let wanted: BTreeMap<String, bool> = workers
        .iter()
        .flat_map(|worker| &worker.pods)
        .map(|pod| (pod.pod.id.clone(), pod.ready))
        .collect();
    if pods != wanted {
        wrong.push(format!("pods are {pods:?}, and should be {wanted:?}"));
    }
    let listed: BTreeSet<String> = client.containers(None).await?.into_iter().map(|c| c.id).collect();
    let wanted: BTreeSet<String> = workers
        .iter()
        .flat_map(|worker| &worker.pods)
        .flat_map(|pod| &pod.containers)
        .map(|container| container.id.clone())
        .collect();
    if listed != wanted {
        wrong.push(format!("containers are {listed:?}, and should be {wanted:?}"));
    }
    let pods = workers.iter().flat_map(|worker| &worker.pods);
    for (pod, container) in pods.flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
    {
        let status = match client.status(&container.id).await {
            Ok(status) => status,
            Err(error) => {
                wrong.push(format!("status of {}: {error}", container.id));
                continue;
            }
        };
        let codes = container.may_end_with(shared.is_doomed(pod, &container.id));
        let right = match (status.state(), container.state) {
            (cri::ContainerState::ContainerExited, _) => codes.contains(&status.exit_code),
            (cri::ContainerState::ContainerCreated, expected) => expected == Expected::Created,
            // One that ends by itself does so soon: the next look is another.
            (cri::ContainerState::ContainerRunning, Expected::Started) => {
                !matches!(container.script, Script::Ends(_))
            }
            _ => false,
        };
        if !right || (container.must_have_ended() && status.state() != cri::ContainerState::ContainerExited) {
            wrong.push(format!(
                "container {} ({:?}, {:?}, may end with {codes:?}) is {:?} with code {}: {}",
                container.id,
                container.script,
                container.state,
                status.state(),
                status.exit_code,
                status.message
            ));
        }
    }
    Ok(())
}

/// Processes, cgroups, links, mounts and folders are those of what runs, and no more.
async fn objects(client: &Client, node: &Node, workers: &[Worker], wrong: &mut Vec<String>) -> Result<()> {
    let mut compare = |what: &str, found: BTreeSet<String>, wanted: &BTreeSet<String>| {
        let more: Vec<_> = found.difference(wanted).collect();
        let less: Vec<_> = wanted.difference(&found).collect();
        if !more.is_empty() || !less.is_empty() {
            wrong.push(format!("{what}: too many {more:?}, missing {less:?}"));
        }
    };
    let mut alive = BTreeSet::new();
    for container in client.containers(None).await? {
        if container.state() != cri::ContainerState::ContainerExited {
            alive.insert(container.id);
        }
    }
    let pods: Vec<_> = workers.iter().flat_map(|worker| &worker.pods).collect();
    let ready: BTreeSet<String> = pods
        .iter()
        .filter(|pod| pod.ready)
        .map(|pod| pod.pod.id.clone())
        .collect();
    let all_pods: BTreeSet<String> = pods.iter().map(|pod| pod.pod.id.clone()).collect();
    let all: BTreeSet<String> = pods
        .iter()
        .flat_map(|pod| &pod.containers)
        .map(|c| c.id.clone())
        .collect();

    // The init of a pod with one PID namespace has a shim and a cgroup of the pod's name.
    let optional = |set: BTreeSet<String>| set.into_iter().filter(|id| !ready.contains(id)).collect();
    let of_shims = kernel::shims(node.names())?
        .into_iter()
        .map(|(_, id)| id)
        .collect();
    compare("shims", optional(of_shims), &alive);
    compare(
        "cgroups",
        optional(kernel::ids_with_cgroups(node.names())?),
        &alive,
    );
    let with_processes = kernel::programs(node.names())?
        .into_iter()
        .map(|(_, id)| id)
        .collect();
    compare("containers with processes", optional(with_processes), &alive);

    let state = node.state();
    let mounted = kernel_mounts(&state.join("sandboxes"))?;
    compare(
        "pods with mounts",
        mounted.difference(&ready).cloned().collect(),
        &BTreeSet::new(),
    );
    compare("folders of pods", folders(&state.join("sandboxes")), &all_pods);
    compare(
        "state folders of containers",
        optional(folders(&state.join("containers"))),
        &all,
    );
    compare(
        "folders of containers",
        folders(&node.root().join("containers")),
        &all,
    );

    let links = kernel::output("ip", &["-o", "link", "show", "master", &node.names().bridge]);
    let linked = pods.iter().filter(|pod| pod.ready && pod.own_network).count();
    if links.lines().count() != linked {
        wrong.push(format!(
            "{linked} pods are ready with a network of their own, the bridge has {links}"
        ));
    }
    let mut addresses = BTreeSet::new();
    for pod in pods.iter().filter(|pod| pod.ready && pod.own_network) {
        for address in client.addresses(&pod.pod).await.unwrap_or_default() {
            if !addresses.insert(address.clone()) {
                wrong.push(format!("two pods have the address {address}"));
            }
        }
    }
    Ok(())
}

/// `berthd audit` finds nothing that nobody owns.
fn audit(node: &Node, wrong: &mut Vec<String>) -> Result<()> {
    let output = std::process::Command::new(binary("berthd"))
        .args(["--config", &node.path().join("config.toml").to_string_lossy()])
        .args(["--root", &node.root().to_string_lossy()])
        .args(["--state", &node.state().to_string_lossy()])
        .args(["audit", "--json"])
        .output()
        .context("run berthd audit")?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("read the audit: {}", String::from_utf8_lossy(&output.stderr)))?;
    let orphans = report["orphans"].as_array().context("an audit without orphans")?;
    if !orphans.is_empty() {
        wrong.push(format!("the audit finds what nobody owns: {orphans:?}"));
    }
    Ok(())
}

/// Counting programs have counted: no line is lost, twice there or torn.
fn logs(workers: &[Worker]) -> Vec<String> {
    let mut wrong = Vec::new();
    for container in workers
        .iter()
        .flat_map(|w| &w.pods)
        .flat_map(|pod| &pod.containers)
    {
        if container.script != Script::Counts || !container.log.exists() {
            continue;
        }
        match log_lines(&container.log) {
            Ok(lines) => {
                // The shell says on stderr when somebody kills its `sleep`.
                let counted = lines.iter().filter(|line| line.stream == Stream::Stdout);
                let numbers = counted.map(|line| line.content.parse::<usize>().ok());
                if let Some((at, found)) = numbers.enumerate().find(|(at, number)| *number != Some(*at)) {
                    wrong.push(format!("line {at} of the log of {} is {found:?}", container.id));
                }
            }
            Err(error) => wrong.push(format!("log of {}: {error:#}", container.id)),
        }
    }
    wrong
}

/// Names below a folder on which something is mounted.
fn kernel_mounts(folder: &Path) -> Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points
        .filter_map(|point| Path::new(point).strip_prefix(folder).ok())
        .filter_map(|path| path.iter().next())
        .map(|name| name.to_string_lossy().into_owned())
        .collect())
}

fn folders(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
