//! The container that the shim runs: its init, its execs, its output, its end.
//!
//! The end, in order: the init is reaped; without a PID namespace of its own the
//! rest of its cgroup is killed (the kernel does so for one that has); execs are
//! reaped and the output is read to its end, both within [`DRAIN`]; the exit
//! record is written; the cgroup is removed. Only then is anybody told.

use std::{
    fs::OpenOptions,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    pty::{OpenptFlags, ioctl_tiocgptpeer},
};

use super::{
    attach::Attached,
    clock, console,
    exec::Exec,
    execs::Execs,
    exit,
    fault::{self, Fault},
    line::Source,
    log::Log,
    note,
    output::{Output, Pumped},
    state::{Event, State},
    ttrpc::Code,
};
use crate::{
    cgroup::OomKill,
    launcher::{self, Init, Stdio},
    proto::{
        plan::{ExitRecord, LaunchPlan, Resources, namespace::Kind},
        task::{ExecProcessRequest, StateResponse},
    },
    sys::{allocator, signalfd},
};

/// How long the end waits for whoever still holds the output or does not die.
const DRAIN: Duration = Duration::from_secs(2);

/// How often an exec that was killed whole is looked at until all of it is gone:
/// its descendants are other processes' children, no signal tells of them.
const DYING_POLL: Duration = Duration::from_millis(2);

/// How and when a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 plus the signal.
    pub code: i32,
    /// Nanoseconds since the epoch.
    pub at: i64,
}

impl Exit {
    pub fn status(self) -> u32 {
        u32::try_from(self.code).unwrap_or(255)
    }
}

/// A container.
#[derive(Debug)]
pub struct Task {
    pub id: String,
    bundle: PathBuf,
    state: State,
    init: Init,
    /// The container's processes die with the init, for the kernel sees to it.
    own_pids: bool,
    /// Somebody asked for it to be killed.
    told_to_die: bool,
    oom_kill: Option<OomKill>,
    pub output: Output,
    /// The slave of the init's terminal: while it is open here, a moment in which
    /// no process has the terminal open is not taken for the end of the output.
    terminal: Option<OwnedFd>,
    /// Its clients, and the write end of the init's standard input.
    pub attached: Attached,
    started_at: i64,
    exit: Option<Exit>,
    /// Why the start failed.
    message: String,
    deadline: Option<Instant>,
    record: Option<ExitRecord>,
    pub execs: Execs,
}

impl Task {
    /// Makes everything up to an init that waits. An error leaves nothing behind.
    pub fn create(plan: &LaunchPlan, bundle: &Path) -> Result<Task, Fault> {
        let terminal = plan.process.as_ref().is_some_and(|process| process.terminal);
        let log = plan.log.as_ref().map(|log| {
            let path = Path::new(&log.path);
            Log::open(path).map_err(|error| fault::internal(&format!("open log {}", path.display()), error))
        });
        let has_log = log.is_some();
        let mut output = Output::new(log.transpose()?);
        let failed = |error| fault::internal("make the pipes of the container", error);
        let mut stdio = Stdio {
            stdin: null().map_err(failed)?,
            stdout: null().map_err(failed)?,
            stderr: null().map_err(failed)?,
        };
        let mut attached = Attached::new(plan.stdin_once, terminal);
        if !terminal {
            if plan.stdin {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
                stdio.stdin = read;
                attached.set_input(write).map_err(|errno| failed(errno.into()))?;
            }
            // Without a log it is read for clients that attach.
            if has_log || !plan.sandbox_init {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
                stdio.stdout = write;
                output.add(read, Source::Stdout, false).map_err(failed)?;
                let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
                stdio.stderr = write;
                output.add(read, Source::Stderr, false).map_err(failed)?;
            }
        }
        let init = launcher::create(plan, bundle, stdio).map_err(|error| fault::launch_failed(&error))?;
        let mut task = Task {
            id: plan.id.clone(),
            bundle: bundle.into(),
            state: State::Created,
            own_pids: plan
                .namespaces
                .iter()
                .any(|ns| ns.kind() == Kind::Pid && ns.path.is_empty()),
            told_to_die: false,
            oom_kill: None,
            output,
            terminal: None,
            attached,
            started_at: 0,
            exit: None,
            message: String::new(),
            deadline: None,
            record: None,
            execs: Execs::default(),
            init,
        };
        if let Err(error) = task.open_terminal(plan.stdin) {
            task.discard();
            return Err(fault::internal("open the container's terminal", error));
        }
        Ok(task)
    }

    fn open_terminal(&mut self, stdin: bool) -> std::io::Result<()> {
        if let Some(master) = &self.init.console {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            self.terminal = Some(ioctl_tiocgptpeer(master, flags)?);
            self.output.add(master.try_clone()?, Source::Stdout, true)?;
            if stdin {
                self.attached.set_input(master.try_clone()?)?;
            }
        }
        Ok(())
    }

