//! A process as the plan describes it, in the form that the child needs.

use std::ffi::CString;
use std::path::Path;

use rustix::process::{Gid, Resource, Uid};
use rustix::termios::Winsize;

use crate::proto::plan::{self as proto, Rlimit};
use crate::sys::capability;
use crate::sys::exec::Strings;
use crate::sys::seccomp::Program;

use super::Error;
use super::plan;
use super::user_namespace::Ranges;

#[derive(Debug)]
pub struct Prepared {
    pub args: Strings,
    pub env: Strings,
    /// What is executed: tried in order.
    pub candidates: Vec<CString>,
    pub cwd: CString,
    pub uid: Uid,
    /// The node's number of that user.
    pub host_uid: u32,
    pub gid: Gid,
    pub groups: Vec<Gid>,
    pub capabilities: Capabilities,
    pub no_new_privs: bool,
    pub seccomp: Option<Program>,
    pub limits: Vec<(Resource, u32, rustix::process::Rlimit)>,
    pub oom_score_adj: Option<i32>,
    /// Size; present when a terminal is asked for.
    pub terminal: Option<Winsize>,
    /// What is written to attr/apparmor/exec and to attr/exec.
    pub apparmor: Option<CString>,
    pub selinux: Option<CString>,
    pub umask: u32,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Capabilities {
    pub bounding: u64,
    pub sets: capability::Sets,
    pub ambient: u64,
}

impl Prepared {
    /// Whether a security module is to have its say at the exec.
    pub fn has_label(&self) -> bool {
        self.apparmor.is_some() || self.selinux.is_some()
    }
}

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `user`: of the user namespace it will be in, of which all its ids are.
pub fn prepare(process: &proto::Process, user: Option<&Ranges>) -> Result<Prepared, Error> {
    let command = process.args.first().filter(|command| !command.is_empty());
    let command = command.ok_or_else(|| Error::plan("process.args", "there is no command"))?;
    let args = strings("process.args", process.args.iter().map(String::as_bytes))?;
    let env = strings("process.env", process.env.iter().map(Vec::as_slice))?;
    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    let seccomp = match process.seccomp.as_ref() {
        [] => None,
        bytes => Some(Program::parse(bytes, process.seccomp_flags).ok_or_else(|| {
            Error::plan("process.seccomp", format!("{} bytes are no program", bytes.len()))
        })?),
    };
    let (apparmor, selinux) = labels(process)?;
    let uid = id("process.uid", process.uid)?;
    let gid = id("process.gid", process.gid)?;
    let host_uid = user.map_or(Some(uid), |user| user.host_uid(uid));
    let host_uid = host_uid.ok_or_else(|| unmapped("process.uid", uid))?;
    if let Some(user) = user {
        let lost = |gid: &&u32| user.host_gid(**gid).is_none();
        if let Some(gid) = std::iter::once(&gid).chain(&process.groups).find(lost) {
            return Err(unmapped("process.gid", *gid));
        }
    }
    Ok(Prepared {
        host_uid,
        candidates: candidates(command, &process.env)?,
        args: Strings::new(args),
        env: Strings::new(env),
        cwd: plan::path("process.cwd", cwd)?,
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        groups: process
            .groups
            .iter()
            .map(|group| id("process.groups", *group).map(Gid::from_raw))
            .collect::<Result<_, _>>()?,
        capabilities: capabilities(process.capabilities.as_ref(), user.is_some()),
        no_new_privs: process.no_new_privs,
        seccomp,
        limits: process.rlimits.iter().map(limit).collect::<Result<_, _>>()?,
        oom_score_adj: oom_score_adj(process.oom_score_adj)?,
        terminal: process.terminal.then(|| size(process)),
        apparmor,
        selinux,
        umask: process.umask.unwrap_or(0o022) & 0o777,
    })
}

/// -1 means "leave it" to setresuid and is nobody's number.
fn id(field: &str, id: u32) -> Result<u32, Error> {
    if id == u32::MAX {
        return Err(Error::plan(field, "4294967295 (-1) is not an id"));
    }
    Ok(id)
}

fn unmapped(field: &str, id: u32) -> Error {
    Error::plan(field, format!("{id} is outside of the user namespace's ranges"))
}

fn strings<'a>(field: &str, from: impl Iterator<Item = &'a [u8]>) -> Result<Vec<CString>, Error> {
    from.map(|text| plan::field(field, text)).collect()
}

/// As execvp does: a name without a slash is looked for in PATH. Entries that are
/// not absolute would depend on the working folder and are left out.
fn candidates(command: &str, env: &[Vec<u8>]) -> Result<Vec<CString>, Error> {
    if command.contains('/') {
        return Ok(vec![plan::field("process.args", command)?]);
    }
    // The last one wins, as for most programs that read their environment.
    let path = env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH);
    path.split(|byte| *byte == b':')
        .filter(|folder| folder.first() == Some(&b'/'))
        .map(|folder| plan::field("process.env", [folder, b"/", command.as_bytes()].concat()))
        .collect()
}

/// What this process does not hold itself it cannot give: "privileged" means the
/// capabilities one has. In a user namespace all are there, whoever joins it.
fn capabilities(wanted: Option<&proto::Capabilities>, user: bool) -> Capabilities {
    let Some(wanted) = wanted else {
        return Capabilities::default();
    };
    let held = if user {
        capability::known()
    } else {
        capability::get().map_or(0, |sets| sets.permitted) & capability::bounding()
    };
    let permitted = wanted.permitted & held;
    // What is inheritable must be in the bounding set, for it is dropped first.
    let inheritable = wanted.inheritable & held & wanted.bounding;
    Capabilities {
        bounding: wanted.bounding & held,
        sets: capability::Sets {
            effective: wanted.effective & permitted,
            permitted,
            inheritable,
        },
        ambient: wanted.ambient & permitted & inheritable,
    }
}

