//! What a server costs, the same for all of them: CPU of everything that it ever
//! started, and memory by kind of process. A server is put into a cgroup before its
//! first instruction; shims, plugins and runtimes that it forks, however often and
//! whoever their parent becomes, are in it, and its containers are in a sibling.
//! The counter of the cgroup around both keeps what the dead have used.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use e2e::{Result, kernel};

/// The cgroup of a server in the hierarchy that counts CPU time.
#[derive(Clone, Debug)]
pub struct Group {
    /// "/RUN/SERVER".
    name: String,
    folder: PathBuf,
}

/// What the processes of a server are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Agent,
    /// The container's own process.
    Workload,
    /// Shims, monitors, pause processes.
    Overhead,
}

impl Group {
    /// Makes `/RUN/SERVER/agent` and `/RUN/SERVER/pods`.
    pub fn make(run: &str, server: &str) -> Result<Group> {
        let name = format!("{run}/{server}");
        let roots = kernel::hierarchies()?;
        let v1 = roots.iter().find(|root| root.join("cpuacct.usage").exists());
        // Beside v1 nothing is handed down in v2: crun refuses such a mixture.
        let root = match v1 {
            Some(root) => root,
            None => {
                let v2 = roots.iter().find(|root| root.join("cgroup.controllers").exists());
                let root = v2.context("no cgroup hierarchy counts CPU time")?;
                delegate(root, &name)?;
                root
            }
        };
        let folder = root.join(name.trim_start_matches('/'));
        for part in ["agent", "pods"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("make cgroup {}", part.display()))?;
        }
        Ok(Group { name, folder })
    }

    /// The file to which the server writes its PID before it becomes the server.
    pub fn procs(&self) -> PathBuf {
        self.folder.join("agent/cgroup.procs")
    }

    /// The parent that every pod asks for.
    pub fn pods(&self) -> String {
        format!("{}/pods", self.name)
    }

    /// CPU time of the server, its helpers and its containers since the beginning.
    pub fn cpu(&self) -> Result<Duration> {
        cpu_of(&self.folder)
    }

    /// Without what ran in the cgroups of containers.
    pub fn own_cpu(&self) -> Result<Duration> {
        cpu_of(&self.folder.join("agent"))
    }

    /// Waits until nothing is used any more, so that work which is done after an
    /// answer counts as well; at most two seconds.
    pub async fn settle(&self) -> Result {
        let mut last = self.cpu()?;
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = self.cpu()?;
            if now.saturating_sub(last) < Duration::from_micros(250) {
                break;
            }
            last = now;
        }
        Ok(())
    }

    /// All processes, those of containers too.
    pub fn pids(&self) -> Vec<u32> {
        let mut found = Vec::new();
        processes(&self.folder, &mut found);
        found
    }

    /// Shims and monitors that hide among the containers would not be in
    /// [`Group::own_cpu`].
    pub fn ensure_apart(&self, workloads: &[&str]) -> Result {
        let mut found = Vec::new();
        processes(&self.folder.join("pods"), &mut found);
        for pid in found {
            let name = words(pid);
            ensure!(
                name.is_empty() || workloads.iter().any(|words| name.contains(words)),
                "{name:?} runs in the cgroup of a pod, where its CPU time is taken for a container's"
            );
        }
        Ok(())
    }

    /// PSS in bytes by kind of process. `agent` is the PID of the server itself,
    /// `workload` is in the arguments of the containers' own processes.
    pub fn memory(&self, agent: u32, workload: &str) -> Result<BTreeMap<Kind, u64>> {
        let mut sums = BTreeMap::new();
        for pid in self.pids() {
            let kind = if pid == agent {
                Kind::Agent
            } else if words(pid).contains(workload) {
                Kind::Workload
            } else {
                Kind::Overhead
            };
            *sums.entry(kind).or_default() += field(pid, "smaps_rollup", "Pss:")?;
        }
        Ok(sums)
    }
}

/// On cgroup v2 a child has the controllers that its parent hands down.
fn delegate(root: &Path, name: &str) -> Result {
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    let mut folder = root.to_path_buf();
    let asked: String = controllers
        .split_whitespace()
        .map(|controller| format!("+{controller} "))
        .collect();
    for part in name.trim_start_matches('/').split('/') {
        if !asked.is_empty() {
            fs::write(folder.join("cgroup.subtree_control"), &asked)
                .with_context(|| format!("hand down {asked}in {}", folder.display()))?;
        }
        folder.push(part);
        fs::create_dir_all(&folder)?;
    }
    Ok(())
}

fn cpu_of(folder: &Path) -> Result<Duration> {
    if let Ok(text) = fs::read_to_string(folder.join("cpuacct.usage")) {
        return Ok(Duration::from_nanos(text.trim().parse()?));
    }
    let path = folder.join("cpu.stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let micros = kernel::number_of(&text, "usage_usec").context("no usage_usec in cpu.stat")?;
    Ok(Duration::from_micros(micros))
}

fn processes(folder: &Path, found: &mut Vec<u32>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes(&entry.path(), found);
        }
    }
}

fn words(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// A number in kB from a file of /proc, as bytes; 0 when the process is gone.
fn field(pid: u32, file: &str, key: &str) -> Result<u64> {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/{file}")) else {
        return Ok(0);
    };
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next());
    let kilobytes: u64 = number
        .with_context(|| format!("no {key} of process {pid}"))?
        .parse()?;
    Ok(kilobytes * 1024)
}

/// The most that a process had resident since [`forget_peak`], bytes.
pub fn peak(pid: u32) -> Result<u64> {
    field(pid, "status", "VmHWM:")
}

pub fn forget_peak(pid: u32) -> Result {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("write {path}"))
}
