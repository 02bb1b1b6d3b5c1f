//! Hooks of the OCI runtime spec.
//!
//! | hook                     | namespaces    | rights             | when                     |
//! |--------------------------|---------------|--------------------|--------------------------|
//! | prestart, createRuntime  | the host's    | the launcher's     | all is mounted, no pivot |
//! | createContainer          | container's   | the launcher's     | likewise                 |
//! | startContainer           | container's   | the container's    | before its process       |
//! | poststart, poststop      | the host's    | the caller's       | run by the agent         |
//!
//! The program of a startContainer hook is one of the container's own files: it runs
//! as an exec would, with the user, the capabilities and the seccomp program of the
//! container, for whoever made the image chose it. The others are the host's files.
//! createContainer hooks stay in the host's PID namespace: theirs is the host's /proc,
//! and the pid in the state is the host's too.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio as Redirect};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};

use crate::proto::plan::{Hook, Hooks, LaunchPlan, Process};
use crate::sys::{hook as sys, namespace as kind};

use super::{Error, ExecTarget, Stdio, child, exec};

/// The version of the runtime spec that the state is of.
const VERSION: &str = "1.2.0";

/// A hook that says nothing of its own may take as long: the shim answers nobody meanwhile.
const LIMIT: Duration = Duration::from_secs(60);

/// Most of what a failed hook wrote that is told.
const TOLD: u64 = 1024;

const JOINED: u64 = kind::MOUNT | kind::NETWORK | kind::IPC | kind::UTS | kind::CGROUP;

/// The state that hooks read from their standard input, runtime spec "State".
/// `annotations` is a JSON object, or empty.
#[must_use]
pub fn state(id: &str, status: &str, pid: i32, bundle: &Path, annotations: &str) -> String {
    let annotations = if annotations.is_empty() { "{}" } else { annotations };
    let bundle = escape(&bundle.to_string_lossy());
    // A container that has ended has no pid.
    let pid = if pid > 0 {
        format!("\"pid\":{pid},")
    } else {
        String::new()
    };
    format!(
        "{{\"ociVersion\":\"{VERSION}\",\"id\":\"{}\",\"status\":\"{status}\",{pid}\"bundle\":\"{bundle}\",\"annotations\":{annotations}}}",
        escape(id)
    )
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '"' | '\\' => escaped.extend(['\\', letter]),
            control if control < ' ' => escaped.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => escaped.push(other),
        }
    }
    escaped
}

pub fn any_before_pivot(hooks: &Hooks) -> bool {
    !(hooks.prestart.is_empty() && hooks.create_runtime.is_empty() && hooks.create_container.is_empty())
}

/// The hooks between the mounts and the change of the root, of the init `pid`, which waits.
pub fn before_pivot(plan: &LaunchPlan, bundle: &Path, pid: i32, pidfd: BorrowedFd<'_>) -> Result<(), Error> {
    let Some(hooks) = &plan.hooks else { return Ok(()) };
    let state = state(&plan.id, "creating", pid, bundle, &hooks.annotations);
    for (kind, list) in [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
    ] {
        for hook in list {
            run(kind, hook, &state, bundle)?;
        }
    }
    for hook in &hooks.create_container {
        run_host_program("createContainer", hook, &state, bundle, Some(pidfd))?;
    }
    Ok(())
}

/// Runs a hook in the caller's namespaces, in the folder `bundle`, and waits for it. Blocks.
///
/// # Errors
/// It could not be executed, did not succeed, or took longer than it may; it is killed then.
pub fn run(kind: &'static str, hook: &Hook, state: &str, bundle: &Path) -> Result<(), Error> {
    run_host_program(kind, hook, state, bundle, None)
}

fn run_host_program(
    kind: &'static str,
    hook: &Hook,
    state: &str,
    bundle: &Path,
    join: Option<BorrowedFd<'_>>,
) -> Result<(), Error> {
    let failed = |message: String| wrong(kind, &hook.path, message);
    let io = |step: &str| {
        let step = step.to_owned();
        move |error: std::io::Error| failed(format!("{step}: {error}"))
    };
    let input = Input::new(state).map_err(io("make its standard input"))?;
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command
        .env_clear()
        .envs(hook.env.iter().filter_map(|entry| entry.split_once('=')))
        .stdin(input.stdin)
        .stdout(Redirect::null())
        .stderr(input.stderr.try_clone().map_err(io("copy a descriptor"))?)
        .process_group(0);
    let join = match join {
        Some(pidfd) => {
            let pidfd = pidfd.try_clone_to_owned().map_err(io("copy a descriptor"))?;
            Some((pidfd, JOINED))
        }
        None => None,
    };
    let folder = CString::new(bundle.as_os_str().as_bytes()).map_err(|e| failed(e.to_string()))?;
    sys::before_exec(&mut command, join, folder);
    let mut running = command.spawn().map_err(io("execute"))?;
    let pid = i32::try_from(running.id()).ok().and_then(Pid::from_raw);
    let ended = match pid {
        Some(pid) => pidfd_open(pid, PidfdFlags::empty()).and_then(|fd| within(limit(hook), fd.as_fd())),
        None => Err(Errno::SRCH),
    };
    if !matches!(ended, Ok(true)) {
        // What it started too, as far as that stayed in its group.
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = running.wait();
        return Err(failed(match ended {
            Err(errno) => format!("wait for it: {errno}"),
            _ => late(hook),
        }));
    }
    let status = running.wait().map_err(io("wait for it"))?;
    if status.success() {
        return Ok(());
    }
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, signal) => format!("died of signal {}", signal.unwrap_or(0)),
    };
    Err(failed(format!("{how}{}", told(input.stderr))))
}

