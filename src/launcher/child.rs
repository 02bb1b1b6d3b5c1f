//! The walk of an init after clone: no allocation, no lock, no log. What it needs was
//! prepared by the parent; what fails is a step and an errno.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{WaitId, WaitIdOptions, fchdir, pivot_root, setsid, umask, waitid};

use crate::sys::clone::{Forked, exit};
use crate::sys::mount::{self, Attributes};
use crate::sys::{descriptor, signal};

use super::console::{self, Console};
use super::filesystem::{self, RDONLY};
use super::identity::{self, Labels};
use super::path::{FOLLOW, Leaf, find_or_make};
use super::prepare::Prepared;
use super::step::{At, Failure, Step, Walk};
use super::{channel, device, mask, member, process, sandbox_init};

/// Never returns: executes, or says what failed and exits with the code for it.
pub fn run(prepared: &Prepared, socket: BorrowedFd<'_>) -> ! {
    let Err(failure) = walk(prepared, socket);
    fail(&failure, socket)
}

pub fn fail(failure: &Failure, socket: BorrowedFd<'_>) -> ! {
    channel::say_failed(socket, failure);
    exit(failure.exit_code())
}

fn walk(prepared: &Prepared, socket: BorrowedFd<'_>) -> Walk<Infallible> {
    begin(&prepared.keep, &prepared.tasks)?;
    let user = prepared.namespaces.user().is_some();
    let mut procfs = filesystem::private_procfs()?;
    identity::set_oom_score(prepared.oom_score_adj, procfs.as_fd())?;
    prepared.namespaces.leave_mounts()?;
    if user {
        if let Some(process) = &prepared.process {
            identity::set_limits(process)?;
        }
        prepared.namespaces.enter_user(socket)?;
    }
    prepared.namespaces.join()?;
    if let Some(hostname) = &prepared.hostname {
        rustix::system::sethostname(hostname.to_bytes()).at(Step::Hostname)?;
    }
    let slave = Attributes {
        set: 0,
        clear: 0,
        propagation: mount::SLAVE,
    };
    mount::set_attributes_at(CWD, c"/", slave, true).at(Step::CutPropagation)?;
    let root = prepared.root.attach(&prepared.rootfs)?;
    if user {
        // Not before: the way to the mount point is open to the node's root alone.
        identity::become_root()?;
    }
    let Some(process) = &prepared.process else {
        change_root(root.as_fd())?;
        sandbox_init::run(socket, prepared.stdio[0].as_fd(), prepared.nobody);
    };
    if user {
        // Of this process and its pid namespace.
        procfs = filesystem::private_procfs()?;
    }
    let console = fill_root(prepared, process, root.as_fd())?;
    write_sysctls(prepared, procfs.as_fd())?;
    if prepared.waits_for_hooks {
        channel::say_hooks(socket).at(Step::Talk)?;
        if !channel::wait(socket) {
            exit(128);
        }
    }
    change_root(root.as_fd())?;
    finish_root(prepared, root.as_fd())?;

    install_stdio(prepared.stdio.each_ref().map(AsFd::as_fd), console.as_ref())?;
    let master = console.as_ref().map(|console| console.master.as_fd());
    if prepared.namespaces.late_pids().is_some() {
        member::execute(process, &[], master, socket, true);
    }
    if master.is_some() {
        control_terminal()?;
    }
    let labels = Labels::open(process, procfs.as_fd())?;
    channel::say_ready(socket, master).at(Step::Talk)?;
    execute(process, &labels, socket, true)
}

/// The end of the walk, when `waits` is set after the parent's word. Does not return, so
/// that nobody drops a descriptor which is closed here.
pub fn execute(process: &process::Prepared, labels: &Labels, socket: BorrowedFd<'_>, waits: bool) -> ! {
    let closed = close_all_but(socket, labels.descriptors());
    let result = closed.and_then(|()| {
        if waits && !channel::wait(socket) {
            // The shim died between create and start: nobody would ever start this.
            exit(128);
        }
        identity::finish(process, labels)
    });
    let Err(failure) = result;
    fail(&failure, socket)
}

/// What every child does first: nothing of the parent's is left but what it needs, and it
/// joins the cgroups whose `tasks` these are.
pub fn begin(keep: &[RawFd], tasks: &[OwnedFd]) -> Walk<()> {
    identity::make_undumpable()?;
    signal::reset();
    descriptor::close_all_but(keep).at(Step::CloseFiles)?;
    join_cgroups(tasks)?;
    setsid().at(Step::Session)?;
    identity::new_session_keyring()
}

