//! The last part of a child's walk, for inits and execs alike: limits, label, user,
//! capabilities, seccomp, and the command.
//!
//! The order follows what each step takes from the ones behind it: bounding set and
//! seccomp (without no_new_privs) need capabilities that the user switch drops; with
//! no_new_privs the program is loaded last, so that it need not allow our own calls.

use std::convert::Infallible;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, getrlimit, set_dumpable_behavior, setrlimit, umask};
use rustix::thread::{
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::sys::{capability, descriptor, exec, folder, namespace};

use super::process::{Capabilities, Prepared};
use super::step::{At, Failure, Step, Walk};

/// Descriptors that must outlive the closing of everything else.
#[derive(Debug, Default)]
pub struct Labels {
    apparmor: Option<OwnedFd>,
    selinux: Option<OwnedFd>,
}

impl Labels {
    /// Opens the files while the process is root, through a procfs that nobody covers.
    pub fn open(process: &Prepared, procfs: BorrowedFd<'_>) -> Walk<Self> {
        let open = |path: &CStr| openat(procfs, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let mut labels = Self::default();
        if process.apparmor.is_some() {
            let file = match open(c"thread-self/attr/apparmor/exec") {
                // Before Linux 5.1, and where AppArmor is the only module.
                Err(Errno::NOENT) => open(c"thread-self/attr/exec"),
                answer => answer,
            };
            labels.apparmor = Some(file.at(Step::OpenLabel)?);
        }
        if process.selinux.is_some() {
            labels.selinux = Some(open(c"thread-self/attr/exec").at(Step::OpenLabel)?);
        }
        Ok(labels)
    }

    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.apparmor.iter().chain(&self.selinux).map(AsFd::as_fd)
    }

    fn write(&self, process: &Prepared) -> Walk<()> {
        let files = [
            (&self.apparmor, &process.apparmor),
            (&self.selinux, &process.selinux),
        ];
        for (file, label) in files {
            if let (Some(file), Some(label)) = (file, label) {
                rustix::io::write(file, label.to_bytes()).at(Step::Label)?;
            }
        }
        Ok(())
    }
}

/// Nobody may attach to this process, or open its files by /proc, until it has executed.
pub fn make_undumpable() -> Walk<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at(Step::Undumpable)
}

/// Sets oom_score_adj, or the lowest value that is allowed without
/// CAP_SYS_RESOURCE: a container must not fail to start for it. Takes a right on the
/// node, so it comes before a user namespace is joined.
pub fn set_oom_score(wanted: Option<i32>, procfs: BorrowedFd<'_>) -> Walk<()> {
    wanted.map_or(Ok(()), |wanted| oom_score(wanted, procfs).at(Step::OomScore))
}

/// In a user namespace that was joined: from the node's root, who is nobody there,
/// becomes the namespace's own.
pub fn become_root() -> Walk<()> {
    set_thread_groups(&[]).at(Step::BecomeRoot)?;
    let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    set_thread_res_gid(gid, gid, gid).at(Step::BecomeRoot)?;
    set_thread_res_uid(uid, uid, uid).at(Step::BecomeRoot)?;
    make_undumpable()?;
    new_session_keyring()
}

/// Keys of whoever started us are nobody's business here; in a user namespace the
/// keyring must be its root's own.
pub fn new_session_keyring() -> Walk<()> {
    match namespace::new_session_keyring() {
        // A kernel without keys, or a seccomp filter around us.
        Err(Errno::NOSYS | Errno::PERM) => Ok(()),
        answer => answer.at(Step::Keyring),
    }
}