    /// Lets the init execute its program; its pid.
    pub fn start(&mut self) -> Result<i32, Fault> {
        let next = self.state.next(Event::Start).map_err(fault::illegal)?;
        let started_at = clock::now();
        let started = self.init.start();
        allocator::trim();
        if let Err(error) = started {
            self.message = format!("start container {}: {error}", self.id);
            let code = error.exit_code();
            self.ended(code);
            return Err(fault::start_failed(code, self.message.clone()));
        }
        self.state = next;
        self.started_at = started_at;
        Ok(self.init.pid)
    }

    /// A child of the shim was reaped; strangers, that is orphans of the
    /// container, need nothing more.
    pub fn reaped(&mut self, pid: i32, code: i32) {
        if pid == self.init.pid {
            if self.exit.is_none() && self.state == State::Created {
                let how = if self.told_to_die { "was killed" } else { "ended" };
                self.message = format!("{how} before it was started");
            }
            self.ended(code);
        } else {
            self.execs.reaped(pid, code);
        }
    }

    /// The init has ended: the first step of the end.
    fn ended(&mut self, code: i32) {
        let Ok(stopped) = self.state.next(Event::Exit) else {
            return;
        };
        self.state = stopped;
        // At once: systemd removes a scope as soon as its last process has ended.
        self.look_for_oom(code);
        self.exit = Some(Exit {
            code,
            at: clock::now(),
        });
        self.deadline = Some(Instant::now() + DRAIN);
        self.terminal = None;
        self.attached.drop_input();
        if !self.own_pids
            && let Err(error) = self.init.cgroup.kill()
        {
            note(format_args!("kill what the init left in its cgroup: {error}"));
        }
    }

    /// Takes the further steps of the end that can be taken now. True once, when
    /// the record is in place and the cgroup is gone.
    pub fn settle(&mut self) -> bool {
        self.attached.expire(false);
        self.execs.look();
        let (Some(exit), Some(deadline), None) = (self.exit, self.deadline, &self.record) else {
            return false;
        };
        let busy = !self.output.is_ended() || self.execs.any_running();
        if busy && Instant::now() < deadline {
            return false;
        }
        // Whoever holds the output beyond the end has had its time; what it kept
        // from being read goes to the log.
        self.attached.expire(true);
        for source in [Source::Stdout, Source::Stderr] {
            self.pump(source);
            self.close(source);
        }
        self.look_for_oom(exit.code);
        let oom = self.oom_kill.take();
        let record = ExitRecord {
            code: exit.code,
            started_at: self.started_at,
            // The clock may have been set back in between.
            finished_at: exit.at.max(self.started_at),
            oom_killed: oom.is_some(),
            oom_limit: oom.as_ref().map_or(0, |oom| oom.limit),
            oom_cgroup: oom.map(|oom| oom.cgroup).unwrap_or_default(),
            message: std::mem::take(&mut self.message),
        };
        if let Err(error) = exit::write(&self.bundle, &record) {
            note(format_args!(
                "write exit record in {}: {error}",
                self.bundle.display()
            ));
        }
        self.record = Some(record);
        self.remove_cgroup();
        true
    }

    /// `code`: how the init has ended.
    fn look_for_oom(&mut self, code: i32) {
        self.init.oom.look();
        let killed = code == 128 + libc::SIGKILL && !self.told_to_die;
        if self.oom_kill.is_none() {
            self.oom_kill = self.init.oom.verdict(killed);
        }
    }

    /// The counts of the OOM killer have changed.
    pub fn oom_event(&mut self) {
        self.init.oom.look();
    }