/// Joins the cgroups whose `tasks` these are.
pub fn join_cgroups(tasks: &[OwnedFd]) -> Walk<()> {
    for (index, file) in tasks.iter().enumerate() {
        // The writer itself.
        rustix::io::write(file, b"0").at_index(Step::JoinCgroup, index)?;
    }
    Ok(())
}

/// Everything that is in the root, in the order of the plan.
fn fill_root(
    prepared: &Prepared,
    process: &process::Prepared,
    root: BorrowedFd<'_>,
) -> Walk<Option<Console>> {
    umask(Mode::from_raw_mode(0o022));
    for (index, mount) in prepared.mounts.iter().enumerate() {
        mount.attach(root, index)?;
    }
    if prepared.own_dev {
        umask(Mode::empty());
        for (index, device) in prepared.devices.iter().enumerate() {
            device.make(root, index)?;
        }
        umask(Mode::from_raw_mode(0o022));
        device::make_links(root, prepared.kcore)?;
    }
    let console = match process.terminal {
        Some(size) => Some(console::open(root, process.uid.as_raw(), size).at(Step::Console)?),
        None => None,
    };
    if let Some(console) = &console
        && prepared.own_dev
    {
        console::bind(root, console.slave.as_fd()).at(Step::Console)?;
    }
    find_or_make(root, &process.cwd, Leaf::Folder, FOLLOW).at(Step::MakeCwd)?;
    mask::make_read_only(root, &prepared.readonly)?;
    mask::mask(root, &prepared.masked, &prepared.mask_options)?;
    Ok(console)
}

fn write_sysctls(prepared: &Prepared, procfs: BorrowedFd<'_>) -> Walk<()> {
    for (index, (file, value)) in prepared.sysctls.iter().enumerate() {
        let opened = openat(
            procfs,
            file.as_c_str(),
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let opened = opened.at_index(Step::Sysctl, index)?;
        rustix::io::write(&opened, value.to_bytes()).at_index(Step::Sysctl, index)?;
    }
    Ok(())
}

/// The root becomes "/", the host's is gone from this mount namespace.
fn change_root(root: BorrowedFd<'_>) -> Walk<()> {
    let host = open(
        c"/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(Step::Pivot)?;
    fchdir(root).at(Step::Pivot)?;
    // The old root is stacked upon the new one, and no folder for it is needed.
    pivot_root(c".", c".").at(Step::Pivot)?;
    fchdir(&host).at(Step::DetachHost)?;
    unmount(c".", UnmountFlags::DETACH).at(Step::DetachHost)?;
    rustix::process::chdir(c"/").at(Step::DetachHost)
}

fn finish_root(prepared: &Prepared, root: BorrowedFd<'_>) -> Walk<()> {
    let set = if prepared.readonly_root { RDONLY } else { 0 };
    if set == 0 && prepared.root_propagation == mount::PRIVATE {
        return Ok(());
    }
    let change = Attributes {
        set,
        clear: 0,
        propagation: prepared.root_propagation,
    };
    mount::set_attributes(root, change, false).at(Step::RootAttributes)
}

/// Standard input and output: those given, or the terminal.
pub fn install_stdio(stdio: [BorrowedFd<'_>; 3], console: Option<&Console>) -> Walk<()> {
    let slave = console.map(|console| [console.slave.as_fd(); 3]);
    identity::install_stdio(slave.unwrap_or(stdio))
}

/// The terminal that is standard input controls the session that the process leads.
pub fn control_terminal() -> Walk<()> {
    rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).at(Step::Console)
}

/// Closes all but standard input and output, the channel (which closes at exec) and `more`
/// (23 at most, and there are not as many hierarchies of cgroups): the root, the procfs and every mount that the walk needed (CVE-2024-21626).
pub fn close_all_but<'a>(socket: BorrowedFd<'a>, more: impl Iterator<Item = BorrowedFd<'a>>) -> Walk<()> {
    let mut keep = [socket.as_raw_fd(); 24];
    for (slot, fd) in keep.iter_mut().skip(1).zip(more) {
        *slot = fd.as_raw_fd();
    }
    keep.sort_unstable();
    descriptor::close_all_but(&keep).at(Step::CloseFiles)
}

/// In the parent: kills a child that must not live on, and reaps it.
pub fn discard(forked: Forked) {
    if let Forked::Parent { pidfd, .. } = forked {
        kill_and_reap(pidfd.as_fd());
    }
}

/// In the parent; a child that has been reaped already is no error.
pub fn kill_and_reap(pidfd: BorrowedFd<'_>) {
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
    reap(pidfd);
}

/// In the parent: waits for the end of a child.
pub fn reap(pidfd: BorrowedFd<'_>) {
    while let Err(Errno::INTR) = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {}
}