fn oom_score(wanted: i32, procfs: BorrowedFd<'_>) -> Result<(), Errno> {
    let file = openat(
        procfs,
        c"self/oom_score_adj",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    match write_number(&file, wanted) {
        Err(Errno::ACCESS | Errno::PERM) => {}
        answer => return answer,
    }
    // The floor is somewhere between what was asked (refused) and what is (allowed):
    // the kernel does not tell it, so it is searched.
    let mut refused = wanted;
    let mut allowed = read_number(&file)?;
    while refused + 1 < allowed {
        let middle = i32::midpoint(refused, allowed);
        match write_number(&file, middle) {
            Ok(()) => allowed = middle,
            Err(Errno::ACCESS | Errno::PERM) => refused = middle,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn write_number(file: &OwnedFd, number: i32) -> Result<(), Errno> {
    let mut digits = [0u8; 12];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        if let (Some(digit), Ok(value)) = (digits.get_mut(at), u8::try_from(rest % 10)) {
            *digit = b'0' + value;
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        if let Some(sign) = digits.get_mut(at) {
            *sign = b'-';
        }
    }
    rustix::io::pwrite(file, digits.get(at..).unwrap_or_default(), 0)?;
    Ok(())
}

fn read_number(file: &OwnedFd) -> Result<i32, Errno> {
    let mut text = [0u8; 16];
    let length = rustix::io::pread(file, &mut text, 0)?;
    let text = std::str::from_utf8(text.get(..length).unwrap_or_default()).map_err(|_| Errno::INVAL)?;
    text.trim().parse().map_err(|_| Errno::INVAL)
}

/// Installs descriptors 0, 1 and 2.
pub fn install_stdio(stdio: [BorrowedFd<'_>; 3]) -> Walk<()> {
    for (fd, number) in stdio.into_iter().zip(0..) {
        descriptor::install(fd, number).at(Step::Stdio)?;
    }
    Ok(())
}

/// Becomes what the plan says and executes. Returns only to say what failed.
pub fn finish(process: &Prepared, labels: &Labels) -> Walk<Infallible> {
    set_limits(process)?;
    umask(Mode::from_raw_mode(process.umask));
    if process.no_new_privs {
        set_no_new_privs(true).at(Step::NoNewPrivs)?;
    }
    labels.write(process)?;
    capability::limit_bounding(process.capabilities.bounding).at(Step::Bounding)?;
    if !process.no_new_privs {
        load_seccomp(process)?;
    }
    // As root first: the user may not be allowed to reach a folder that it was
    // given to work in; as the user then: root may not be allowed on NFS.
    let entered = match rustix::process::chdir(process.cwd.as_c_str()) {
        Ok(()) => true,
        Err(Errno::ACCESS | Errno::PERM) => false,
        Err(errno) => return Err(Failure::new(Step::Cwd, errno)),
    };
    switch_user(process)?;
    if !entered {
        rustix::process::chdir(process.cwd.as_c_str()).at(Step::Cwd)?;
    }
    if !folder::is_reachable().at(Step::Cwd)? {
        return Err(Failure::new(Step::Cwd, Errno::XDEV));
    }
    if process.no_new_privs {
        load_seccomp(process)?;
    }
    Err(execute(process))
}

fn load_seccomp(process: &Prepared) -> Walk<()> {
    process
        .seccomp
        .as_ref()
        .map_or(Ok(()), |program| program.load().at(Step::Seccomp))
}

/// A hard limit that may not be raised (without CAP_SYS_RESOURCE) becomes the one that is.
pub fn set_limits(process: &Prepared) -> Walk<()> {
    for (resource, number, wanted) in &process.limits {
        let index = usize::try_from(*number).unwrap_or(usize::MAX);
        match setrlimit(*resource, *wanted) {
            Err(Errno::PERM) => {
                let mut limit = getrlimit(*resource);
                let lower = |a: Option<u64>, b: Option<u64>| match (a, b) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, None) => a,
                    (None, b) => b,
                };
                limit.maximum = lower(wanted.maximum, limit.maximum);
                limit.current = lower(wanted.current, limit.maximum);
                setrlimit(*resource, limit).at_index(Step::Limit, index)?;
            }
            answer => answer.at_index(Step::Limit, index)?,
        }
    }
    Ok(())
}

fn switch_user(process: &Prepared) -> Walk<()> {
    set_keep_capabilities(true).at(Step::Uid)?;
    set_thread_groups(&process.groups).at(Step::Groups)?;
    set_thread_res_gid(process.gid, process.gid, process.gid).at(Step::Gid)?;
    set_thread_res_uid(process.uid, process.uid, process.uid).at(Step::Uid)?;
    // The kernel sets fs.suid_dumpable at a change of user.
    make_undumpable()?;
    set_keep_capabilities(false).at(Step::Uid)?;
    set_capabilities(&process.capabilities)
}

pub fn set_capabilities(capabilities: &Capabilities) -> Walk<()> {
    capability::set(capabilities.sets).at(Step::Capabilities)?;
    match capability::set_ambient(capabilities.ambient) {
        // A kernel without them, and none asked for.
        Err(Errno::INVAL) if capabilities.ambient == 0 => Ok(()),
        answer => answer.at(Step::Ambient),
    }
}

/// Tries each candidate; one that exists but may not be executed is what is told, as execvp does.
fn execute(process: &Prepared) -> Failure {
    let mut told = Errno::NOENT;
    for candidate in &process.candidates {
        match exec::execve(candidate, &process.args, &process.env) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => told = Errno::ACCESS,
            errno => return Failure::new(Step::Exec, errno),
        }
    }
    Failure::new(Step::Exec, told)
}
