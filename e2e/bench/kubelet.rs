//! What is asked of every server, as a kubelet asks it: the same requests with the
//! default seccomp profile, a log file and a cgroup parent.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Client, Pod, Result, client, cri};
use tokio::task::JoinSet;

use crate::content::Images;

/// Arguments of the process in every pod; nothing else on a node has them.
pub const WORKLOAD: &str = "sleep 86399";

/// Whose network a pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Own,
    Host,
}

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Kubelet {
    pub client: Client,
    images: Images,
    /// Cgroup parent of its pods.
    parent: String,
}

/// A pod with one container that runs.
#[derive(Clone, Debug)]
pub struct Running {
    pub pod: Pod,
    pub container: String,
}

impl Kubelet {
    pub fn new(client: Client, images: &Images, parent: String) -> Kubelet {
        Kubelet {
            client,
            images: images.clone(),
            parent,
        }
    }

    /// Pulls what pods need.
    pub async fn prepare(&self) -> Result {
        for image in [&self.images.pause, &self.images.workload] {
            self.client.pull(image).await?;
        }
        Ok(())
    }

    /// RunPodSandbox, CreateContainer and StartContainer.
    pub async fn start(&self, network: Network) -> Result<Running> {
        self.run(network, WORKLOAD).await
    }

    /// With another command, of words without quotes.
    pub async fn run(&self, network: Network, command: &str) -> Result<Running> {
        let command = command.split(' ').map(str::to_owned).collect();
        let (pod, container) = self.create(network, command).await?;
        self.client.start(&container).await?;
        Ok(Running { pod, container })
    }

    /// All but the start.
    pub async fn create(&self, network: Network, command: Vec<String>) -> Result<(Pod, String)> {
        let mut config = self.client.pod_config("bench");
        if network == Network::Host {
            config.hostname.clear();
        }
        if let Some(linux) = &mut config.linux {
            linux.cgroup_parent.clone_from(&self.parent);
        }
        let security = client::pod_security(&mut config);
        security.seccomp = Some(default_profile());
        security.namespace_options = Some(namespaces(network));
        let pod = self.client.run_pod_with(config).await.context("RunPodSandbox")?;
        let mut config = self.client.plain("bench", &self.images.workload);
        config.command = command;
        let security = client::security(&mut config);
        security.seccomp = Some(default_profile());
        security.namespace_options = Some(namespaces(network));
        let container = self
            .client
            .create(&pod, config)
            .await
            .context("CreateContainer")?;
        Ok((pod, container))
    }

    /// What a kubelet does to a pod that is deleted, without grace: StopContainer,
    /// StopPodSandbox, RemoveContainer and RemovePodSandbox.
    pub async fn stop(&self, running: &Running) -> Result {
        self.client.stop(&running.container, 0).await?;
        self.client.stop_pod(&running.pod.id).await?;
        self.client.remove(&running.container).await?;
        self.client.remove_pod(&running.pod.id).await?;
        Ok(())
    }

    /// So many pods, `at_once` at a time.
    pub async fn start_many(&self, count: usize, at_once: usize) -> Result<Vec<Running>> {
        let all = Arc::new(Mutex::new(count));
        let mut workers = JoinSet::new();
        for _ in 0..at_once {
            let (kubelet, all) = (self.clone(), all.clone());
            workers.spawn(async move {
                let mut started = Vec::new();
                while take(&all) {
                    started.push(kubelet.start(Network::Own).await?);
                }
                Ok::<_, anyhow::Error>(started)
            });
        }
        let mut started = Vec::new();
        while let Some(outcome) = workers.join_next().await {
            started.extend(outcome??);
        }
        ensure!(
            started.len() == count,
            "{} of {count} pods started",
            started.len()
        );
        Ok(started)
    }

    pub async fn stop_many(&self, pods: Vec<Running>, at_once: usize) -> Result {
        let all = Arc::new(Mutex::new(VecDeque::from(pods)));
        let mut workers = JoinSet::new();
        for _ in 0..at_once {
            let (kubelet, all) = (self.clone(), all.clone());
            workers.spawn(async move {
                let next = || all.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some(running) = next() {
                    kubelet.stop(&running).await?;
                }
                Ok::<_, anyhow::Error>(())
            });
        }
        while let Some(outcome) = workers.join_next().await {
            outcome??;
        }
        Ok(())
    }

    /// Whether that many sandboxes are ready, and containers running.
    pub async fn all_run(&self, count: usize) -> Result<bool> {
        let containers = self.client.containers(None).await?;
        let running = containers
            .iter()
            .filter(|container| container.state() == cri::ContainerState::ContainerRunning);
        let pods = self.client.pods(None).await?;
        let ready = pods
            .iter()
            .filter(|pod| pod.state() == cri::PodSandboxState::SandboxReady);
        Ok(running.count() == count && ready.count() == count)
    }

    /// Statistics of all containers, as the kubelet asks for them every ten seconds.
    pub async fn stats(&self) -> Result<Vec<cri::ContainerStats>> {
        let request = cri::ListContainerStatsRequest { filter: None };
        let mut runtime = self.client.runtime.clone();
        Ok(runtime.list_container_stats(request).await?.into_inner().stats)
    }
}

fn take(all: &Mutex<usize>) -> bool {
    let mut left = all.lock().unwrap_or_else(PoisonError::into_inner);
    let some = *left > 0;
    *left = left.saturating_sub(1);
    some
}

fn default_profile() -> cri::SecurityProfile {
    cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::RuntimeDefault.into(),
        ..Default::default()
    }
}

fn namespaces(network: Network) -> cri::NamespaceOption {
    let mode = match network {
        Network::Own => cri::NamespaceMode::Pod,
        Network::Host => cri::NamespaceMode::Node,
    };
    cri::NamespaceOption {
        network: mode.into(),
        ..client::namespaces()
    }
}

/// How long something took, milliseconds, and what it gave.
pub async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<(f64, T)> {
    let begun = Instant::now();
    let made = work.await?;
    Ok((millis(begun.elapsed()), made))
}

pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
