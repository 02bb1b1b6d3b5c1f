//! The outer half: network, mounts and processes of a run are in namespaces of
//! their own, which the kernel takes down with everything in them however the run
//! ends. Cgroups have no such namespace, so they are removed here, like the folder.

use std::{
    env, fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Result, kernel, node};

/// Where libcni keeps what it knows, whoever uses it.
const CNI: &str = "/var/lib/cni";

/// Process 1 of the namespace: the shell, which reaps what shims leave to it. What
/// servers write to folders that cannot be chosen, as containerd does with the sockets
/// of shims, goes with the mounts. crun runs beside cgroup v1 only where v2 has no
/// controller: where it has one, nobody sees v2. $0: the folder of the run.
const INIT: &str = "mount -t tmpfs bench /run && mkdir \"$0/cni\" && mount --bind \"$0/cni\" /var/lib/cni && \
    if grep -q . /sys/fs/cgroup/unified/cgroup.controllers 2>/dev/null; then \
    umount /sys/fs/cgroup/unified; fi && ip link set lo up && \"$@\"; exit $?";

/// Runs this program again, inside, with the same arguments.
pub fn run(folder: &Path) -> Result {
    ensure!(
        rustix::process::geteuid().is_root(),
        "only root can measure: it makes namespaces"
    );
    let folder = tempfile::Builder::new()
        .prefix("bench")
        .rand_bytes(5)
        .tempdir_in(folder)
        .with_context(|| format!("make a folder in {}", folder.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let made = fs::create_dir(CNI).is_ok();
    let outcome = runtime.block_on(enclosed(folder.path()));
    remove_cgroups(&group(folder.path()))?;
    if made {
        fs::remove_dir(CNI)?;
    }
    outcome
}

/// A process of the namespace that was killed may be in its cgroup for a moment more.
fn remove_cgroups(name: &str) -> Result {
    let deadline = Instant::now() + Duration::from_secs(20);
    for root in kernel::hierarchies()? {
        let cgroup = root.join(name.trim_start_matches('/'));
        while cgroup.exists() {
            ensure!(Instant::now() < deadline, "{} is in use", cgroup.display());
            node::remove_cgroups(&cgroup);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

async fn enclosed(folder: &Path) -> Result {
    let program = env::current_exe()?;
    let mut command = Command::new("unshare");
    command
        .args([
            "--net",
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
        ])
        .args(["--mount-proc", "--", "sh", "-c", INIT])
        .arg(folder)
        .arg(&program)
        .args(env::args_os().skip(1))
        .arg("--inside")
        .arg(folder);
    let mut child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .context("start unshare (package util-linux)")?;
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let status = tokio::select! {
        status = child.wait() => status?,
        _ = tokio::signal::ctrl_c() => stopped(&mut child).await?,
        _ = end.recv() => stopped(&mut child).await?,
    };
    ensure!(status.success(), "the run failed: {}", said(folder));
    Ok(())
}

async fn stopped(child: &mut tokio::process::Child) -> Result<std::process::ExitStatus> {
    child.start_kill()?;
    Ok(child.wait().await?)
}

/// The cgroup of a run, by its folder.
pub fn group(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    format!("/{name}")
}

/// The last words of each server, for they go with the folder.
fn said(folder: &Path) -> String {
    let mut words = String::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Ok(text) = fs::read_to_string(entry.path().join("log")) {
            let lines: Vec<_> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(8)..].join("\n  ");
            words.push_str(&format!("\n{}:\n  {last}", entry.file_name().to_string_lossy()));
        }
    }
    words
}
