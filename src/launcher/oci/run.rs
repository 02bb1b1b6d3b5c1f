//! One run of the runtime's binary: forked, executed and waited for, at most so long.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process_group, set_parent_process_death_signal, setsid, waitid,
};

use crate::cgroup::Layout;
use crate::sys::clone::{Forked, clone3};
use crate::sys::exec::{Strings, execve};
use crate::sys::signal;

use super::super::error::Names;
use super::super::hook::within;
use super::super::step::{At, Failure, Step, Walk};
use super::super::{Error, Stdio, channel, child, filesystem, identity, plan};
use super::{Runtime, View, log, view};

/// Where a runtime and its hooks look for programs.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Its own words, in the bundle.
const LOG: &str = "runtime.log";

/// Standard input and output that are nobody's.
pub struct Stream;

impl Stream {
    pub fn null() -> Result<OwnedFd, Errno> {
        open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
    }
}

/// What a run is in.
#[derive(Debug, Default)]
pub struct Around<'a> {
    /// The mounts that it alone sees.
    pub view: Option<&'a View<'a>>,
    /// Its own cgroup, which its children inherit.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Its own score, which its children inherit: not every runtime sets that of an exec.
    pub oom_score_adj: Option<i32>,
}

/// What the child needs: made before it is forked.
struct Prepared<'a> {
    program: CString,
    args: Strings,
    env: Strings,
    bundle: CString,
    stdio: [OwnedFd; 3],
    around: Around<'a>,
    /// The mount of a v2 hierarchy beside those of v1.
    hidden: Option<CString>,
}

impl Runtime {
    /// Runs the binary to its end. It dies with the caller.
    ///
    /// # Errors
    /// What it said last when it failed; that it was killed when it took too long.
    pub(super) fn run(
        &self,
        args: &[&str],
        limit: Duration,
        stdio: Stdio,
        around: Around<'_>,
    ) -> Result<(), Error> {
        let verb = args.first().copied().unwrap_or_default();
        let log = self.bundle.join(LOG);
        let _ = fs::remove_file(&log);
        let failed = |message: String| self.error(verb, message);
        let said = || log::last_error(&log);
        let prepared = self.prepare(args, stdio, around)?;
        let (pid, pidfd) = self.spawn(&prepared)?;
        drop(prepared);
        match within(limit, pidfd.as_fd()) {
            Ok(true) => {}
            answer => {
                // With what it has started, as far as that stayed in its session.
                if let Some(pid) = Pid::from_raw(pid) {
                    let _ = kill_process_group(pid, Signal::KILL);
                }
                child::kill_and_reap(pidfd.as_fd());
                let words = said().map_or_else(String::new, |said| format!(" (it said last: {said})"));
                return Err(failed(match answer {
                    Err(errno) => format!("wait for it: {errno}"),
                    Ok(_) => format!(
                        "took longer than {} s and was killed{words}; see what it waits for, or raise the \
                         timeout of its handler",
                        limit.as_secs()
                    ),
                }));
            }
        }
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        let status = status.map_err(|errno| failed(format!("wait for it: {errno}")))?;
        let how = match status.map(|status| (status.exit_status(), status.terminating_signal())) {
            Some((Some(0), _)) => return Ok(()),
            Some((Some(code), _)) => format!("exited with {code}"),
            Some((None, signal)) => format!("died of signal {}", signal.unwrap_or(0)),
            None => "ended".to_owned(),
        };
        Err(failed(
            said().unwrap_or_else(|| format!("{how}, and said nothing in its log")),
        ))
    }

    fn error(&self, verb: &str, message: String) -> Error {
        Error::Runtime {
            program: self.program.clone(),
            verb: verb.to_owned(),
            exit_code: exit_code(&message),
            message,
        }
    }