    /// What becomes ready, for priority events, when they change.
    pub fn oom_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.init.oom.descriptor()
    }

    /// When [`Task::settle`], or an exec, must be looked at again.
    pub fn deadline(&self) -> Option<Instant> {
        let end = self.deadline.filter(|_| self.record.is_none());
        let look = self.execs.any_dying().then(|| Instant::now() + DYING_POLL);
        let slow = self.attached.deadline();
        end.into_iter().chain(look).chain(slow).min()
    }

    /// Kills and reaps an init that never ran, and removes the cgroup: no record,
    /// for nothing happened.
    pub fn discard(&mut self) {
        if let Err(error) = self.init.cgroup.kill() {
            note(format_args!("kill container {}: {error}", self.id));
        }
        let _ = signalfd::send(self.init.pidfd.as_fd(), libc::SIGKILL);
        let pidfd = rustix::process::WaitId::PidFd(self.init.pidfd.as_fd());
        let _ = rustix::process::waitid(pidfd, rustix::process::WaitIdOptions::EXITED);
        self.state = State::Stopped;
        self.remove_cgroup();
    }

    fn remove_cgroup(&self) {
        if let Err(error) = self.init.remove() {
            note(format_args!("remove what container {} had: {error}", self.id));
        }
    }

    /// Reads a stream; whether it has ended, so that nobody waits for it any more.
    pub fn pump(&mut self, source: Source) -> bool {
        self.output.pump(source, &mut self.attached) == Pumped::Ended
    }

    /// Closes a stream that has ended.
    pub fn close(&mut self, source: Source) {
        self.output.close(source);
        self.attached.end(source);
    }

    /// A client joins the init's stdio.
    pub fn attach(&mut self, request: ExecProcessRequest, fds: &[OwnedFd]) -> Result<(), Fault> {
        if self.state == State::Stopped {
            let message = format!("container {} has ended: nothing can be attached to", self.id);
            return Err(fault::new(Code::FailedPrecondition, message));
        }
        if self.execs.get(&request.exec_id).is_ok() || self.attached.fate(&request.exec_id).is_some() {
            return Err(fault::new(
                Code::AlreadyExists,
                format!("exec {} exists", request.exec_id),
            ));
        }
        let open = [Source::Stdout, Source::Stderr].map(|source| self.output.descriptor(source).is_some());
        self.attached.add(request, fds, open)
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// The init's exit, when all of the end is done.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.filter(|_| self.record.is_some())
    }

    pub fn pid(&self) -> u32 {
        u32::try_from(self.init.pid).unwrap_or(0)
    }

    pub fn describe(&self) -> StateResponse {
        StateResponse {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            pid: self.pid(),
            status: self.state.status().into(),
            terminal: self.init.console.is_some(),
            exit_status: self.exit.map_or(0, Exit::status),
            exited_at: self.exit.and_then(|exit| clock::timestamp(exit.at)),
            ..StateResponse::default()
        }
    }

    pub fn pause(&mut self) -> Result<(), Fault> {
        let next = self.state.next(Event::Pause).map_err(fault::illegal)?;
        self.init
            .cgroup
            .freeze()
            .map_err(|error| fault::internal("freeze the container", error))?;
        self.state = next;
        Ok(())
    }

    pub fn resume(&mut self) -> Result<(), Fault> {
        let next = self.state.next(Event::Resume).map_err(fault::illegal)?;
        self.init
            .cgroup
            .thaw()
            .map_err(|error| fault::internal("thaw the container", error))?;
        self.state = next;
        Ok(())
    }

    /// Signals the init, or with `all` kills everything in the cgroup.
    pub fn kill(&mut self, signal: i32, all: bool) -> Result<(), Fault> {
        if self.state == State::Stopped {
            return Err(fault::new(
                Code::NotFound,
                format!("container {} has ended", self.id),
            ));
        }
        if all {
            self.init
                .cgroup
                .kill()
                .map_err(|error| fault::internal("kill the container's cgroup", error))?;
        } else {
            self.init
                .signal(signal)
                .map_err(|errno| fault::signal(&format!("container {}", self.id), signal, errno))?;
        }
        self.told_to_die |= all || signal == libc::SIGKILL;
        // In cgroup v1 a frozen process does not die.
        if signal == libc::SIGKILL && self.state == State::Paused {
            self.resume()?;
        }
        Ok(())
    }

    pub fn pids(&self) -> Result<Vec<i32>, Fault> {
        self.init
            .cgroup
            .pids()
            .map_err(|error| fault::internal("list the container's processes", error))
    }

    pub fn update(&self, resources: &Resources) -> Result<(), Fault> {
        if self.state == State::Stopped {
            return Err(fault::new(
                Code::FailedPrecondition,
                format!("container {} has ended", self.id),
            ));
        }
        self.init
            .cgroup
            .apply(resources)
            .map_err(|error| fault::internal("update the container's cgroup", error))
    }

    pub fn resize(&self, width: u32, height: u32) -> Result<(), Fault> {
        let console = self.init.console.as_ref().ok_or_else(|| {
            fault::new(
                Code::FailedPrecondition,
                format!("container {} has no terminal", self.id),
            )
        })?;
        console::resize(console.as_fd(), width, height)
            .map_err(|errno| fault::internal("resize terminal", errno))
    }

    /// Ends the init's standard input, if it has one.
    pub fn close_stdin(&mut self) {
        self.attached.close_input();
    }

    /// Adds an exec, to be started later.
    pub fn add_exec(&mut self, exec: Exec) -> Result<(), Fault> {
        self.running()?;
        self.execs.add(exec)
    }

    /// Runs an exec that was added; its pid. One that cannot be run is forgotten.
    pub fn start_exec(&mut self, id: &str) -> Result<i32, Fault> {
        self.running()?;
        let started = self.execs.start(id, &self.init.target());
        allocator::trim();
        started
    }

    fn running(&self) -> Result<(), Fault> {
        if self.state == State::Running {
            return Ok(());
        }
        let message = format!(
            "container {} is {}: exec needs a running one",
            self.id,
            self.state.name()
        );
        Err(fault::new(Code::FailedPrecondition, message))
    }

    /// The descriptor of an open stream of the init that is to be read now.
    pub fn stream(&self, source: Source) -> Option<BorrowedFd<'_>> {
        let held = self.attached.holds(source);
        self.output.descriptor(source).filter(|_| !held)
    }
}

fn null() -> std::io::Result<OwnedFd> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
}
