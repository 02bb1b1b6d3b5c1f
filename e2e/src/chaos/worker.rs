//! One client: makes random calls, and checks each answer against its own model.

use std::{
    error::Error as _,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::{Code, Status};

use super::{
    Shared,
    model::{Expected, ModelContainer, ModelPod, Script},
};
use crate::{
    Client,
    client::{namespaces, pod_security, security},
    cri,
};

/// Nothing may take longer than this, whatever is killed meanwhile; what is asked for
/// with a grace period has that besides.
const HUNG: Duration = Duration::from_secs(60);

/// How long a call is made again while berthd comes and goes.
const GIVE_UP: Duration = Duration::from_secs(180);

const PODS: usize = 4;
const CONTAINERS: usize = 3;

/// An answer, and whether it came to the first try.
type Answer<T> = (Result<T, Status>, bool);

#[derive(Debug)]
pub(super) struct Worker {
    number: usize,
    rng: fastrand::Rng,
    client: Client,
    base: String,
    own: String,
    own_pulled: bool,
    shared: Arc<Shared>,
    pub pods: Vec<ModelPod>,
    made: usize,
}

impl Worker {
    pub fn new(
        number: usize,
        seed: u64,
        client: Client,
        base: &str,
        own: &str,
        shared: Arc<Shared>,
    ) -> Worker {
        Worker {
            number,
            rng: fastrand::Rng::with_seed(seed),
            client,
            base: base.into(),
            own: own.into(),
            own_pulled: false,
            shared,
            pods: Vec::new(),
            made: 0,
        }
    }

    pub fn number(&self) -> usize {
        self.number
    }

    pub async fn round(&mut self, calls: usize) {
        for _ in 0..calls {
            if self.shared.summary(|summary| !summary.violations.is_empty()) {
                return;
            }
            self.one().await;
        }
    }

    async fn one(&mut self) {
        match self.rng.u32(..100) {
            0..12 => self.run_pod().await,
            12..30 => self.create().await,
            30..50 => self.start().await,
            50..60 => self.exec().await,
            60..63 => self.exec_too_long().await,
            63..69 => self.stop().await,
            69..74 => self.remove().await,
            74..78 => self.stop_pod().await,
            78..83 => self.remove_pod().await,
            83..87 => self.image().await,
            87..91 => self.look().await,
            91..94 => self.change().await,
            _ => self.wrong().await,
        }
    }

    fn wrong_answer(&self, call: &str, object: &str, what: impl std::fmt::Debug) {
        self.shared
            .violation(format!("client {}: {call} {object}: {what:?}", self.number));
    }

    /// Makes a call until it is answered: berthd may die under it, and now and then the
    /// client goes away itself.
    async fn persist<T, F>(&mut self, call: &'static str, mut act: impl FnMut(Client) -> F) -> Answer<T>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.shared
            .summary(|summary| *summary.calls.entry(call).or_default() += 1);
        let begin = Instant::now();
        let mut again = false;
        loop {
            let brief = !again && self.rng.u32(..10) == 0;
            let patience = match brief {
                true => Duration::from_micros(self.rng.u64(100..30_000)),
                false => HUNG,
            };
            match tokio::time::timeout(patience, act(self.client.clone())).await {
                Ok(Err(status)) if is_broken(&status) => {
                    tokio::time::sleep(Duration::from_millis(self.rng.u64(1..40))).await;
                }
                Ok(answer) => return (answer, !again),
                Err(_) if brief => {}
                Err(_) => {
                    let text = format!("no answer within {HUNG:?}");
                    self.wrong_answer(call, "", &text);
                    return (Err(Status::aborted(text)), !again);
                }
            }
            again = true;
            self.shared.summary(|summary| summary.retries += 1);
            if begin.elapsed() > GIVE_UP {
                let text = format!("not answered by any berthd within {GIVE_UP:?}");
                self.wrong_answer(call, "", &text);
                return (Err(Status::aborted(text)), false);
            }
        }
    }

    async fn run_pod(&mut self) {
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
            .persist("RunPodSandbox", |client| {
                let config = config.clone();
                async move { client.run_pod_with(config).await }
            })
            .await;
        match answer {
            Ok(pod) => {
                if self.rng.u32(..8) == 0 {
                    let (again, _) = self
                        .persist("RunPodSandbox", |client| {
                            let config = config.clone();
                            async move { client.run_pod_with(config).await }
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

    fn pick_pod(&mut self) -> Option<usize> {
        (!self.pods.is_empty()).then(|| self.rng.usize(..self.pods.len()))
    }

    /// Any container, or one in the state that is wanted.
    fn pick(&mut self, wanted: Option<Expected>) -> Option<(usize, usize)> {
        let mut found = Vec::new();
        for (at, pod) in self.pods.iter().enumerate() {
            for (nr, container) in pod.containers.iter().enumerate() {
                if wanted.is_none_or(|wanted| container.state == wanted) {
                    found.push((at, nr));
                }
            }
        }
        (!found.is_empty()).then(|| found[self.rng.usize(..found.len())])
    }

    async fn create(&mut self) {
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
            .persist("CreateContainer", |client| {
                let (pod, config) = (pod.clone(), config.clone());
                async move { client.create(&pod, config).await }
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

    async fn start(&mut self) {
        let Some((at, nr)) = self.pick(Some(Expected::Created)) else {
            return;
        };
        let (pod_ready, container) = (self.pods[at].ready, self.pods[at].containers[nr].clone());
        let id = container.id.clone();
        let (answer, first) = self
            .persist("StartContainer", |client| {
                let id = id.clone();
                async move { client.start(&id).await }
            })
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
        let (answer, _) = self
            .persist("ContainerStatus", |client| {
                let id = id.clone();
                async move { client.status(&id).await }
            })
            .await;
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

    async fn exec(&mut self) {
        let Some((at, nr)) = self.pick(Some(Expected::Started)) else {
            return self.start().await;
        };
        let container = self.pods[at].containers[nr].clone();
        let id = container.id.clone();
        let mark = self.rng.u64(..).to_string();
        let (answer, _) = self
            .persist("ExecSync", |client| {
                let (id, mark) = (id.clone(), mark.clone());
                async move { client.exec(&id, &["echo", &mark]).await }
            })
            .await;
        let excused = matches!(container.script, Script::Ends(_))
            || self.shared.is_doomed(&self.pods[at], &id)
            || self.shared.was_stopped(&id);
        match answer {
            Ok(output) if output.code == 0 && output.stdout.trim() == mark => {}
            _ if excused => {}
            other => self.wrong_answer("ExecSync", &id, other),
        }
    }

    async fn exec_too_long(&mut self) {
        let Some((at, nr)) = self.pick(Some(Expected::Started)) else {
            return;
        };
        let container = self.pods[at].containers[nr].clone();
        let id = container.id.clone();
        let (answer, _) = self
            .persist("ExecSync too long", |client| {
                let id = id.clone();
                let command = ["sh", "-c", "setsid sleep 1000 & sleep 1000"];
                async move { client.exec_within(&id, &command, 1).await }
            })
            .await;
        let excused = matches!(container.script, Script::Ends(_))
            || self.shared.is_doomed(&self.pods[at], &id)
            || self.shared.was_stopped(&id);
        match answer {
            Err(status) if status.code() == Code::DeadlineExceeded => {}
            _ if excused => {}
            other => self.wrong_answer("ExecSync too long", &id, other),
        }
    }

    async fn stop(&mut self) {
        let Some((at, nr)) = self.pick(None) else { return };
        let id = self.pods[at].containers[nr].id.clone();
        let grace = self.rng.i64(0..2);
        let (answer, _) = self
            .persist("StopContainer", |client| {
                let id = id.clone();
                async move { client.stop(&id, grace).await }
            })
            .await;
        self.pods[at].containers[nr].state = Expected::Stopped;
        if let Err(status) = answer {
            return self.wrong_answer("StopContainer", &id, status);
        }
        let (answer, _) = self
            .persist("ContainerStatus", |client| {
                let id = id.clone();
                async move { client.status(&id).await }
            })
            .await;
        match answer {
            Ok(status) if status.state() == cri::ContainerState::ContainerExited => {}
            other => self.wrong_answer(
                "ContainerStatus after a stop",
                &id,
                other.map(|status| status.state()),
            ),
        }
    }

    async fn remove(&mut self) {
        let Some((at, nr)) = self.pick(None) else { return };
        let id = self.pods[at].containers[nr].id.clone();
        for _ in 0..self.rng.usize(1..3) {
            let (answer, _) = self
                .persist("RemoveContainer", |client| {
                    let id = id.clone();
                    async move { client.remove(&id).await }
                })
                .await;
            if let Err(status) = answer {
                return self.wrong_answer("RemoveContainer", &id, status);
            }
        }
        self.pods[at].containers.remove(nr);
        let (answer, _) = self
            .persist("ContainerStatus", |client| {
                let id = id.clone();
                async move { client.status(&id).await }
            })
            .await;
        if answer.as_ref().err().map(Status::code) != Some(Code::NotFound) {
            self.wrong_answer("ContainerStatus of a removed one", &id, answer);
        }
    }

    async fn stop_pod(&mut self) {
        let Some(at) = self.pick_pod() else { return };
        let id = self.pods[at].pod.id.clone();
        let (answer, _) = self
            .persist("StopPodSandbox", |client| {
                let id = id.clone();
                async move { client.stop_pod(&id).await }
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

    async fn remove_pod(&mut self) {
        let Some(at) = self.pick_pod() else { return };
        let id = self.pods[at].pod.id.clone();
        for _ in 0..self.rng.usize(1..3) {
            let (answer, _) = self
                .persist("RemovePodSandbox", |client| {
                    let id = id.clone();
                    async move { client.remove_pod(&id).await }
                })
                .await;
            if let Err(status) = answer {
                return self.wrong_answer("RemovePodSandbox", &id, status);
            }
        }
        self.pods.remove(at);
    }

    async fn image(&mut self) {
        let own = self.own.clone();
        let remove = self.own_pulled && self.rng.bool();
        let (answer, _) = match remove {
            true => {
                self.persist("RemoveImage", |client| {
                    let own = own.clone();
                    async move { client.remove_image(&own).await }
                })
                .await
            }
            false => {
                self.persist("PullImage", |client| {
                    let own = own.clone();
                    async move { client.pull(&own).await.map(drop) }
                })
                .await
            }
        };
        if let Err(status) = answer {
            return self.wrong_answer("an image", &own, status);
        }
        self.own_pulled = !remove;
        let (answer, _) = self
            .persist("ImageStatus", |client| {
                let own = own.clone();
                async move { client.image(&own).await }
            })
            .await;
        match answer {
            Ok(image) if image.is_some() == self.own_pulled => {}
            other => self.wrong_answer("ImageStatus", &own, other.map(|image| image.is_some())),
        }
    }

    /// Lists: what is ours is there, and nothing that we have removed.
    async fn look(&mut self) {
        let (answer, _) = self
            .persist(
                "ListContainers",
                |client| async move { client.containers(None).await },
            )
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
            .persist("ListContainerStats", |client| {
                let request = request.clone();
                async move {
                    client
                        .runtime
                        .clone()
                        .list_container_stats(request)
                        .await
                        .map(drop)
                }
            })
            .await;
        if let Err(status) = answer {
            self.wrong_answer("ListContainerStats", "", status);
        }
    }

    /// Changes a running container: its limits, its log.
    async fn change(&mut self) {
        let Some((at, nr)) = self.pick(Some(Expected::Started)) else {
            return;
        };
        let container = self.pods[at].containers[nr].clone();
        let id = container.id.clone();
        let (call, answer) = if self.rng.bool() {
            let request = cri::UpdateContainerResourcesRequest {
                container_id: id.clone(),
                linux: Some(cri::LinuxContainerResources {
                    cpu_shares: self.rng.i64(100..1000),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let act = |client: Client| {
                let request = request.clone();
                async move {
                    client
                        .runtime
                        .clone()
                        .update_container_resources(request)
                        .await
                        .map(drop)
                }
            };
            (
                "UpdateContainerResources",
                self.persist("UpdateContainerResources", act).await.0,
            )
        } else {
            let request = cri::ReopenContainerLogRequest {
                container_id: id.clone(),
            };
            let act = |client: Client| {
                let request = request.clone();
                async move {
                    client
                        .runtime
                        .clone()
                        .reopen_container_log(request)
                        .await
                        .map(drop)
                }
            };
            (
                "ReopenContainerLog",
                self.persist("ReopenContainerLog", act).await.0,
            )
        };
        let excused = matches!(container.script, Script::Ends(_))
            || self.shared.is_doomed(&self.pods[at], &id)
            || self.shared.was_stopped(&id);
        if let Err(status) = answer
            && !excused
        {
            self.wrong_answer(call, &id, status);
        }
    }

    /// Calls that must be refused, and with which code.
    async fn wrong(&mut self) {
        let nobody = format!("{:064x}", self.rng.u128(..));
        let kind = self.rng.u32(..5);
        let (base, mut config) = (self.base.clone(), self.client.pod_config("wrong"));
        let (answer, wanted) = match kind {
            0 => {
                let act = |client: Client| {
                    let id = nobody.clone();
                    async move { client.start(&id).await }
                };
                (self.persist("a wrong call", act).await.0, Code::NotFound)
            }
            1 => {
                let act = |client: Client| {
                    let id = nobody.clone();
                    async move { client.exec(&id, &["true"]).await.map(drop) }
                };
                (self.persist("a wrong call", act).await.0, Code::NotFound)
            }
            2 => {
                config.metadata = None;
                let act = |client: Client| {
                    let config = config.clone();
                    async move { client.run_pod_with(config).await.map(drop) }
                };
                (self.persist("a wrong call", act).await.0, Code::InvalidArgument)
            }
            3 => {
                let act = |client: Client| async move { client.pull("no such//name:").await.map(drop) };
                (self.persist("a wrong call", act).await.0, Code::InvalidArgument)
            }
            _ => {
                let pod = crate::Pod {
                    id: nobody.clone(),
                    config: config.clone(),
                };
                let act = |client: Client| {
                    let pod = pod.clone();
                    let config = client.plain("wrong", &base);
                    async move { client.create(&pod, config).await.map(drop) }
                };
                (self.persist("a wrong call", act).await.0, Code::NotFound)
            }
        };
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

/// The connection broke, or berthd asks to be called again: no answer yet.
fn is_broken(status: &Status) -> bool {
    status.source().is_some()
        || status.code() == Code::Unavailable
        || (status.code() == Code::DeadlineExceeded && status.message().contains("call again to join"))
}
