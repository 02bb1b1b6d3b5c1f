//! One CRI server in folders of its own, that can be killed and started again.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use e2e::{Client, Result, cri};

use crate::{accounting::Group, content::Images, kubelet::Kubelet, rows::Row};

/// What its network is, for the rows that it is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Its own network.
    None,
    /// The common CNI chain; the second server of its column.
    Added,
    /// The common CNI chain, and it knows no other.
    Always,
}

/// How a server is started.
#[derive(Debug)]
pub struct Plan {
    pub name: &'static str,
    /// The column of its figures.
    pub column: String,
    pub chain: Chain,
    pub folder: PathBuf,
    pub socket: PathBuf,
    /// Program and arguments.
    pub command: Vec<PathBuf>,
    /// Programs whose versions are told.
    pub programs: Vec<PathBuf>,
    /// PATH of the server.
    pub path: String,
}

#[derive(Debug)]
pub struct Server {
    pub column: String,
    pub group: Group,
    plan: Plan,
    images: Images,
    process: Option<Child>,
    kubelet: Option<Kubelet>,
}

/// The shell is in the cgroup first, and becomes the server then.
const BEGIN: &str = "echo $$ > \"$0\" && exec \"$@\"";

impl Server {
    pub fn new(plan: Plan, group: Group, images: &Images) -> Server {
        Server {
            column: plan.column.clone(),
            group,
            plan,
            images: images.clone(),
            process: None,
            kubelet: None,
        }
    }

    pub fn name(&self) -> &str {
        self.plan.name
    }

    /// Differs from another server of its column by its network only.
    pub fn is_variant(&self) -> bool {
        self.plan.chain == Chain::Added
    }

    /// Not Berth.
    pub fn is_peer(&self) -> bool {
        self.plan.chain == Chain::Always
    }

    /// The rows that a figure belongs to: of the server's own choice of network, and
    /// of the chain that all have in common.
    pub fn rows(&self, own: Row, chain: Row) -> Vec<Row> {
        match self.plan.chain {
            Chain::None => vec![own],
            Chain::Added => vec![chain],
            Chain::Always => vec![own, chain],
        }
    }

    /// Starts it, for the first time or again, and waits until it answers.
    pub async fn launch(&mut self) -> Result {
        self.spawn()?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.answers().await {
            self.ensure_alive()?;
            ensure!(Instant::now() < deadline, "{} does not answer", self.name());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Starts it and waits for nothing.
    pub fn spawn(&mut self) -> Result {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.plan.folder.join("log"))?;
        let child = Command::new("sh")
            .args(["-c", BEGIN])
            .arg(self.group.procs())
            .args(&self.plan.command)
            .env("PATH", &self.plan.path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.name()))?;
        self.process = Some(child);
        Ok(())
    }

    pub fn ensure_alive(&mut self) -> Result {
        if let Some(status) = self
            .process
            .as_mut()
            .and_then(|child| child.try_wait().transpose())
        {
            let status = status?;
            self.process = None;
            bail!("{} ended by itself: {status}", self.name());
        }
        Ok(())
    }

    /// Connects anew and asks for its version.
    pub async fn answers(&mut self) -> bool {
        self.connect().await.is_ok() && self.version().await.is_ok()
    }

    pub async fn connect(&mut self) -> Result {
        let address = format!("unix://{}", self.plan.socket.display());
        let logs = self.plan.folder.join("logs");
        let client = Client::connect(&address, self.name(), &logs).await?;
        self.kubelet = Some(Kubelet::new(client, &self.images, self.group.pods()));
        Ok(())
    }

    pub async fn version(&mut self) -> Result<cri::VersionResponse> {
        let request = cri::VersionRequest::default();
        let mut runtime = self.kubelet()?.client.runtime;
        Ok(runtime.version(request).await?.into_inner())
    }

    pub fn kubelet(&self) -> Result<Kubelet> {
        let kubelet = self.kubelet.clone();
        kubelet.with_context(|| format!("{} was not started", self.name()))
    }

    pub fn pid(&self) -> Result<u32> {
        let process = self.process.as_ref();
        Ok(process
            .with_context(|| format!("{} does not run", self.name()))?
            .id())
    }

    /// SIGKILL; its containers run on.
    pub fn kill(&mut self) -> Result {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Its program and the runtimes that it starts.
    pub fn programs(&self) -> &[PathBuf] {
        &self.plan.programs
    }

    /// Removes the pods, so that nothing of them stays behind outside of the
    /// namespaces of the run, and ends it. What fails is said, and left to the end
    /// of those namespaces.
    pub async fn finish(&mut self) {
        if let Ok(kubelet) = self.kubelet()
            && self.process.is_some()
            && let Err(error) = kubelet.client.remove_everything().await
        {
            eprintln!("bench: remove the pods of {}: {error:#}", self.name());
        }
        if let Err(error) = self.kill() {
            eprintln!("bench: end {}: {error:#}", self.name());
        }
    }
}
