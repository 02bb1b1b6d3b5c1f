//! Requests for streams, and what several stories do with them.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tonic::Status;

use crate::{Client, Pod, Result, Story, cri, kernel};

/// A command with input and both outputs, without a terminal.
pub fn exec_of(id: &str, command: &[&str]) -> cri::ExecRequest {
    cri::ExecRequest {
        container_id: id.into(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    }
}

/// Everything that the container has.
pub fn attach_of(id: &str, tty: bool) -> cri::AttachRequest {
    cri::AttachRequest {
        container_id: id.into(),
        stdin: true,
        stdout: true,
        stderr: !tty,
        tty,
    }
}

impl Client {
    /// The URL for one exec.
    pub async fn exec_url(&self, request: cri::ExecRequest) -> Result<String, Status> {
        Ok(self.runtime.clone().exec(request).await?.into_inner().url)
    }

    /// The URL for one attach.
    pub async fn attach_url(&self, request: cri::AttachRequest) -> Result<String, Status> {
        Ok(self.runtime.clone().attach(request).await?.into_inner().url)
    }

    /// The URL for one client of a pod's ports.
    pub async fn forward_url(&self, pod: &Pod, ports: &[u16]) -> Result<String, Status> {
        let request = cri::PortForwardRequest {
            pod_sandbox_id: pod.id.clone(),
            port: ports.iter().map(|port| i32::from(*port)).collect(),
        };
        Ok(self.runtime.clone().port_forward(request).await?.into_inner().url)
    }
}

/// Waits until something is so.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) -> Result {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        ensure!(Instant::now() < end, "waited 30 s for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A pod whose port 7 sends back what it gets, to each connection on its own.
pub async fn echo_pod(story: &Story, name: &str) -> Result<(Pod, String)> {
    let pod = story.client.run_pod(name).await?;
    let script = "exec nc -ll -p 7 -e cat";
    let id = story.client.run(&pod, story.script("echo", script)).await?;
    let listens = "grep -q ':0007 .* 0A ' /proc/net/tcp /proc/net/tcp6";
    let end = Instant::now() + Duration::from_secs(30);
    while story.client.exec(&id, &["sh", "-c", listens]).await?.code != 0 {
        ensure!(Instant::now() < end, "nobody listens on port 7 of the pod");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok((pod, id))
}

/// What sessions may leave behind: open descriptors of berthd and of a container's
/// shim, processes and cgroups of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint {
    pub of_berthd: usize,
    pub of_shim: usize,
    pub processes: usize,
    pub cgroups: usize,
}

impl Footprint {
    /// Of a node with berthd, and of one container of it.
    pub fn take(story: &Story, container: &str) -> Result<Footprint> {
        let berthd = story.node.pid().context("berthd does not run")?;
        let shim = shim_of(container)?;
        let mut processes = 0;
        let mut cgroups = 0;
        for root in kernel::hierarchies()? {
            let mut folders = vec![root];
            while let Some(folder) = folders.pop() {
                if folder.to_string_lossy().contains(container) {
                    cgroups += 1;
                    let pids = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                    processes += pids.lines().count();
                }
                let inside = fs::read_dir(&folder).into_iter().flatten().flatten();
                folders.extend(
                    inside
                        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                        .map(|entry| entry.path()),
                );
            }
        }
        Ok(Footprint {
            of_berthd: descriptors(berthd),
            of_shim: descriptors(shim),
            processes,
            cgroups,
        })
    }

    /// Waits until everything that was not there before is gone.
    pub async fn is_back(&self, story: &Story, container: &str) -> Result {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let now = Footprint::take(story, container)?;
            let left = now.of_berthd > self.of_berthd
                || now.of_shim > self.of_shim
                || now.processes > self.processes
                || now.cgroups > self.cgroups;
            if !left {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "left behind: {self:?} before, {now:?} now\nof berthd: {:?}\nof the shim: {:?}",
                story.node.pid().map(opened),
                shim_of(container).map(opened),
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The process of the shim that owns a container.
pub fn shim_of(container: &str) -> Result<u32> {
    let found = kernel::output("pgrep", &["-f", &format!("^berth-shim.*{container}")]);
    found
        .trim()
        .parse()
        .with_context(|| format!("shims of {container}: {found:?}"))
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> usize {
    opened(pid).len()
}

/// What a process's descriptors are.
fn opened(pid: u32) -> Vec<String> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd"));
    let links = folder.into_iter().flatten().flatten().map(|entry| {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        format!("{} {}", entry.file_name().display(), target.display())
    });
    links.collect()
}
