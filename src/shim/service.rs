//! The verbs of the task service: requests are decoded and checked here, what
//! they do is in `task` and `exec`.
//!
//! Wait alone is answered later. What a client's request may ask for and Berth
//! does not do is refused by name, not ignored. The timeout in a request is the
//! client's own business: no verb but Wait takes time.

use std::{
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use prost::Message;

use super::{
    attach::{ATTACH, Fate, PATIENCE},
    clock,
    exec::Exec,
    fault::{self, Fault},
    state::State,
    task::{Exit, Task},
    ttrpc::{Code, Request, TASK_SERVICE},
};
use crate::proto::{
    containerd::v1::types::ProcessInfo,
    plan::{LaunchPlan, LogRequest, Resources},
    task::{
        CloseIoRequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
        DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest,
        PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
        StateRequest, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
};

/// How long a shim that was given no container waits for a client.
const LONELY: Duration = Duration::from_secs(30);

/// Waits of one client that may be open at a time.
const MAX_WAITS: usize = 1024;

/// Which call of which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub client: u32,
    pub stream: u32,
}

/// An encoded message, or why not.
pub type Outcome = Result<Vec<u8>, Fault>;

/// A Wait that is open.
#[derive(Debug)]
struct Waiter {
    caller: Caller,
    /// Empty: the init.
    exec_id: String,
}

/// The shim's service: at most one task in its life.
#[derive(Debug)]
pub struct Service {
    id: String,
    task: Option<Task>,
    waiters: Vec<Waiter>,
    /// The shim's life is over: what is queued is sent, then it exits.
    over: bool,
    lonely_until: Option<Instant>,
}

impl Service {
    /// For the container `id`, which is made later by Create.
    pub fn new(id: String) -> Service {
        Service {
            id,
            task: None,
            waiters: Vec::new(),
            over: false,
            lonely_until: Some(Instant::now() + LONELY),
        }
    }

    pub fn task(&mut self) -> Option<&mut Task> {
        self.task.as_mut()
    }

    pub fn is_over(&self) -> bool {
        self.over
    }

    /// When [`Service::settle`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.task.as_ref().map_or(self.lonely_until, Task::deadline)
    }

    /// Runs a verb; nothing when the answer comes from [`Service::settle`].
    pub fn call(&mut self, caller: Caller, request: &Request, fds: &[OwnedFd]) -> Option<Outcome> {
        if request.service != TASK_SERVICE {
            let message = format!("service {:?}: a shim serves {TASK_SERVICE}", request.service);
            return Some(Err(fault::new(Code::Unimplemented, message)));
        }
        let body = &request.payload[..];
        Some(match request.method.as_str() {
            "Wait" => match decode(body).and_then(|request| self.wait(caller, request)) {
                Ok(()) => return None,
                Err(fault) => Err(fault),
            },
            "State" => decode(body).and_then(|request| self.state(request)),
            "Create" => decode(body).and_then(|request| self.create(request)),
            "Start" => decode(body).and_then(|request| self.start(request)),
            "Delete" => decode(body).and_then(|request| self.delete(request)),
            "Pids" => decode(body).and_then(|request| self.pids(request)),
            "Pause" => decode(body).and_then(|request: PauseRequest| empty(self.find(&request.id)?.pause())),
            "Resume" => {
                decode(body).and_then(|request: ResumeRequest| empty(self.find(&request.id)?.resume()))
            }
            "Kill" => decode(body).and_then(|request| empty(self.kill(request))),
            "Exec" => decode(body).and_then(|request| empty(self.exec(request, fds, caller.client))),
            "ResizePty" => decode(body).and_then(|request| empty(self.resize(request))),
            "CloseIO" => decode(body).and_then(|request| empty(self.close_io(request))),
            "Update" => decode(body).and_then(|request| empty(self.update(request))),
            "Connect" => decode(body).and_then(|request| self.connect(request)),
            "Shutdown" => decode(body).and_then(|request| empty(self.shutdown(request))),
            "Checkpoint" | "Stats" => Err(fault::new(
                Code::Unimplemented,
                format!("{} is not implemented by this shim", request.method),
            )),
            other => Err(fault::new(
                Code::Unimplemented,
                format!("the task service has no method {other:?}"),
            )),
        })
    }

    /// The task, if it is the one that the request is about.
    fn find(&mut self, id: &str) -> Result<&mut Task, Fault> {
        if id != self.id {
            return Err(fault::new(
                Code::NotFound,
                format!("this is the shim of container {}, not of {id:?}", self.id),
            ));
        }
        let missing = || fault::new(Code::NotFound, format!("container {id} was not created"));
        self.task.as_mut().ok_or_else(missing)
    }

    fn create(&mut self, request: CreateTaskRequest) -> Outcome {
        if request.id != self.id {
            return Err(fault::invalid(format!(
                "this is the shim of container {}, not of {:?}",
                self.id, request.id
            )));
        }
        if self.task.is_some() || self.over {
            return Err(fault::new(
                Code::AlreadyExists,
                format!("container {} exists", self.id),
            ));
        }
        let plan: LaunchPlan = fault::unpack(request.options, "berth.plan.v1.LaunchPlan")?;
        if plan.id != self.id {
            return Err(fault::invalid(format!("the plan is for container {:?}", plan.id)));
        }
        if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
            return Err(fault::new(
                Code::Unimplemented,
                "create from a checkpoint is not implemented by this shim",
            ));
        }
        if !request.rootfs.is_empty() {
            return Err(fault::invalid(
                "rootfs: the plan describes the root, no mounts are taken",
            ));
        }
        if ![&request.stdin, &request.stdout, &request.stderr]
            .into_iter()
            .all(String::is_empty)
        {
            return Err(fault::invalid(
                "stdio: the plan names the log and the input, no paths are taken",
            ));
        }
        if request.terminal != plan.process.as_ref().is_some_and(|process| process.terminal) {
            return Err(fault::invalid("request and plan disagree on a terminal"));
        }
        if !request.bundle.starts_with('/') {
            return Err(fault::invalid(format!(
                "bundle {:?}: want an absolute path",
                request.bundle
            )));
        }
        match Task::create(&plan, Path::new(&request.bundle)) {
            Ok(task) => {
                let pid = task.pid();
                self.task = Some(task);
                encode(&CreateTaskResponse { pid })
            }
            // Nothing was left behind, and nothing else can come of this shim.
            Err(fault) => {
                self.over = true;
                Err(fault)
            }
        }
    }

    fn start(&mut self, request: StartRequest) -> Outcome {
        let task = self.find(&request.id)?;
        let pid = match request.exec_id.as_str() {
            "" => task.start()?,
            exec => task.start_exec(exec)?,
        };
        encode(&StartResponse { pid: unsigned(pid) })
    }

    fn state(&mut self, request: StateRequest) -> Outcome {
        let task = self.find(&request.id)?;
        encode(&match request.exec_id.as_str() {
            "" => task.describe(),
            exec => task.execs.get(exec)?.describe(&request.id),
        })
    }

    fn delete(&mut self, request: DeleteRequest) -> Outcome {
        let task = self.find(&request.id)?;
        if !request.exec_id.is_empty() {
            return encode(&task.execs.delete(&request.exec_id)?);
        }
        let pid = task.pid();
        match task.state() {
            State::Running | State::Paused => {
                let message = format!(
                    "container {} is {}: kill it first",
                    request.id,
                    task.state().name()
                );
                return Err(fault::new(Code::FailedPrecondition, message));
            }
            State::Created => {
                task.discard();
                self.task = None;
                self.over = true;
                return encode(&DeleteResponse {
                    pid,
                    ..DeleteResponse::default()
                });
            }
            State::Stopped => {}
        }
        let Some(exit) = task.exit() else {
            let message = format!("container {} is ending: wait for it first", request.id);
            return Err(fault::new(Code::FailedPrecondition, message));
        };
        encode(&DeleteResponse {
            pid,
            exit_status: exit.status(),
            exited_at: clock::timestamp(exit.at),
        })
    }

    fn pids(&mut self, request: PidsRequest) -> Outcome {
        let pids = self.find(&request.id)?.pids()?;
        let info = |pid| ProcessInfo {
            pid: unsigned(pid),
            info: None,
        };
        encode(&PidsResponse {
            processes: pids.into_iter().map(info).collect(),
        })
    }

    fn kill(&mut self, request: KillRequest) -> Result<(), Fault> {
        let signal = i32::try_from(request.signal).map_err(|_| fault::invalid("there is no such signal"))?;
        if request.all && signal != libc::SIGKILL {
            return Err(fault::invalid(format!(
                "signal {signal} to all: only SIGKILL ({}) goes to all",
                libc::SIGKILL
            )));
        }
        let task = self.find(&request.id)?;
        match request.exec_id.as_str() {
            "" => task.kill(signal, request.all),
            exec => task.execs.get_mut(exec)?.kill(signal, request.all),
        }
    }

    fn exec(&mut self, request: ExecProcessRequest, fds: &[OwnedFd], client: u32) -> Result<(), Fault> {
        let task = self.find(&request.id)?;
        if request.spec.as_ref().is_some_and(|spec| spec.type_url == ATTACH) {
            return task.attach(request, fds);
        }
        task.add_exec(Exec::new(request, fds, client)?)
    }

    fn resize(&mut self, request: ResizePtyRequest) -> Result<(), Fault> {
        let task = self.find(&request.id)?;
        match request.exec_id.as_str() {
            "" => task.resize(request.width, request.height),
            exec => task.execs.get(exec)?.resize(request.width, request.height),
        }
    }

    /// Of an exec the shim holds only the terminal: its pipes are the client's.
    fn close_io(&mut self, request: CloseIoRequest) -> Result<(), Fault> {
        let task = self.find(&request.id)?;
        if !request.stdin {
            return Ok(());
        }
        match request.exec_id.as_str() {
            "" => task.close_stdin(),
            exec => task.execs.get_mut(exec)?.close_console(),
        }
        Ok(())
    }

    fn update(&mut self, request: UpdateTaskRequest) -> Result<(), Fault> {
        let task = self.find(&request.id)?;
        if !request.annotations.is_empty() {
            return Err(fault::invalid(
                "annotations: a shim has no use for them, none are taken",
            ));
        }
        let kind = request.resources.as_ref().map(|any| any.type_url.clone());
        if kind.as_deref() != Some("berth.plan.v1.LogRequest") {
            let resources: Resources = fault::unpack(request.resources, "berth.plan.v1.Resources")?;
            return task.update(&resources);
        }
        let log: LogRequest = fault::unpack(request.resources, "berth.plan.v1.LogRequest")?;
        if log.reopen {
            task.output
                .reopen()
                .map_err(|error| fault::internal("open the log anew", error))?;
        }
        Ok(())
    }

    fn connect(&mut self, request: ConnectRequest) -> Outcome {
        let task_pid = self.find(&request.id)?.pid();
        encode(&ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// A shim ends with its container; without one it ends now.
    fn shutdown(&mut self, request: ShutdownRequest) -> Result<(), Fault> {
        if self.task.is_none() {
            self.over = true;
        } else if request.now {
            let message = format!(
                "container {} is there: kill and delete it, its shim ends with it",
                self.id
            );
            return Err(fault::new(Code::FailedPrecondition, message));
        }
        Ok(())
    }

    fn wait(&mut self, caller: Caller, request: WaitRequest) -> Result<(), Fault> {
        let task = self.find(&request.id)?;
        if !request.exec_id.is_empty() {
            let exec = task.execs.get(&request.exec_id).map(drop);
            exec.or_else(|fault| task.attached.fate(&request.exec_id).map(drop).ok_or(fault))?;
        }
        let waits = self
            .waiters
            .iter()
            .filter(|waiter| waiter.caller.client == caller.client);
        if waits.count() >= MAX_WAITS {
            let message = format!("{MAX_WAITS} calls of Wait are open on this connection");
            return Err(fault::new(Code::ResourceExhausted, message));
        }
        self.waiters.push(Waiter {
            caller,
            exec_id: request.exec_id,
        });
        Ok(())
    }

    /// A client has gone.
    pub fn client_gone(&mut self, client: u32, others: bool) {
        self.waiters.retain(|waiter| waiter.caller.client != client);
        if let Some(task) = &mut self.task {
            task.execs.client_gone(client);
        } else if !others {
            // Whoever started this shim died before it gave it a container.
            self.over = true;
        }
    }

    /// Takes the steps that are due and gives the answers that are ready. To be
    /// called after everything else that may have changed something.
    pub fn settle(&mut self) -> Vec<(Caller, Outcome)> {
        if let Some(task) = &mut self.task {
            self.over |= task.settle();
        } else if self.lonely_until.is_some_and(|until| Instant::now() >= until) {
            self.over = true;
        }
        let (task, over) = (self.task.as_ref(), self.over);
        let ready = |waiter: &Waiter| match task {
            None => Some(Err(fault::new(Code::NotFound, "the container was deleted"))),
            Some(task) if waiter.exec_id.is_empty() => task.exit().map(waited),
            Some(task) => match task.execs.get(&waiter.exec_id) {
                Ok(exec) => exec.exit().map(waited).or_else(|| {
                    let lost = || {
                        fault::new(
                            Code::NotFound,
                            format!("exec {} ended with its container", exec.id),
                        )
                    };
                    over.then(|| Err(lost()))
                }),
                Err(fault) => match task.attached.fate(&waiter.exec_id) {
                    Some(Fate::Attached) => None,
                    Some(Fate::Slow) => Some(Err(too_slow())),
                    None => Some(Err(fault)),
                },
            },
        };
        let mut answers = Vec::new();
        self.waiters.retain(|waiter| match ready(waiter) {
            Some(outcome) => {
                answers.push((waiter.caller, outcome));
                false
            }
            None => true,
        });
        answers
    }
}

/// A client that was attached was dropped.
fn too_slow() -> Fault {
    let message = format!("dropped: the client took no output for {PATIENCE:?}, and held up the container");
    fault::new(Code::ResourceExhausted, message)
}

fn waited(exit: Exit) -> Outcome {
    encode(&WaitResponse {
        exit_status: exit.status(),
        exited_at: clock::timestamp(exit.at),
    })
}

fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, Fault> {
    M::decode(payload).map_err(|error| fault::invalid(format!("request: {error}")))
}

fn encode(message: &impl Message) -> Outcome {
    Ok(message.encode_to_vec())
}

/// `google.protobuf.Empty` is no bytes.
fn empty(result: Result<(), Fault>) -> Outcome {
    result.map(|()| Vec::new())
}

fn unsigned(pid: i32) -> u32 {
    u32::try_from(pid).unwrap_or(0)
}
