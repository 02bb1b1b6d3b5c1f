//! The CRI as a story speaks it: a tonic client and the few requests that are
//! made again and again.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use berth::cli::{LogLine, Stream};
use tonic::Status;

use crate::{
    Result,
    cri::{
        self, ContainerState, image_service_client::ImageServiceClient,
        runtime_service_client::RuntimeServiceClient,
    },
};

type Channel = tonic::transport::Channel;

/// Both services, and the names that tell one story's objects from another's.
#[derive(Clone, Debug)]
pub struct Client {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    /// Value of the label [`OWNER`] on all that is made here.
    owner: String,
    logs: PathBuf,
}

/// The label by which a story knows its own pods.
pub const OWNER: &str = "e2e.owner";

/// A sandbox with the request that made it.
#[derive(Clone, Debug)]
pub struct Pod {
    pub id: String,
    pub config: cri::PodSandboxConfig,
}

/// What ExecSync gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

static NUMBER: AtomicUsize = AtomicUsize::new(0);

impl Client {
    /// `logs` is the folder for the logs of all pods.
    pub async fn connect(address: &str, owner: &str, logs: &Path) -> Result<Client> {
        let client = berth::cli::Client::connect(address).await?;
        Ok(Client {
            runtime: client.runtime,
            images: client.images,
            owner: owner.into(),
            logs: logs.into(),
        })
    }

    /// Pulls without credentials and returns the image's id.
    pub async fn pull(&self, reference: &str) -> Result<String, Status> {
        self.pull_as(reference, None).await
    }

    pub async fn pull_as(&self, reference: &str, auth: Option<cri::AuthConfig>) -> Result<String, Status> {
        let request = cri::PullImageRequest {
            image: Some(spec(reference)),
            auth,
            sandbox_config: None,
        };
        let answer = self.images.clone().pull_image(request).await?;
        Ok(answer.into_inner().image_ref)
    }

    pub async fn image(&self, reference: &str) -> Result<Option<cri::Image>, Status> {
        let request = cri::ImageStatusRequest {
            image: Some(spec(reference)),
            verbose: false,
        };
        Ok(self
            .images
            .clone()
            .image_status(request)
            .await?
            .into_inner()
            .image)
    }

    pub async fn image_list(&self) -> Result<Vec<cri::Image>, Status> {
        let request = cri::ListImagesRequest { filter: None };
        Ok(self
            .images
            .clone()
            .list_images(request)
            .await?
            .into_inner()
            .images)
    }

    pub async fn remove_image(&self, reference: &str) -> Result<(), Status> {
        let request = cri::RemoveImageRequest {
            image: Some(spec(reference)),
        };
        self.images.clone().remove_image(request).await?;
        Ok(())
    }

    /// The request for a pod of its own network, with a name that no other has.
    pub fn pod_config(&self, name: &str) -> cri::PodSandboxConfig {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let uid = format!("{}-{number}", self.owner);
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                uid: uid.clone(),
                namespace: "e2e".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self.logs.join(uid).to_string_lossy().into_owned(),
            labels: HashMap::from([(OWNER.into(), self.owner.clone())]),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn run_pod(&self, name: &str) -> Result<Pod, Status> {
        self.run_pod_with(self.pod_config(name)).await
    }

    pub async fn run_pod_with(&self, config: cri::PodSandboxConfig) -> Result<Pod, Status> {
        self.run_pod_by("", config).await
    }

    /// With a runtime handler; empty: the default one.
    pub async fn run_pod_by(&self, handler: &str, config: cri::PodSandboxConfig) -> Result<Pod, Status> {
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.into(),
        };
        if !config.log_directory.is_empty() {
            fs::create_dir_all(&config.log_directory)?;
        }
        let mut runtime = self.runtime.clone();
        let answer = Box::pin(runtime.run_pod_sandbox(request)).await?;
        let id = answer.into_inner().pod_sandbox_id;
        Ok(Pod { id, config })
    }

