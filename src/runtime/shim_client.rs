//! One shim, as berthd sees it: started or found again, and called. How it is waited for:
//! [`super::shim_exit`].

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prost::Message;
use tokio::sync::watch;

use super::{
    Error, ForkServer,
    shim_exit::Answer,
    shim_process::{connect, kill_by_folder, last_words, reap, start},
    ttrpc::Client,
};
use crate::{
    proto::{
        google::protobuf::Any,
        plan::{self, ExitRecord},
        task,
    },
    shim::{
        fault,
        ttrpc::{Code, Status},
    },
    telemetry::metrics::metrics,
};

/// How long a verb may take that only changes something in the kernel.
const QUICK: Duration = Duration::from_secs(30);

/// How long Create and Start may take: they mount and execute, on any disk.
const LONG: Duration = Duration::from_secs(120);

/// How long a shim has to leave after its container was deleted.
const LEAVE: Duration = Duration::from_secs(3);

/// The shim of one container; clones share the connection.
#[derive(Clone, Debug)]
pub struct Shim {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub id: String,
    pub dir: PathBuf,
    client: Mutex<Client>,
    /// Where all who wait for the exit wait; absent until the first one.
    pub exit: Mutex<Option<watch::Receiver<Option<Answer>>>>,
}

impl Shim {
    /// Starts a shim for the container `id` in its state folder `dir`, which must
    /// exist, and connects to it. If there is a cgroup of shims and it is not there yet, it
    /// is moved by and by.
    pub async fn spawn(server: &ForkServer, id: &str, dir: &Path) -> Result<Shim, Error> {
        let started = start(server, id, dir).await;
        let (pid, pidfd) = started.map_err(|(step, source)| Error::Spawn {
            id: id.into(),
            dir: dir.into(),
            step,
            source,
        })?;
        metrics().shims_started.inc();
        let scope = server.scope();
        tokio::spawn(async move {
            if let Some(scope) = scope {
                Box::pin(scope.take(pid)).await;
            }
            reap(pidfd).await;
        });
        Shim::connect(id, dir).await
    }

