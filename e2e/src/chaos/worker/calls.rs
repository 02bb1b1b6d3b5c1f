//! The calls of a client, each checked against the client's own model.

use tonic::{Code, Status};

use super::Worker;
use crate::{
    Client,
    chaos::model::{Expected, ModelContainer, ModelPod, Script},
    client::{namespaces, pod_security, security},
    cri,
};

const PODS: usize = 4;
const CONTAINERS: usize = 3;

impl Worker {
    pub(super) async fn run_pod(&mut self) {
        if self.pods.len() >= PODS {
            return match self.rng.u32(..3) {
                0 => self.remove_pod().await,
                _ => self.create().await,
            };
        }
        self.made += 1;
        let mut config = self.client.pod_config(&format!("p{}-{}", self.number, self.made));
        let own_network = self.rng.u32(..4) != 0;
        let shared_pid = self.rng.u32(..5) == 0;
        let mut options = namespaces();
        if !own_network {
            options.network = cri::NamespaceMode::Node.into();
        }
        if shared_pid {
            options.pid = cri::NamespaceMode::Pod.into();
        }
        pod_security(&mut config).namespace_options = Some(options);
        let (answer, _) = self
            .persist("RunPodSandbox", async |client: Client| {
                client.run_pod_with(config.clone()).await
            })
            .await;
        match answer {
            Ok(pod) => {
                if self.rng.u32(..8) == 0 {
                    let (again, _) = self
                        .persist("RunPodSandbox", async |client: Client| {
                            client.run_pod_with(config.clone()).await
                        })
                        .await;
                    match again {
                        Ok(again) if again.id == pod.id => {}
                        other => self.wrong_answer("RunPodSandbox again", &pod.id, other.map(|pod| pod.id)),
                    }
                }
                self.pods.push(ModelPod {
                    pod,
                    ready: true,
                    own_network,
                    shared_pid,
                    containers: Vec::new(),
                });
            }
            Err(status) => self.wrong_answer("RunPodSandbox", "", status),
        }
    }

    pub(super) async fn create(&mut self) {
        let Some(at) = self.pick_pod() else { return };
        if self.pods[at].containers.len() >= CONTAINERS {
            return self.start().await;
        }
        self.made += 1;
        let script = match self.rng.u32(..6) {
            0..3 => Script::Counts,
            3 => Script::Ends(self.rng.i32(0..5)),
            _ => Script::Stubborn,
        };
        let pod = self.pods[at].pod.clone();
        let mut config = self.client.script(
            &format!("c{}-{}", self.number, self.made),
            &self.base,
            &script.text(),
        );
        if self.pods[at].shared_pid {
            let mut options = namespaces();
            options.pid = cri::NamespaceMode::Pod.into();
            security(&mut config).namespace_options = Some(options);
        }
        if !self.pods[at].own_network {
            let options = security(&mut config).namespace_options.get_or_insert_default();
            options.network = cri::NamespaceMode::Node.into();
        }
        let (answer, _) = self
            .persist("CreateContainer", async |client: Client| {
                client.create(&pod, config.clone()).await
            })
            .await;
        match answer {
            Ok(id) if self.pods[at].ready => {
                let log = std::path::Path::new(&pod.config.log_directory).join(&config.log_path);
                self.pods[at].containers.push(ModelContainer {
                    id,
                    log,
                    script,
                    state: Expected::Created,
                });
            }
            Ok(id) => self.wrong_answer("CreateContainer in a stopped pod", &pod.id, id),
            // The init that holds the PID namespace was killed a moment ago, or the new one.
            Err(status)
                if self
                    .shared
                    .is_doomed(&self.pods[at], id_in(status.message()).unwrap_or_default()) => {}
            Err(status) if self.pods[at].ready => self.wrong_answer("CreateContainer", &pod.id, status),
            Err(_) => {}
        }
    }

    pub(super) async fn start(&mut self) {
        let Some((at, nr)) = self.pick(Some(Expected::Created)) else {
            return;
        };
        let (pod_ready, container) = (self.pods[at].ready, self.pods[at].containers[nr].clone());
        let id = container.id.clone();
        let (answer, first) = self
            .persist("StartContainer", async |client: Client| client.start(&id).await)
            .await;
        let excused = !pod_ready
            || self.shared.is_doomed(&self.pods[at], &id)
            || self.shared.was_stopped(&id)
            // It was started by a try whose answer was lost, and has ended since.
            || (!first && matches!(container.script, Script::Ends(_)));
        match answer {
            Ok(()) => self.pods[at].containers[nr].state = Expected::Started,
            Err(_) if excused => self.learn(at, nr).await,
            Err(status) => self.wrong_answer("StartContainer", &id, status),
        }
    }

