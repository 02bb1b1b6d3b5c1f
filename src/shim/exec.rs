//! A further process in the container: `kubectl exec`, a probe, a hook. Its
//! stdio are the client's descriptors, so that the shim copies none of its bytes.

use std::{
    fs::OpenOptions,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use super::{
    clock, console,
    execs::is_empty,
    fault::{self, Fault},
    state::{Event, State},
    task::Exit,
    ttrpc::Code,
};
use crate::{
    cgroup::Cgroup,
    launcher::{self, ExecProcess, ExecTarget, Stdio},
    proto::{
        plan,
        task::{DeleteResponse, ExecProcessRequest, StateResponse},
    },
    sys::signalfd,
};

/// How long the end of an exec that was killed whole waits for processes that do
/// not die, for they hang in the kernel.
const DYING: Duration = Duration::from_secs(2);

/// An exec, from its description to its deletion.
#[derive(Debug)]
pub struct Exec {
    pub id: String,
    /// The connection that asked for it; nothing once it has gone.
    pub owner: Option<u32>,
    pub terminal: bool,
    state: State,
    /// Until it is started.
    waiting: Option<Waiting>,
    process: Option<ExecProcess>,
    exit: Option<Exit>,
    /// All of it was killed: until then its exit waits for the last descendant.
    /// [`Exec::look`] alone ends the wait, so that whoever asks between two looks hears the same.
    dying_until: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    process: plan::Process,
    stdio: Stdio,
}

impl Exec {
    /// Checks the request and takes its descriptors; no process yet.
    pub fn new(request: ExecProcessRequest, fds: &[OwnedFd], owner: u32) -> Result<Exec, Fault> {
        let id = request.exec_id;
        check_id(&id)?;
        let process: plan::Process = fault::unpack(request.spec, "berth.plan.v1.Process")?;
        if process.terminal != request.terminal {
            return Err(fault::invalid(format!(
                "exec {id}: request and process disagree on a terminal"
            )));
        }
        if request.terminal
            && (!request.stdin.is_empty() || !request.stderr.is_empty() || request.stdout.is_empty())
        {
            return Err(fault::invalid(format!(
                "exec {id}: with a terminal only stdout is given, the socket that takes the terminal"
            )));
        }
        let stdio = Stdio {
            stdin: pick(&request.stdin, fds)?,
            stdout: pick(&request.stdout, fds)?,
            stderr: pick(&request.stderr, fds)?,
        };
        Ok(Exec {
            id,
            owner: Some(owner),
            terminal: request.terminal,
            state: State::Created,
            waiting: Some(Waiting { process, stdio }),
            process: None,
            exit: None,
            dying_until: None,
        })
    }

    /// Runs the process; its pid. After an error the exec is to be forgotten.
    pub fn start(&mut self, target: &ExecTarget<'_>) -> Result<i32, Fault> {
        let next = self.state.next(Event::Start).map_err(fault::illegal)?;
        let Some(Waiting { process, stdio }) = self.waiting.take() else {
            return Err(fault::new(
                Code::Internal,
                format!("exec {}: nothing to start", self.id),
            ));
        };
        // With a terminal, stdout is the client's console socket and stays here.
        let socket = if self.terminal {
            Some(
                stdio
                    .stdout
                    .try_clone()
                    .map_err(|error| fault::internal("duplicate the console socket", error))?,
            )
        } else {
            None
        };
        let started = launcher::exec(target, &process, &self.id, stdio)
            .map_err(|error| fault::start_failed(error.exit_code(), format!("exec {}: {error}", self.id)))?;
        if let (Some(socket), Some(master)) = (&socket, &started.console)
            && let Err(error) = console::hand_over(socket.as_fd(), master.as_fd())
        {
            // Without its terminal it is of no use; it is reaped as any other.
            let _ = signalfd::send(started.pidfd.as_fd(), libc::SIGKILL);
            super::note(format_args!(
                "exec {}: send its terminal to the client: {error}",
                self.id
            ));
        }
        self.state = next;
        let pid = started.pid;
        self.process = Some(started);
        Ok(pid)
    }

    /// The process was reaped.
    pub fn reaped(&mut self, code: i32) {
        if let Ok(stopped) = self.state.next(Event::Exit) {
            self.state = stopped;
            self.exit = Some(Exit {
                code,
                at: clock::now(),
            });
        }
    }

    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// The process was reaped; descendants may live on.
    pub fn has_ended(&self) -> bool {
        self.state == State::Stopped
    }

    /// Looks whether the wait for killed descendants is over.
    pub fn look(&mut self) {
        let Some(until) = self.dying_until.filter(|_| self.has_ended()) else {
            return;
        };
        let cgroup = self.process.as_ref().and_then(|process| process.cgroup.as_ref());
        if Instant::now() >= until || cgroup.is_none_or(is_empty) {
            self.dying_until = None;
        }
    }

    /// The exit, once there is one; of an exec that was killed with all its
    /// descendants not before they are gone, or [`DYING`] is over, as [`Exec::look`] saw it.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.filter(|_| self.dying_until.is_none())
    }

    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// Signals the process, or with `all` kills everything in its cgroup, also
    /// after the process itself has ended.
    pub fn kill(&mut self, signal: i32, all: bool) -> Result<(), Fault> {
        let Some(process) = &self.process else {
            return Err(fault::new(
                Code::FailedPrecondition,
                format!("exec {} was not started: delete it", self.id),
            ));
        };
        if all && let Some(cgroup) = &process.cgroup {
            cgroup
                .kill()
                .map_err(|error| fault::internal("kill the cgroup of an exec", error))?;
            self.dying_until = Some(Instant::now() + DYING);
            return Ok(());
        }
        if self.state == State::Stopped {
            return Err(fault::new(Code::NotFound, format!("exec {} has ended", self.id)));
        }
        signalfd::send(process.pidfd.as_fd(), signal)
            .map_err(|errno| fault::signal(&format!("exec {}", self.id), signal, errno))
    }

    pub fn resize(&self, width: u32, height: u32) -> Result<(), Fault> {
        let console = self.process.as_ref().and_then(|process| process.console.as_ref());
        let console = console.ok_or_else(|| {
            fault::new(
                Code::FailedPrecondition,
                format!("exec {} has no terminal, or has ended", self.id),
            )
        })?;
        console::resize(console.as_fd(), width, height)
            .map_err(|errno| fault::internal("resize terminal", errno))
    }

    /// Lets go of the shim's copy of the terminal: once the client closes its own,
    /// the processes behind it are hung up.
    pub fn close_console(&mut self) {
        if let Some(process) = &mut self.process {
            process.console = None;
        }
    }

    /// The cgroup, for whoever removes it when nothing lives in it any more.
    pub fn take_cgroup(&mut self) -> Option<Cgroup> {
        self.process.as_mut().and_then(|process| process.cgroup.take())
    }

    pub fn describe(&self, id: &str) -> StateResponse {
        StateResponse {
            id: id.to_owned(),
            exec_id: self.id.clone(),
            pid: self.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            status: self.state.status().into(),
            terminal: self.terminal,
            exit_status: self.exit.map_or(0, Exit::status),
            exited_at: self.exit.and_then(|exit| clock::timestamp(exit.at)),
            ..StateResponse::default()
        }
    }

    pub fn deleted(&self) -> DeleteResponse {
        DeleteResponse {
            pid: self.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            exit_status: self.exit.map_or(0, Exit::status),
            exited_at: self.exit.and_then(|exit| clock::timestamp(exit.at)),
        }
    }
}

/// An id is also the name of a cgroup.
pub fn check_id(id: &str) -> Result<(), Fault> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.bytes().all(plain) {
        return Err(fault::invalid(format!(
            "exec id {id:?}: want 1 to 128 of A-Z a-z 0-9 _ . -, not a dot first"
        )));
    }
    Ok(())
}

/// The descriptor that "fd:N" names, or /dev/null for nothing.
pub fn pick(name: &str, fds: &[OwnedFd]) -> Result<OwnedFd, Fault> {
    if name.is_empty() {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null");
        return null
            .map(OwnedFd::from)
            .map_err(|error| fault::internal("open /dev/null", error));
    }
    let number = name
        .strip_prefix("fd:")
        .and_then(|number| number.parse::<usize>().ok());
    let fd = number.and_then(|number| fds.get(number)).ok_or_else(|| {
        fault::invalid(format!(
            "stdio {name:?}: want \"fd:N\", the N-th of the {} descriptors sent",
            fds.len()
        ))
    })?;
    fd.try_clone()
        .map_err(|error| fault::internal("duplicate a descriptor", error))
}