    pub async fn create(&self, pod: &Pod, config: cri::ContainerConfig) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let mut runtime = self.runtime.clone();
        let answer = Box::pin(runtime.create_container(request)).await?;
        Ok(answer.into_inner().container_id)
    }

    pub async fn start(&self, id: &str) -> Result<(), Status> {
        let request = cri::StartContainerRequest {
            container_id: id.into(),
        };
        self.runtime.clone().start_container(request).await?;
        Ok(())
    }

    /// Creates and starts.
    pub async fn run(&self, pod: &Pod, config: cri::ContainerConfig) -> Result<String, Status> {
        let id = self.create(pod, config).await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// Creates, and starts what must fail: the container, and the error. None: it could
    /// not even be created, as OCI runtimes look for the program then.
    pub async fn run_broken(
        &self,
        pod: &Pod,
        config: cri::ContainerConfig,
    ) -> Result<(Option<String>, Status)> {
        match self.create(pod, config).await {
            Ok(id) => match self.start(&id).await {
                Ok(()) => bail!("container {id} was started"),
                Err(error) => Ok((Some(id), error)),
            },
            Err(error) if crate::handler().is_some() => {
                eprintln!("refused by its runtime when it is created: {error}");
                Ok((None, error))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Runs a shell script to its end and gives its output and code.
    pub async fn run_to_end(&self, pod: &Pod, config: cri::ContainerConfig) -> Result<Output> {
        let id = self.run(pod, config).await?;
        let status = self.wait_exit(&id).await?;
        let lines = log_lines(&status.log_path)?;
        let text = |wanted: Stream| -> String {
            let of = lines.iter().filter(|line| line.stream == wanted);
            of.map(|line| line.content.clone() + if line.partial { "" } else { "\n" })
                .collect()
        };
        Ok(Output {
            stdout: text(Stream::Stdout),
            stderr: text(Stream::Stderr),
            code: status.exit_code,
        })
    }

    pub async fn exec(&self, id: &str, command: &[&str]) -> Result<Output, Status> {
        self.exec_within(id, command, 0).await
    }

    /// `seconds` is the time-out; 0: none.
    pub async fn exec_within(&self, id: &str, command: &[&str], seconds: i64) -> Result<Output, Status> {
        let request = cri::ExecSyncRequest {
            container_id: id.into(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: seconds,
        };
        let answer = self.runtime.clone().exec_sync(request).await?.into_inner();
        Ok(Output {
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            code: answer.exit_code,
        })
    }

    /// What a script in the container prints; it must succeed.
    pub async fn sh(&self, id: &str, script: &str) -> Result<String> {
        let output = self.exec(id, &["sh", "-c", script]).await?;
        ensure!(output.code == 0, "{script}: {output:?}");
        Ok(output.stdout.trim_end().to_owned())
    }

    pub async fn status(&self, id: &str) -> Result<cri::ContainerStatus, Status> {
        let request = cri::ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        let answer = self.runtime.clone().container_status(request).await?.into_inner();
        answer
            .status
            .ok_or_else(|| Status::internal("no status in the answer"))
    }

    pub async fn wait_exit(&self, id: &str) -> Result<cri::ContainerStatus> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let status = self.status(id).await?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("container {id} has not exited: {status:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn stop(&self, id: &str, grace: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest {
            container_id: id.into(),
            timeout: grace,
        };
        self.runtime.clone().stop_container(request).await?;
        Ok(())
    }

    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest {
            container_id: id.into(),
        };
        self.runtime.clone().remove_container(request).await?;
        Ok(())
    }

    pub async fn pod_status(&self, id: &str) -> Result<cri::PodSandboxStatus, Status> {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: false,
        };
        let answer = self
            .runtime
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner();
        answer
            .status
            .ok_or_else(|| Status::internal("no status in the answer"))
    }

    /// The pod's address, the other one of a dual stack behind it.
    pub async fn addresses(&self, pod: &Pod) -> Result<Vec<String>> {
        let network = self
            .pod_status(&pod.id)
            .await?
            .network
            .context("no network status")?;
        let more = network.additional_ips.into_iter().map(|ip| ip.ip);
        Ok([network.ip].into_iter().chain(more).collect())
    }

    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.runtime.clone().stop_pod_sandbox(request).await?;
        Ok(())
    }

    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.runtime.clone().remove_pod_sandbox(request).await?;
        Ok(())
    }

    pub async fn pods(&self, filter: Option<cri::PodSandboxFilter>) -> Result<Vec<cri::PodSandbox>, Status> {
        let request = cri::ListPodSandboxRequest { filter };
        let items = self
            .runtime
            .clone()
            .list_pod_sandbox(request)
            .await?
            .into_inner()
            .items;
        Ok(items.into_iter().filter(|pod| self.owns(&pod.labels)).collect())
    }

    pub async fn containers(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Result<Vec<cri::Container>, Status> {
        let request = cri::ListContainersRequest { filter };
        let all = self
            .runtime
            .clone()
            .list_containers(request)
            .await?
            .into_inner()
            .containers;
        Ok(all.into_iter().filter(|c| self.owns(&c.labels)).collect())
    }

    fn owns(&self, labels: &HashMap<String, String>) -> bool {
        labels.get(OWNER) == Some(&self.owner)
    }

    /// A container that runs `sh -c SCRIPT`.
    pub fn script(&self, name: &str, image: &str, script: &str) -> cri::ContainerConfig {
        cri::ContainerConfig {
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ..self.plain(name, image)
        }
    }

    /// A container that runs what the image says.
    pub fn plain(&self, name: &str, image: &str) -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            image: Some(spec(image)),
            log_path: format!("{name}.log"),
            labels: HashMap::from([(OWNER.into(), self.owner.clone())]),
            linux: Some(cri::LinuxContainerConfig {
                resources: None,
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    /// Removes every pod of this story, and its images when `images` are given.
    pub async fn remove_everything(&self) -> Result<()> {
        for pod in self.pods(None).await? {
            self.stop_pod(&pod.id).await?;
            self.remove_pod(&pod.id).await?;
        }
        Ok(())
    }
}

/// Its own network and PID namespace.
pub fn namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption {
        pid: cri::NamespaceMode::Container.into(),
        ..Default::default()
    }
}

pub fn spec(reference: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: reference.into(),
        ..Default::default()
    }
}

/// The security context of a container's request, to be changed.
pub fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

/// The security context of a pod's request, to be changed.
pub fn pod_security(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxSandboxSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

/// The limits of a container's request, to be changed.
pub fn resources(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerResources {
    config
        .linux
        .get_or_insert_default()
        .resources
        .get_or_insert_default()
}

/// A log entry, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub time: String,
    pub stream: Stream,
    pub partial: bool,
    pub content: String,
}

/// Every entry of a log file; a line that is none is an error.
pub fn log_lines(path: impl AsRef<Path>) -> Result<Vec<Logged>> {
    let path = path.as_ref();
    let bytes = fs::read(path).with_context(|| format!("read log {}", path.display()))?;
    let mut lines = Vec::new();
    for raw in bytes.split_inclusive(|byte| *byte == b'\n') {
        let whole = raw.ends_with(b"\n");
        let line = LogLine::parse(raw).filter(|_| whole);
        let line = line.with_context(|| format!("not an entry: {:?}", String::from_utf8_lossy(raw)))?;
        lines.push(Logged {
            time: line.time.into(),
            stream: line.stream,
            partial: line.partial,
            content: String::from_utf8_lossy(line.content).into_owned(),
        });
    }
    Ok(lines)
}
