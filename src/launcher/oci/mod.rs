//! Containers that an OCI runtime binary makes, from the same bundle.
//!
//! The shim is what it is for a container of the launcher: the parent of init and
//! execs, the owner of pipes, terminal, log and exit record. Only the launch is the
//! runtime's: `create` and `start` for the init, `exec` for more processes, `kill`
//! for signals, `delete` at the end ([`run`]). Limits are changed, and everything is
//! killed, through the cgroup, as for any container.
//!
//! The root is mounted where the runtime sees it and nobody else ([`view`]).

mod console;
mod log;
mod run;
mod view;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::{self, Cgroup, Layout, OomWatch};
use crate::proto::plan::{self, LaunchPlan, Resources};

use super::error::Names;
use super::exec::{ExecProcess, Executed};
use super::overlay::Problem;
use super::{By, Error, ExecTarget, Init, Stdio, identity, namespace, process};

use console::ConsoleSocket;
use run::{Around, Stream};
use view::View;

/// A signal is wanted at once: whoever waits for it kills next.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Where the runtime writes the pid of the init, in the bundle.
const PID_FILE: &str = "init.pid";

/// The runtime of one container.
#[derive(Debug)]
pub struct Runtime {
    program: String,
    args: Vec<String>,
    limit: Duration,
    exec_cgroup: bool,
    id: String,
    bundle: PathBuf,
    /// Where the runtime has put the init, when that is below the container's cgroup:
    /// crun has a cgroup of its own in a scope of systemd.
    inner: Option<Cgroup>,
}

/// Makes the cgroup, and has the runtime make the container in it. The caller must
/// be a child subreaper: the init becomes its child.
pub fn create(plan: &LaunchPlan, wanted: &plan::Runtime, bundle: &Path, stdio: Stdio) -> Result<Init, Error> {
    let runtime = Runtime::new(wanted, &plan.id, bundle)?;
    let names = Names::default();
    let explain = |problem| match problem {
        Problem::Plan(error) => error,
        Problem::Step(failure) => names.describe(&failure, Some(plan)),
    };
    identity::make_undumpable().map_err(|failure| explain(failure.into()))?;
    let namespaces = namespace::prepare(&plan.namespaces).map_err(explain)?;
    let view = View::prepare(plan, bundle, namespaces.user()).map_err(explain)?;
    let place = plan.cgroup.as_ref();
    let place = place.ok_or_else(|| Error::plan("cgroup", "it is missing"))?;
    let terminal = plan.process.as_ref().is_some_and(|process| process.terminal);
    // A scope is made by systemd, which the runtime asks for it.
    let cgroup = if place.delegated {
        Cgroup::open(&place.path)?
    } else {
        Cgroup::create(&place.path)?
    };
    // Before, for a limit that cannot be is told by us as for any container, and after,
    // for what it comes to is not left to the runtime. Devices are the runtime's.
    let limits = Resources {
        devices: Vec::new(),
        ..place.resources.clone().unwrap_or_default()
    };
    let made = (|| {
        if !place.delegated {
            cgroup.apply(&limits)?;
        }
        let made = runtime.create(&view, &cgroup, terminal, stdio);
        let made = made.map_err(|error| name_program(error, plan.process.as_ref()))?;
        let scope = place.delegated.then(|| Cgroup::adopt(&place.path)).transpose()?;
        scope.as_ref().unwrap_or(&cgroup).apply(&limits)?;
        let inner = is_pure_v2().then(|| inner(made.0, &place.path)).flatten();
        let inner = inner.map(|path| Cgroup::open(&path)).transpose()?;
        Ok((made, scope, inner))
    })();
    match made {
        Ok(((pid, pidfd, console), scope, inner)) => {
            let cgroup = scope.unwrap_or(cgroup);
            Ok(Init {
                pid,
                pidfd,
                console,
                oom: OomWatch::begin(&cgroup),
                cgroup,
                user: None,
                by: By::Runtime(Runtime { inner, ..runtime }),
            })
        }
        Err(error) => {
            let _ = cgroup.kill();
            // It may have recorded the container before it failed.
            let _ = runtime.delete();
            let _ = cgroup.remove();
            cgroup::remove_empty_parents(cgroup.parents_made());
            Err(error)
        }
    }
}