    /// Connects to the shim in `dir`. [`Error::Gone`] when nobody listens there.
    pub async fn connect(id: &str, dir: &Path) -> Result<Shim, Error> {
        let inner = Inner {
            id: id.into(),
            dir: dir.into(),
            client: Mutex::new(connect(id, dir).await?),
            exit: Mutex::new(None),
        };
        Ok(Shim {
            inner: Arc::new(inner),
        })
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// Makes cgroup, root and init; the init's pid. It waits for [`Shim::start`].
    pub async fn create(&self, plan: &plan::LaunchPlan, dir: &Path) -> Result<u32, Error> {
        let request = task::CreateTaskRequest {
            id: self.inner.id.clone(),
            bundle: dir.display().to_string(),
            terminal: plan.process.as_ref().is_some_and(|process| process.terminal),
            options: Some(any("berth.plan.v1.LaunchPlan", plan)),
            ..Default::default()
        };
        let answer: task::CreateTaskResponse = self.call("Create", LONG, &request).await?;
        Ok(answer.pid)
    }

    /// Lets the init execute its program. [`Error::Start`] when it cannot; the
    /// shim has then written the exit record and ends.
    pub async fn start(&self) -> Result<u32, Error> {
        let answer: task::StartResponse = self.call("Start", LONG, &self.request_start("")).await?;
        Ok(answer.pid)
    }

    pub async fn state(&self) -> Result<task::StateResponse, Error> {
        let request = task::StateRequest {
            id: self.inner.id.clone(),
            ..Default::default()
        };
        self.call("State", QUICK, &request).await
    }

    /// Signals the init; with `all`, which takes SIGKILL only, the whole cgroup.
    /// A container that has ended is `Kind::NotFound`.
    pub async fn kill(&self, signal: u32, all: bool) -> Result<(), Error> {
        self.kill_process("", signal, all).await
    }

    /// Freezes all processes of the container.
    pub async fn pause(&self) -> Result<(), Error> {
        let request = task::PauseRequest {
            id: self.inner.id.clone(),
        };
        self.call("Pause", QUICK, &request).await
    }

    pub async fn resume(&self) -> Result<(), Error> {
        let request = task::ResumeRequest {
            id: self.inner.id.clone(),
        };
        self.call("Resume", QUICK, &request).await
    }

    /// Changes limits; absent fields stay as they are.
    pub async fn update(&self, resources: &plan::Resources) -> Result<(), Error> {
        self.update_with(any("berth.plan.v1.Resources", resources)).await
    }

    /// Opens the log file anew by its path, which is there when this returns.
    pub async fn reopen_log(&self) -> Result<(), Error> {
        let request = plan::LogRequest { reopen: true };
        self.update_with(any("berth.plan.v1.LogRequest", &request)).await
    }

    async fn update_with(&self, resources: Any) -> Result<(), Error> {
        let request = task::UpdateTaskRequest {
            id: self.inner.id.clone(),
            resources: Some(resources),
            ..Default::default()
        };
        self.call("Update", QUICK, &request).await
    }

    /// Ends the init's standard input.
    pub async fn close_stdin(&self) -> Result<(), Error> {
        let request = task::CloseIoRequest {
            id: self.inner.id.clone(),
            stdin: true,
            ..Default::default()
        };
        self.call("CloseIO", QUICK, &request).await
    }

    /// The size, in characters, of the init's terminal.
    pub async fn resize(&self, width: u32, height: u32) -> Result<(), Error> {
        self.resize_process("", width, height).await
    }

    /// The pids of all processes in the container, as the host has them.
    pub async fn pids(&self) -> Result<Vec<u32>, Error> {
        let request = task::PidsRequest {
            id: self.inner.id.clone(),
        };
        let answer: task::PidsResponse = self.call("Pids", QUICK, &request).await?;
        Ok(answer.processes.iter().map(|process| process.pid).collect())
    }

    /// Removes the container and lets its shim end; what still runs is killed. A
    /// shim that is gone has done so by itself.
    pub async fn delete(&self) -> Result<(), Error> {
        let request = task::DeleteRequest {
            id: self.inner.id.clone(),
            ..Default::default()
        };
        match self.call::<task::DeleteResponse>("Delete", QUICK, &request).await {
            Ok(_) => {}
            Err(error) if error.is_remote(Code::FailedPrecondition) => {
                match self.kill(9, true).await {
                    Err(error) if !error.is_gone() && !error.is_remote(Code::NotFound) => return Err(error),
                    _ => {}
                }
                // After its end the shim removes everything by itself.
                match self.wait().await {
                    Err(error) if !error.is_gone() => return Err(error),
                    _ => {}
                }
            }
            // It was given no container.
            Err(error) if error.is_remote(Code::NotFound) => {
                let request = task::ShutdownRequest {
                    id: self.inner.id.clone(),
                    now: true,
                };
                match self.call::<()>("Shutdown", QUICK, &request).await {
                    Err(error) if !error.is_gone() => return Err(error),
                    _ => {}
                }
            }
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
        let client = self.client();
        let left = tokio::time::timeout(LEAVE, client.closed()).await;
        left.map_err(|_| self.slow("Delete", LEAVE))
    }

    /// As [`Shim::delete`]; a shim that has not done it within `limit` hangs, and is killed
    /// itself. What its container has left is then the caller's to take away.
    pub async fn delete_within(&self, limit: Duration) -> Result<(), Error> {
        match tokio::time::timeout(limit, self.delete()).await {
            Ok(Err(Error::Slow { .. })) | Err(_) => {
                Shim::put_down(&self.inner.id, &self.inner.dir).await;
                Ok(())
            }
            Ok(done) => done,
        }
    }

    /// Kills a shim that hangs, by its folder `dir`, and waits until it is gone. Whoever
    /// waits for its container hears that it has vanished.
    pub async fn put_down(id: &str, dir: &Path) {
        let (name, folder) = (id.to_owned(), dir.to_owned());
        let killed = tokio::task::spawn_blocking(move || kill_by_folder(&name, &folder)).await;
        match killed {
            Ok(Ok(true)) => tracing::warn!(container = %id, "its shim hung, and was killed"),
            Ok(Ok(false)) => return,
            Ok(Err(error)) => tracing::error!(container = %id, %error, "kill its shim, which hangs"),
            Err(error) => tracing::error!(container = %id, %error, "kill its shim, which hangs"),
        }
        let gone = async {
            while let Ok(client) = connect(id, dir).await {
                client.closed().await;
            }
        };
        let _ = tokio::time::timeout(LEAVE, gone).await;
    }

    pub(super) async fn kill_process(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), Error> {
        let request = task::KillRequest {
            id: self.inner.id.clone(),
            exec_id: exec_id.into(),
            signal,
            all,
        };
        self.call("Kill", QUICK, &request).await
    }

    pub(super) async fn resize_process(&self, exec_id: &str, width: u32, height: u32) -> Result<(), Error> {
        let request = task::ResizePtyRequest {
            id: self.inner.id.clone(),
            exec_id: exec_id.into(),
            width,
            height,
        };
        self.call("ResizePty", QUICK, &request).await
    }

    pub(super) fn request_start(&self, exec_id: &str) -> task::StartRequest {
        task::StartRequest {
            id: self.inner.id.clone(),
            exec_id: exec_id.into(),
        }
    }

    /// Calls a verb that answers at once.
    pub(super) async fn call<R: Message + Default>(
        &self,
        method: &'static str,
        limit: Duration,
        request: &impl Message,
    ) -> Result<R, Error> {
        self.call_with(method, Some(limit), request, Vec::new()).await
    }

    /// Calls a verb that answers at once; `fds` go with the request.
    pub(super) async fn call_quick<R: Message + Default>(
        &self,
        method: &'static str,
        request: &impl Message,
        fds: Vec<OwnedFd>,
    ) -> Result<R, Error> {
        self.call_with(method, Some(QUICK), request, fds).await
    }

    /// Calls a verb; `fds` go with the request.
    pub(super) async fn call_with<R: Message + Default>(
        &self,
        method: &'static str,
        limit: Option<Duration>,
        request: &impl Message,
        fds: Vec<OwnedFd>,
    ) -> Result<R, Error> {
        let client = self.client();
        if client.is_closed() {
            self.reconnect().await?;
        }
        let client = self.client();
        let call = client.call(method, request.encode_to_vec(), fds);
        let response = match limit {
            Some(limit) => tokio::time::timeout(limit, call)
                .await
                .map_err(|_| self.slow(method, limit))?,
            None => call.await,
        };
        let response = response.map_err(|_| Error::Broken {
            id: self.inner.id.clone(),
            method,
            last_words: last_words(&self.inner.dir),
        })?;
        self.read_answer(method, response)
    }

    pub(super) fn read_answer<R: Message + Default>(
        &self,
        method: &'static str,
        response: crate::shim::ttrpc::Response,
    ) -> Result<R, Error> {
        let id = self.inner.id.clone();
        match response.status {
            Some(status) if status.code != Code::Ok as i32 => Err(remote(id, method, status)),
            _ => R::decode(&response.payload[..]).map_err(|error| Error::Protocol {
                id,
                method,
                reason: error.to_string(),
            }),
        }
    }

    pub(super) fn client(&self) -> Client {
        self.inner
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) async fn reconnect(&self) -> Result<(), Error> {
        let client = connect(&self.inner.id, &self.inner.dir).await?;
        *self.inner.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
        Ok(())
    }

    fn slow(&self, method: &'static str, after: Duration) -> Error {
        Error::Slow {
            id: self.inner.id.clone(),
            method,
            after,
        }
    }
}

/// What a status means; a failed start carries its record.
fn remote(id: String, method: &'static str, status: Status) -> Error {
    let record = status
        .details
        .iter()
        .find(|detail| detail.type_url == fault::EXIT_RECORD);
    match record.and_then(|detail| ExitRecord::decode(&detail.value[..]).ok()) {
        Some(record) => Error::Start {
            id,
            code: record.code,
            message: record.message,
        },
        None => Error::Remote {
            id,
            method,
            code: status.code,
            message: status.message,
        },
    }
}

pub(super) fn any(type_url: &str, message: &impl Message) -> Any {
    Any {
        type_url: type_url.into(),
        value: message.encode_to_vec(),
    }
}