    /// After an error that is excused: what the container is now.
    async fn learn(&mut self, at: usize, nr: usize) {
        let id = self.pods[at].containers[nr].id.clone();
        let answer = self.status(&id).await;
        match answer {
            Ok(status) => {
                let state = &mut self.pods[at].containers[nr].state;
                *state = match status.state() {
                    cri::ContainerState::ContainerCreated => Expected::Created,
                    cri::ContainerState::ContainerRunning => Expected::Started,
                    _ if *state == Expected::Stopped => Expected::Stopped,
                    _ => Expected::Started,
                };
                if status.state() == cri::ContainerState::ContainerExited {
                    self.shared.doom(&id);
                }
            }
            Err(status) => self.wrong_answer("ContainerStatus", &id, status),
        }
    }

    pub(super) async fn exec(&mut self) {
        let Some((at, nr)) = self.pick(Some(Expected::Started)) else {
            return self.start().await;
        };
        let id = self.pods[at].containers[nr].id.clone();
        let mark = self.rng.u64(..).to_string();
        let (answer, _) = self
            .persist("ExecSync", async |client: Client| {
                client.exec(&id, &["echo", &mark]).await
            })
            .await;
        let excused = self.may_have_ended(at, nr);
        match answer {
            Ok(output) if output.code == 0 && output.stdout.trim() == mark => {}
            _ if excused => {}
            other => self.wrong_answer("ExecSync", &id, other),
        }
    }

    pub(super) async fn exec_too_long(&mut self) {
        let Some((at, nr)) = self.pick(Some(Expected::Started)) else {
            return;
        };
        let id = self.pods[at].containers[nr].id.clone();
        let (answer, _) = self
            .persist("ExecSync too long", async |client: Client| {
                client
                    .exec_within(&id, &["sh", "-c", "setsid sleep 1000 & sleep 1000"], 1)
                    .await
            })
            .await;
        let excused = self.may_have_ended(at, nr);
        match answer {
            Err(status) if status.code() == Code::DeadlineExceeded => {}
            _ if excused => {}
            other => self.wrong_answer("ExecSync too long", &id, other),
        }
    }

    pub(super) async fn stop(&mut self) {
        let Some((at, nr)) = self.pick(None) else { return };
        let id = self.pods[at].containers[nr].id.clone();
        let grace = self.rng.i64(0..2);
        let (answer, _) = self
            .persist("StopContainer", async |client: Client| {
                client.stop(&id, grace).await
            })
            .await;
        self.pods[at].containers[nr].state = Expected::Stopped;
        if let Err(status) = answer {
            return self.wrong_answer("StopContainer", &id, status);
        }
        let answer = self.status(&id).await;
        match answer {
            Ok(status) if status.state() == cri::ContainerState::ContainerExited => {}
            other => self.wrong_answer(
                "ContainerStatus after a stop",
                &id,
                other.map(|status| status.state()),
            ),
        }
    }

    pub(super) async fn remove(&mut self) {
        let Some((at, nr)) = self.pick(None) else { return };
        let id = self.pods[at].containers[nr].id.clone();
        for _ in 0..self.rng.usize(1..3) {
            let (answer, _) = self
                .persist("RemoveContainer", async |client: Client| client.remove(&id).await)
                .await;
            if let Err(status) = answer {
                return self.wrong_answer("RemoveContainer", &id, status);
            }
        }
        self.pods[at].containers.remove(nr);
        let answer = self.status(&id).await;
        if answer.as_ref().err().map(Status::code) != Some(Code::NotFound) {
            self.wrong_answer("ContainerStatus of a removed one", &id, answer);
        }
    }

    pub(super) async fn stop_pod(&mut self) {
        let Some(at) = self.pick_pod() else { return };
        let id = self.pods[at].pod.id.clone();
        let (answer, _) = self
            .persist("StopPodSandbox", async |client: Client| {
                client.stop_pod(&id).await
            })
            .await;
        if let Err(status) = answer {
            return self.wrong_answer("StopPodSandbox", &id, status);
        }
        let pod = &mut self.pods[at];
        pod.ready = false;
        for container in &mut pod.containers {
            container.state = Expected::Stopped;
        }
    }

    pub(super) async fn remove_pod(&mut self) {
        let Some(at) = self.pick_pod() else { return };
        let id = self.pods[at].pod.id.clone();
        for _ in 0..self.rng.usize(1..3) {
            let (answer, _) = self
                .persist("RemovePodSandbox", async |client: Client| {
                    client.remove_pod(&id).await
                })
                .await;
            if let Err(status) = answer {
                return self.wrong_answer("RemovePodSandbox", &id, status);
            }
        }
        self.pods.remove(at);
    }