impl Runtime {
    /// # Errors
    /// For a path that is not absolute, or no time limit.
    pub fn new(wanted: &plan::Runtime, id: &str, bundle: &Path) -> Result<Runtime, Error> {
        if !wanted.path.starts_with('/') || wanted.timeout == 0 {
            return Err(Error::plan("runtime", "want an absolute path and a time limit"));
        }
        Ok(Runtime {
            program: wanted.path.clone(),
            args: wanted.args.clone(),
            limit: Duration::from_secs(wanted.timeout.into()),
            exec_cgroup: wanted.exec_cgroup,
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            inner: None,
        })
    }

    fn create(
        &self,
        view: &View<'_>,
        cgroup: &Cgroup,
        terminal: bool,
        stdio: Stdio,
    ) -> Result<Executed, Error> {
        let mut args = vec!["create", "--bundle", self.text(&self.bundle)?];
        args.extend(["--pid-file", PID_FILE]);
        let console = self.console_socket(terminal, "console.sock")?;
        if let Some(console) = &console {
            args.extend(["--console-socket", console.name()]);
        }
        args.push(&self.id);
        let around = Around {
            view: Some(view),
            cgroup: unified(cgroup),
            ..Around::default()
        };
        self.run(&args, self.limit, stdio, around)?;
        let (pid, pidfd) = self.started(PID_FILE, "create")?;
        let console = self.console(console, "create")?;
        Ok((pid, pidfd, console))
    }

    /// Lets the init execute its program.
    pub fn start(&self) -> Result<(), Error> {
        let around = Around::default();
        self.run(&["start", &self.id], self.limit, Stdio::null()?, around)
    }

    /// Sends a signal to the container.
    pub fn kill(&self, signal: i32) -> Result<(), Error> {
        let signal = signal.to_string();
        let limit = self.limit.min(KILL_LIMIT);
        let around = Around::default();
        let args = ["kill", &self.id, &signal];
        self.run(&args, limit, Stdio::null()?, around)
    }

    /// Removes what the runtime keeps of the container, and kills what is left of it.
    /// Blocks.
    ///
    /// # Errors
    /// What it said.
    pub fn delete(&self) -> Result<(), Error> {
        let limit = self.limit.min(KILL_LIMIT);
        let args = ["delete", "--force", &self.id];
        self.run(&args, limit, Stdio::null()?, Around::default())
    }

    /// A process of its own in the container, in a cgroup of its own where the
    /// runtime can do that.
    pub fn exec(
        &self,
        target: &ExecTarget<'_>,
        process: &plan::Process,
        exec_id: &str,
        stdio: Stdio,
    ) -> Result<ExecProcess, Error> {
        if process.oci.is_empty() {
            return Err(Error::plan("process.oci", "it is missing"));
        }
        let name = format!("exec-{exec_id}");
        let files = ExecFiles::new(self, &name);
        files
            .write(&process.oci)
            .map_err(|e| self.failed("exec", "write", &e))?;
        let cgroup = self.inner.as_ref().unwrap_or(target.cgroup).child(&name)?;
        let started = self.exec_in(cgroup.as_ref(), process, &files, stdio);
        ExecProcess::of(
            started.map_err(|error| name_program(error, Some(process))),
            cgroup,
        )
    }

    fn exec_in(
        &self,
        cgroup: Option<&Cgroup>,
        process: &plan::Process,
        files: &ExecFiles,
        stdio: Stdio,
    ) -> Result<(i32, OwnedFd, Option<OwnedFd>), Error> {
        let terminal = process.terminal;
        let mut args = vec!["exec", "--detach", "--process", &files.process];
        args.extend(["--pid-file", &files.pid]);
        let console = self.console_socket(terminal, &files.console)?;
        if let Some(console) = &console {
            args.extend(["--console-socket", console.name()]);
        }
        let by_name = self.exec_cgroup && is_pure_v2() && cgroup.is_some();
        if by_name {
            args.extend(["--cgroup", &files.name]);
        }
        args.push(&self.id);
        // With a terminal these are not the process's.
        let stdio = if terminal { Stdio::null()? } else { stdio };
        let around = Around {
            view: None,
            cgroup: cgroup.and_then(unified),
            oom_score_adj: process::oom_score_adj(process.oom_score_adj)?,
        };
        self.run(&args, self.limit, stdio, around)?;
        let (pid, pidfd) = self.started(&files.pid, "exec")?;
        if let Some(score) = process.oom_score_adj {
            // runc before 1.2 gives it the score that the container was made with.
            let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
        }
        if let Some(cgroup) = cgroup.filter(|_| !by_name && is_pure_v2()) {
            // What it has started by now stays in the container's. ESRCH: it has ended.
            let _ = cgroup.add(pid);
        }
        let console = self.console(console, "exec")?;
        Ok((pid, pidfd, console))
    }

