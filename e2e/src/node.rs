//! A real berthd in folders of its own.

use std::{
    env, fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    Client, Result,
    kernel::{self, Names, Snapshot},
    machine,
};

/// Runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Node {
    folder: TempDir,
    names: Names,
    before: Snapshot,
    files: Option<std::collections::BTreeSet<String>>,
    process: Option<Child>,
    peer: Option<String>,
    environment: Vec<(String, String)>,
    finished: bool,
}

static NUMBER: AtomicUsize = AtomicUsize::new(0);

impl Node {
    pub async fn start() -> Result<Node> {
        Node::start_with("").await
    }

    /// `config` is TOML behind what every node of a story has; a table that is
    /// there already (`network`, `cgroup`, `registry`) is merged.
    pub async fn start_with(config: &str) -> Result<Node> {
        let mut node = Node::prepare(config)?;
        node.launch().await?;
        Ok(node)
    }

    /// Folders and configuration, nothing running.
    pub fn prepare(config: &str) -> Result<Node> {
        // Short, for a socket's path has 107 bytes at most.
        let folder = tempfile::Builder::new()
            .prefix("be")
            .rand_bytes(6)
            .tempdir_in("/tmp")?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Of one width, so that none is the beginning of another's, and found in no id.
        let mark = format!("{:06x}_{number:02x}", std::process::id());
        let names = Names {
            folder: folder.path().into(),
            bridge: format!("be_{mark}"),
            cgroup: machine::cgroup_parent(&[&format!("berth_e2e_{mark}")]).1,
            more: Vec::new(),
        };
        let path = folder.path();
        for name in ["cni", "certs.d", "logs", "seccomp", "config.d"] {
            fs::create_dir(path.join(name))?;
        }
        let shown = path.display();
        let base = format!(
            "[log]\nlevel = \"debug\"\n[network]\ncni_conf_dir = \"{shown}/cni\"\nbridge = \"{}\"\n[cgroup]\nparent = \"{}\"\n[registry]\nconfig_path = \"{shown}/certs.d\"\nstall_timeout = 3\n[runtime]\nseccomp_profile_root = \"{shown}/seccomp\"\n",
            names.bridge, names.cgroup
        );
        fs::write(path.join("config.toml"), base)?;
        fs::write(path.join("config.d/story.toml"), config)?;
        // Stories of the built-in launcher, told of an OCI runtime.
        if let Some(name) = handler() {
            let text = format!("[runtime]\ndefault = \"{name}\"\n[runtimes.{name}]\ntype = \"oci\"\n");
            fs::write(path.join("config.d/00-handler.toml"), text)?;
        }
        // What the machine needs, such as `network.masquerade = false` where there
        // is no nf_tables.
        if let Ok(machine) = env::var("E2E_CONFIG") {
            fs::write(path.join("config.d/zz-machine.toml"), machine)?;
        }
        let before = Snapshot::take(&names)?;
        Ok(Node {
            folder,
            names,
            before,
            files: None,
            process: None,
            peer: env::var("E2E_PEER").ok(),
            environment: Vec::new(),
            finished: false,
        })
    }

    /// A variable in the environment of the berthd that is launched next.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    /// The next berthd is launched without it.
    pub fn clear_variable(&mut self, name: &str) {
        self.environment.retain(|(other, _)| other != name);
    }