    fn prepare<'a>(&self, args: &[&str], stdio: Stdio, around: Around<'a>) -> Result<Prepared<'a>, Error> {
        let mut all = vec![self.program.as_str()];
        all.extend(self.args.iter().map(String::as_str));
        all.extend(["--log", LOG, "--log-format", "json"]);
        // The log is opened before the runtime enters the bundle, and its own folder is that.
        all.extend(args);
        let strings = all.iter().map(|text| plan::field("runtime.args", *text));
        let stdio = [stdio.stdin, stdio.stdout, stdio.stderr];
        Ok(Prepared {
            program: plan::field("runtime.path", self.program.as_str())?,
            args: Strings::new(strings.collect::<Result<_, _>>()?),
            env: Strings::new(vec![plan::field("runtime.env", PATH)?]),
            bundle: plan::field("bundle", self.bundle.as_os_str().as_bytes())?,
            stdio: high(stdio).map_err(|e| Error::plan("stdio", format!("copy a descriptor: {e}")))?,
            around,
            hidden: hidden()?,
        })
    }

    fn spawn(&self, prepared: &Prepared<'_>) -> Result<(i32, OwnedFd), Error> {
        let names = Names::of_program(&self.program);
        let plan = prepared.around.view.map(|view| view.plan);
        let describe = |failure: Failure| names.describe(&failure, plan);
        let (socket, child_end) = channel::pair().at(Step::Channel).map_err(describe)?;
        let Forked::Parent { pid, pidfd } = clone3(0, prepared.around.cgroup)
            .at(Step::Clone)
            .map_err(describe)?
        else {
            let Err(failure) = walk(prepared, child_end.as_fd());
            child::fail(&failure, child_end.as_fd())
        };
        drop(child_end);
        match channel::hear(socket.as_fd()).at(Step::Talk).map_err(describe) {
            Ok(channel::Word::Failed(failure)) => {
                child::reap(pidfd.as_fd());
                Err(describe(failure))
            }
            // End: it has executed, for the channel closes then.
            Ok(_) => Ok((pid, pidfd)),
            Err(error) => {
                child::kill_and_reap(pidfd.as_fd());
                Err(error)
            }
        }
    }
}

/// The child's side: no allocation, no lock, no log.
fn walk(prepared: &Prepared<'_>, socket: BorrowedFd<'_>) -> Walk<Infallible> {
    signal::reset();
    // A runtime without a shim would go on where nobody expects it.
    set_parent_process_death_signal(Some(Signal::KILL)).at(Step::Signals)?;
    setsid().at(Step::Session)?;
    if prepared.around.oom_score_adj.is_some() {
        let procfs = filesystem::private_procfs()?;
        identity::set_oom_score(prepared.around.oom_score_adj, procfs.as_fd())?;
    }
    if prepared.around.view.is_some() || prepared.hidden.is_some() {
        view::isolate(prepared.hidden.as_deref())?;
    }
    if let Some(view) = prepared.around.view {
        view.mount()?;
    }
    rustix::process::chdir(prepared.bundle.as_c_str()).at(Step::Cwd)?;
    identity::install_stdio(prepared.stdio.each_ref().map(AsFd::as_fd))?;
    child::close_all_but(socket, std::iter::empty())?;
    let errno = execve(&prepared.program, &prepared.args, &prepared.env);
    child::fail(&Failure::new(Step::Exec, errno), socket)
}

/// Where v2 is mounted, when it is not alone.
fn hidden() -> Result<Option<CString>, Error> {
    let layout = Layout::detect()?;
    let unified = layout.hierarchies.iter().find(|hierarchy| hierarchy.is_v2());
    let unified = unified.filter(|_| !layout.is_pure_v2());
    let path = unified.map(|hierarchy| plan::field("cgroup", hierarchy.root.as_os_str().as_bytes()));
    path.transpose()
}

/// Away from 0, 1 and 2, which are about to be replaced in the child.
fn high(stdio: [OwnedFd; 3]) -> Result<[OwnedFd; 3], Errno> {
    let [stdin, stdout, stderr] = stdio.map(|fd| {
        if fd.as_raw_fd() > 2 {
            Ok(fd)
        } else {
            rustix::io::fcntl_dupfd_cloexec(&fd, 3)
        }
    });
    Ok([stdin?, stdout?, stderr?])
}

/// What a process that could not be executed is said to have exited with: runtimes
/// say it in words alone.
fn exit_code(message: &str) -> i32 {
    let says = |words: &str| message.contains(words);
    if says("executable file not found")
        || says("no such file or directory")
        || says("No such file or directory")
    {
        127
    } else if says("permission denied")
        || says("Permission denied")
        || says("exec format error")
        || says("not executable")
    {
        126
    } else {
        128
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_programs_that_cannot_be_executed() {
        for (message, code) in [
            ("exec: \"nope\": executable file not found in $PATH", 127),
            (
                "executable file `nope` not found in $PATH: No such file or directory",
                127,
            ),
            ("exec: \"/etc/passwd\": permission denied", 126),
            (
                "the path `/x` exists but it is not executable: Operation not permitted",
                126,
            ),
            ("cannot allocate memory", 128),
        ] {
            assert_eq!(exit_code(message), code, "{message}");
        }
    }
}