fn wrong(kind: &'static str, path: &str, message: String) -> Error {
    Error::Hook {
        kind,
        path: path.to_owned(),
        message,
    }
}

fn limit(hook: &Hook) -> Duration {
    match hook.timeout {
        0 => LIMIT,
        seconds => Duration::from_secs(seconds.into()),
    }
}

fn late(hook: &Hook) -> String {
    format!("took longer than {} s and was killed", limit(hook).as_secs())
}

/// Standard input with the state, and a place for what is written to standard error:
/// memory, so that neither side ever waits for the other.
struct Input {
    stdin: File,
    stderr: File,
}

impl Input {
    fn new(state: &str) -> std::io::Result<Input> {
        let memory = |name: &str| memfd_create(name, MemfdFlags::CLOEXEC).map(File::from);
        let mut stdin = memory("hook-state")?;
        stdin.write_all(state.as_bytes())?;
        stdin.rewind()?;
        Ok(Input {
            stdin,
            stderr: memory("hook-stderr")?,
        })
    }
}

/// The end of what a hook wrote to standard error.
fn told(mut stderr: File) -> String {
    let mut text = Vec::new();
    let length = stderr.metadata().map_or(0, |found| found.len());
    let read = stderr
        .seek(std::io::SeekFrom::Start(length.saturating_sub(TOLD)))
        .and_then(|_| stderr.take(TOLD).read_to_end(&mut text));
    match (read, String::from_utf8_lossy(&text).trim()) {
        (Ok(_), said) if !said.is_empty() => format!(": {said}"),
        _ => String::new(),
    }
}

/// Whether the process has ended within `limit`.
pub fn within(limit: Duration, pidfd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
}

/// The startContainer hooks, kept until the start.
#[derive(Debug)]
pub struct AtStart {
    id: String,
    bundle: std::path::PathBuf,
    annotations: String,
    hooks: Vec<(Hook, Process)>,
}

impl AtStart {
    pub fn of(plan: &LaunchPlan, bundle: &Path) -> Option<AtStart> {
        let hooks = plan
            .hooks
            .as_ref()
            .filter(|hooks| !hooks.start_container.is_empty())?;
        let process = plan.process.as_ref()?;
        let as_process = |hook: &Hook| {
            // The program is found by its first argument.
            let mut args = vec![hook.path.clone()];
            args.extend(hook.args.iter().skip(1).cloned());
            let process = Process {
                args,
                env: hook.env.iter().map(|entry| entry.clone().into_bytes()).collect(),
                cwd: "/".into(),
                terminal: false,
                ..process.clone()
            };
            (hook.clone(), process)
        };
        Some(AtStart {
            id: plan.id.clone(),
            bundle: bundle.into(),
            annotations: hooks.annotations.clone(),
            hooks: hooks.start_container.iter().map(as_process).collect(),
        })
    }

    /// Runs them in the container of the init, which waits.
    pub fn run(&self, pid: i32, target: &ExecTarget<'_>) -> Result<(), Error> {
        let state = state(&self.id, "created", pid, &self.bundle, &self.annotations);
        for (number, (hook, process)) in self.hooks.iter().enumerate() {
            let failed = |message: String| wrong("startContainer", &hook.path, message);
            let io = |error: std::io::Error| failed(format!("make its standard input: {error}"));
            let input = Input::new(&state).map_err(io)?;
            let null = open(c"/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            let stdio = Stdio {
                stdin: input.stdin.into(),
                stdout: null.map_err(|errno| io(errno.into()))?,
                stderr: OwnedFd::from(input.stderr.try_clone().map_err(io)?),
            };
            let running = exec(target, process, &format!("hook-{number}"), stdio)
                .map_err(|error| failed(error.to_string()))?;
            let ended = within(limit(hook), running.pidfd.as_fd());
            if let Some(cgroup) = &running.cgroup {
                // Its children go with it, also those of a hook that succeeded.
                let _ = cgroup.kill();
            }
            let status = match ended {
                Ok(true) => waitid(WaitId::PidFd(running.pidfd.as_fd()), WaitIdOptions::EXITED),
                Ok(false) => {
                    child::kill_and_reap(running.pidfd.as_fd());
                    Ok(None)
                }
                Err(errno) => Err(errno),
            };
            if let Some(cgroup) = running.cgroup {
                let _ = cgroup.remove();
            }
            match status.map_err(|errno| failed(format!("wait for it: {errno}")))? {
                None => return Err(failed(late(hook))),
                Some(status) if status.exit_status() == Some(0) => {}
                Some(status) => {
                    let how = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => format!("exited with {code}"),
                        (None, signal) => format!("died of signal {}", signal.unwrap_or(0)),
                    };
                    return Err(failed(format!("{how}{}", told(input.stderr))));
                }
            }
        }
        Ok(())
    }
}