    /// How berthd ended, when it did so by itself; [`Node::kill`] forgets it.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.process.as_mut().map(Child::try_wait).transpose()?.flatten())
    }

    /// The last lines of what berthd wrote.
    pub fn log_end(&self) -> String {
        tail(&self.log(), 60)
    }

    /// Starts berthd, for the first time or again, and waits until it answers.
    pub async fn launch(&mut self) -> Result<()> {
        if self.peer.is_some() {
            return Ok(());
        }
        let path = self.folder.path();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path.join("log"))?;
        let child = Command::new(binary("berthd"))
            .arg("--config")
            .arg(path.join("config.toml"))
            .arg("--root")
            .arg(self.root())
            .arg("--state")
            .arg(self.state())
            .arg("--address")
            .arg(self.address())
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}; `make build` makes it", binary("berthd").display()))?;
        self.process = Some(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.answers().await {
            if let Some(status) = self.process.as_mut().and_then(|p| p.try_wait().transpose()) {
                bail!("berthd ended at its start: {}\n{}", status?, self.log());
            }
            ensure!(
                Instant::now() < deadline,
                "berthd does not answer:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if self.files.is_none() {
            self.files = Some(self.listing());
        }
        Ok(())
    }

    async fn answers(&self) -> bool {
        let Ok(client) = self.client().await else {
            return false;
        };
        let request = crate::cri::VersionRequest::default();
        client.runtime.clone().version(request).await.is_ok()
    }

    pub async fn client(&self) -> Result<Client> {
        let owner = self
            .folder
            .path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        Client::connect(&self.address(), &owner, &self.path().join("logs")).await
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn root(&self) -> PathBuf {
        self.path().join("root")
    }

    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub fn address(&self) -> String {
        let own = || format!("unix://{}/state/berth.sock", self.path().display());
        self.peer.clone().unwrap_or_else(own)
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// A word by which things are ours, besides folder, bridge and cgroup.
    pub fn also_ours(&mut self, word: &str) -> Result<()> {
        self.names.more.push(word.into());
        self.before = Snapshot::take(&self.names)?;
        Ok(())
    }

    /// Whether another server stands in for berthd.
    pub fn is_peer(&self) -> bool {
        self.peer.is_some()
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// What berthd wrote so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    /// SIGKILL, in the middle of whatever it does.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// What a reboot takes: every process, mount, link, rule and cgroup of the node, and
    /// the state folder. The root is as it was.
    pub fn reboot(&mut self) -> Result<()> {
        self.kill()?;
        self.sweep_kernel();
        fs::remove_dir_all(self.state())?;
        Ok(())
    }

    /// Takes all that the node has in the kernel away, by force; mounts of the root stay.
    fn sweep_kernel(&self) {
        for _ in 0..50 {
            let pids = kernel::pids(&self.names).unwrap_or_default();
            if pids.is_empty() {
                break;
            }
            for pid in pids
                .iter()
                .filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?))
            {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let mut points: Vec<_> = points
            .filter(|point| Path::new(point).starts_with(self.path()) && Path::new(point) != self.root())
            .collect();
        points.sort_unstable_by_key(|point| std::cmp::Reverse(point.len()));
        for point in points {
            kernel::output("umount", &["-l", point]);
        }
        kernel::output("ip", &["link", "delete", &self.names.bridge]);
        remove_tables(&self.names.bridge);
        stop_slice(&self.names.cgroup);
        for root in kernel::hierarchies().unwrap_or_default() {
            remove_cgroups(&root.join(self.names.cgroup.trim_start_matches('/')));
        }
    }

    /// SIGTERM; the end must come, and be a success.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM)?;
        }
        // More than berthd gives to calls under way.
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            if let Some(status) = process.try_wait()? {
                return self.judge(status);
            }
            if Instant::now() > deadline {
                process.kill()?;
                process.wait()?;
                bail!("berthd does not end at SIGTERM:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn judge(&self, status: ExitStatus) -> Result<()> {
        let signal = status.signal();
        ensure!(
            status.success(),
            "berthd ended with {status} ({signal:?}):\n{}",
            self.log()
        );
        Ok(())
    }

    /// Stops berthd and asserts that the kernel and the disk are as before.
    pub async fn finish(mut self) -> Result<()> {
        if self.is_peer() {
            self.finished = true;
            return Ok(());
        }
        self.stop().await?;
        // The kernel lets go of some things a moment after the last process died.
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let left = self.left()?;
            if left.is_empty() {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "left behind:\n  {}\nlog of berthd:\n{}",
                left.join("\n  "),
                tail(&self.log(), 60)
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.finished = true;
        Ok(())
    }

    /// What is there now and was not at the start: kernel objects and files.
    pub fn left(&self) -> Result<Vec<String>> {
        let mut left = Snapshot::take(&self.names)?.since(&self.before);
        let files = self.files.clone().unwrap_or_default();
        let new = self.listing();
        left.extend(new.difference(&files).map(|name| format!("file {name}")));
        Ok(left)
    }

    fn listing(&self) -> std::collections::BTreeSet<String> {
        let mut all = kernel::files(&self.root());
        all.extend(kernel::files(&self.state()));
        // crun keeps compiled seccomp profiles for later containers.
        all.retain(|name| !name.contains("/.cache"));
        // The socket goes with berthd.
        all.retain(|name| !name.starts_with("berth.sock"));
        all
    }
}

impl Drop for Node {
    /// After a failure: says what berthd said, and cleans up by force.
    fn drop(&mut self) {
        if self.finished || self.is_peer() {
            return;
        }
        let _ = self.kill();
        eprintln!(
            "log of berthd in {}:\n{}",
            self.path().display(),
            tail(&self.log(), 80)
        );
        self.sweep_kernel();
    }
}

/// Slices are systemd's to remove.
pub fn stop_slice(path: &str) {
    if let Some(slice) = path.strip_suffix(".slice") {
        let name = slice.rsplit('/').next().unwrap_or_default();
        kernel::output("systemctl", &["stop", &format!("{name}.slice")]);
    }
}

/// Removes a cgroup without processes and those below it.
pub fn remove_cgroups(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

/// Deletes the tables that name this bridge.
fn remove_tables(bridge: &str) {
    let rules = kernel::output("nft", &["list", "ruleset"]);
    for table in rules.split("\n}").filter(|table| table.contains(bridge)) {
        let head = table
            .lines()
            .find(|line| line.starts_with("table"))
            .unwrap_or_default();
        let words: Vec<_> = head.split(' ').collect();
        if let [_, family, name, ..] = words[..] {
            kernel::output("nft", &["delete", "table", family, name]);
        }
    }
}

/// The last lines of a text.
fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The OCI runtime that E2E_HANDLER makes the default handler; None: the built-in launcher.
pub fn handler() -> Option<String> {
    env::var("E2E_HANDLER").ok().filter(|name| !name.is_empty())
}

/// A built program: in the folder BERTH_BIN, else where `make build` puts it,
/// else where cargo does.
pub fn binary(name: &str) -> PathBuf {
    if let Some(folder) = env::var_os("BERTH_BIN") {
        return PathBuf::from(folder).join(name);
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let made = target.join("berth").join(name);
    if made.exists() {
        made
    } else {
        target.join("debug").join(name)
    }
}