fn limit(limit: &Rlimit) -> Result<(Resource, u32, rustix::process::Rlimit), Error> {
    const RESOURCES: [(libc::__rlimit_resource_t, Resource); 16] = [
        (libc::RLIMIT_CPU, Resource::Cpu),
        (libc::RLIMIT_FSIZE, Resource::Fsize),
        (libc::RLIMIT_DATA, Resource::Data),
        (libc::RLIMIT_STACK, Resource::Stack),
        (libc::RLIMIT_CORE, Resource::Core),
        (libc::RLIMIT_RSS, Resource::Rss),
        (libc::RLIMIT_NPROC, Resource::Nproc),
        (libc::RLIMIT_NOFILE, Resource::Nofile),
        (libc::RLIMIT_MEMLOCK, Resource::Memlock),
        (libc::RLIMIT_AS, Resource::As),
        (libc::RLIMIT_LOCKS, Resource::Locks),
        (libc::RLIMIT_SIGPENDING, Resource::Sigpending),
        (libc::RLIMIT_MSGQUEUE, Resource::Msgqueue),
        (libc::RLIMIT_NICE, Resource::Nice),
        (libc::RLIMIT_RTPRIO, Resource::Rtprio),
        (libc::RLIMIT_RTTIME, Resource::Rttime),
    ];
    let found = RESOURCES.iter().find(|(number, _)| *number == limit.resource);
    let (number, resource) = *found.ok_or_else(|| {
        Error::plan(
            "process.rlimits",
            format!("resource {} is unknown", limit.resource),
        )
    })?;
    if limit.soft > limit.hard {
        let reason = format!(
            "resource {number}: soft {} is above hard {}",
            limit.soft, limit.hard
        );
        return Err(Error::plan("process.rlimits", reason));
    }
    let value = |value| (value != u64::MAX).then_some(value);
    Ok((
        resource,
        number,
        rustix::process::Rlimit {
            current: value(limit.soft),
            maximum: value(limit.hard),
        },
    ))
}

pub fn oom_score_adj(wanted: Option<i32>) -> Result<Option<i32>, Error> {
    match wanted {
        Some(score) if !(-1000..=1000).contains(&score) => Err(Error::plan(
            "process.oom_score_adj",
            format!("{score} is not within -1000 and 1000"),
        )),
        wanted => Ok(wanted),
    }
}

fn size(process: &proto::Process) -> Winsize {
    let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    Winsize {
        ws_col: cells(process.console_width),
        ws_row: cells(process.console_height),
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// A label that the kernel would ignore must not pass silently.
fn labels(process: &proto::Process) -> Result<(Option<CString>, Option<CString>), Error> {
    let mut apparmor = None;
    let profile = process.apparmor_profile.as_str();
    if !profile.is_empty() {
        let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled");
        if enabled.is_ok_and(|text| text.starts_with(b"Y")) {
            apparmor = Some(plan::field(
                "process.apparmor_profile",
                format!("exec {profile}"),
            )?);
        } else if profile != "unconfined" {
            let reason = format!("{profile:?} cannot be applied: the kernel has no AppArmor, or it is off");
            return Err(Error::plan("process.apparmor_profile", reason));
        }
    }
    let mut selinux = None;
    if !process.selinux_label.is_empty() {
        if !Path::new("/sys/fs/selinux/enforce").exists() {
            let reason = format!(
                "{:?} cannot be applied: the kernel has no SELinux, or it is off",
                process.selinux_label
            );
            return Err(Error::plan("process.selinux_label", reason));
        }
        selinux = Some(plan::field(
            "process.selinux_label",
            process.selinux_label.as_str(),
        )?);
    }
    Ok((apparmor, selinux))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(command: &str, env: &[&str]) -> Vec<String> {
        let env: Vec<_> = env.iter().map(|entry| entry.as_bytes().to_vec()).collect();
        let found = candidates(command, &env).unwrap();
        found
            .into_iter()
            .map(|name| name.into_string().unwrap())
            .collect()
    }

    #[test]
    fn commands_are_looked_for_in_path() {
        assert_eq!(names("/bin/x", &["PATH=/a"]), ["/bin/x"]);
        assert_eq!(names("./x", &[]), ["./x"]);
        assert_eq!(names("x", &["PATH=/a:.::/b", "A=1"]), ["/a/x", "/b/x"]);
        assert_eq!(names("x", &[]).len(), 6);
        assert!(names("x", &["PATH="]).is_empty());
    }

    #[test]
    fn wrong_processes_are_refused() {
        let wrong = |process: proto::Process| prepare(&process, None).unwrap_err().to_string();
        let good = || proto::Process {
            args: vec!["x".into()],
            ..Default::default()
        };
        assert!(wrong(proto::Process::default()).contains("no command"));
        assert!(
            wrong(proto::Process {
                cwd: "a".into(),
                ..good()
            })
            .contains("absolute")
        );
        assert!(
            wrong(proto::Process {
                uid: u32::MAX,
                ..good()
            })
            .contains("process.uid")
        );
        assert!(
            wrong(proto::Process {
                seccomp: vec![1; 9].into(),
                ..good()
            })
            .contains("9 bytes")
        );
        assert!(
            wrong(proto::Process {
                oom_score_adj: Some(-2000),
                ..good()
            })
            .contains("-2000")
        );
        assert!(
            wrong(proto::Process {
                env: vec![b"A=\0".to_vec()],
                ..good()
            })
            .contains("NUL")
        );
        let rlimits = vec![Rlimit {
            resource: 99,
            soft: 1,
            hard: 1,
        }];
        assert!(wrong(proto::Process { rlimits, ..good() }).contains("99"));
    }
}