    pub(super) async fn image(&mut self) {
        let own = self.own.clone();
        let remove = self.own_pulled && self.rng.bool();
        let (answer, _) = match remove {
            true => {
                self.persist("RemoveImage", async |client: Client| {
                    client.remove_image(&own).await
                })
                .await
            }
            false => {
                self.persist("PullImage", async |client: Client| {
                    client.pull(&own).await.map(drop)
                })
                .await
            }
        };
        if let Err(status) = answer {
            return self.wrong_answer("an image", &own, status);
        }
        self.own_pulled = !remove;
        let (answer, _) = self
            .persist("ImageStatus", async |client: Client| client.image(&own).await)
            .await;
        match answer {
            Ok(image) if image.is_some() == self.own_pulled => {}
            other => self.wrong_answer("ImageStatus", &own, other.map(|image| image.is_some())),
        }
    }

    /// Lists: what is ours is there, and nothing that we have removed.
    pub(super) async fn look(&mut self) {
        let (answer, _) = self
            .persist("ListContainers", async |client: Client| {
                client.containers(None).await
            })
            .await;
        let Ok(listed) = answer else {
            return self.wrong_answer("ListContainers", "", answer.map(|list| list.len()));
        };
        for container in self.pods.iter().flat_map(|pod| &pod.containers) {
            if !listed.iter().any(|found| found.id == container.id) {
                self.wrong_answer("ListContainers", &container.id, "is not listed");
            }
        }
        let request = cri::ListContainerStatsRequest { filter: None };
        let (answer, _) = self
            .persist("ListContainerStats", async |client: Client| {
                client
                    .runtime
                    .clone()
                    .list_container_stats(request.clone())
                    .await
                    .map(drop)
            })
            .await;
        if let Err(status) = answer {
            self.wrong_answer("ListContainerStats", "", status);
        }
    }

    /// Changes a running container: its limits, its log.
    pub(super) async fn change(&mut self) {
        let Some((at, nr)) = self.pick(Some(Expected::Started)) else {
            return;
        };
        let id = self.pods[at].containers[nr].id.clone();
        let (call, answer) = if self.rng.bool() {
            let request = cri::UpdateContainerResourcesRequest {
                container_id: id.clone(),
                linux: Some(cri::LinuxContainerResources {
                    cpu_shares: self.rng.i64(100..1000),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let act = async |client: Client| {
                client
                    .runtime
                    .clone()
                    .update_container_resources(request.clone())
                    .await
                    .map(drop)
            };
            let call = "UpdateContainerResources";
            (call, self.persist(call, act).await.0)
        } else {
            let request = cri::ReopenContainerLogRequest {
                container_id: id.clone(),
            };
            let act = async |client: Client| {
                client
                    .runtime
                    .clone()
                    .reopen_container_log(request.clone())
                    .await
                    .map(drop)
            };
            let call = "ReopenContainerLog";
            (call, self.persist(call, act).await.0)
        };
        let excused = self.may_have_ended(at, nr);
        if let Err(status) = answer
            && !excused
        {
            self.wrong_answer(call, &id, status);
        }
    }

    /// Calls that must be refused, and with which code.
    pub(super) async fn wrong(&mut self) {
        let nobody = format!("{:064x}", self.rng.u128(..));
        let kind = self.rng.u32(..5);
        let base = self.base.clone();
        let wanted = match kind {
            0..3 => Code::NotFound,
            _ => Code::InvalidArgument,
        };
        let mut config = self.client.pod_config("wrong");
        let pod = crate::Pod {
            id: nobody.clone(),
            config: config.clone(),
        };
        config.metadata = None;
        let call = async |client: Client| match kind {
            0 => client.start(&nobody).await,
            1 => client.exec(&nobody, &["true"]).await.map(drop),
            2 => {
                let container = client.plain("wrong", &base);
                client.create(&pod, container).await.map(drop)
            }
            3 => client.run_pod_with(config.clone()).await.map(drop),
            _ => client.pull("no such//name:").await.map(drop),
        };
        let (answer, _) = self.persist("a wrong call", call).await;
        match answer {
            Err(status) if status.code() == wanted => {}
            other => self.wrong_answer("a wrong call", &format!("of kind {kind}"), other),
        }
    }
}

/// The container that an error is about.
fn id_in(message: &str) -> Option<&str> {
    message.strip_prefix("container ")?.get(..64)
}