    /// The process whose pid the runtime wrote: a child of the caller by now, which
    /// nobody else reaps.
    fn started(&self, file: &str, verb: &'static str) -> Result<(i32, OwnedFd), Error> {
        let path = self.bundle.join(file);
        let text = fs::read_to_string(&path).map_err(|e| self.failed(verb, "read its pid file", &e))?;
        let _ = fs::remove_file(&path);
        let pid = text.trim().parse::<i32>().ok().and_then(Pid::from_raw);
        let Some(pid) = pid else {
            let odd = std::io::Error::other(format!("{text:?} is not a pid"));
            return Err(self.failed(verb, "read its pid file", &odd));
        };
        let pidfd = pidfd_open(pid, PidfdFlags::empty());
        let pidfd = pidfd.map_err(|e| self.failed(verb, "open the new process", &e.into()))?;
        Ok((pid.as_raw_nonzero().get(), pidfd))
    }

    fn console_socket(&self, wanted: bool, name: &str) -> Result<Option<ConsoleSocket>, Error> {
        let made = wanted.then(|| ConsoleSocket::new(&self.bundle, name));
        made.transpose()
            .map_err(|e| self.failed("create", "make the console socket", &e.into()))
    }

    fn console(&self, socket: Option<ConsoleSocket>, verb: &'static str) -> Result<Option<OwnedFd>, Error> {
        let master = socket.map(ConsoleSocket::receive);
        master
            .transpose()
            .map_err(|e| self.failed(verb, "receive the terminal", &e.into()))
    }

    fn failed(&self, verb: &'static str, step: &str, error: &std::io::Error) -> Error {
        Error::Runtime {
            program: self.program.clone(),
            verb: verb.to_owned(),
            message: format!("{step}: {error}"),
            exit_code: 128,
        }
    }

    fn text<'a>(&self, path: &'a Path) -> Result<&'a str, Error> {
        path.to_str()
            .ok_or_else(|| Error::plan("bundle", format!("{} is not UTF-8", path.display())))
    }
}

/// The cgroup of the runtime itself, which its children inherit, where it does not see
/// the v2 hierarchy and so cannot put them there.
fn unified(cgroup: &Cgroup) -> Option<BorrowedFd<'_>> {
    cgroup.fd_for_clone().filter(|_| !is_pure_v2())
}

/// Not every runtime says what it is that cannot be executed.
fn name_program(error: Error, process: Option<&plan::Process>) -> Error {
    let command = process.and_then(|process| process.args.first());
    match (error, command) {
        (
            Error::Runtime {
                program,
                verb,
                message,
                exit_code: exit_code @ (126 | 127),
            },
            Some(command),
        ) if !message.contains(command.as_str()) => Error::Runtime {
            message: format!("{command:?}: {message}"),
            program,
            verb,
            exit_code,
        },
        (error, _) => error,
    }
}

/// The v2 cgroup of a process, when it is below `path`.
fn inner(pid: i32, path: &str) -> Option<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let own = table.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = own.strip_prefix(path)?;
    below.starts_with('/').then(|| own.to_owned())
}

fn is_pure_v2() -> bool {
    Layout::detect().is_ok_and(Layout::is_pure_v2)
}

/// Files of one exec in the bundle, by their names there; gone with this.
struct ExecFiles {
    bundle: PathBuf,
    name: String,
    process: String,
    pid: String,
    console: String,
}

impl ExecFiles {
    fn new(runtime: &Runtime, name: &str) -> ExecFiles {
        ExecFiles {
            bundle: runtime.bundle.clone(),
            name: name.to_owned(),
            process: format!("{name}.json"),
            pid: format!("{name}.pid"),
            console: format!("{name}.sock"),
        }
    }

    /// An environment holds secrets.
    fn write(&self, process: &[u8]) -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(self.bundle.join(&self.process))?.write_all(process)
    }
}

impl Drop for ExecFiles {
    fn drop(&mut self) {
        for name in [&self.process, &self.pid] {
            let _ = fs::remove_file(self.bundle.join(name));
        }
    }
}

impl Stdio {
    fn null() -> Result<Stdio, Error> {
        let open = || Stream::null().map_err(|e| Error::plan("stdio", format!("open /dev/null: {e}")));
        Ok(Stdio {
            stdin: open()?,
            stdout: open()?,
            stderr: open()?,
        })
    }
}
