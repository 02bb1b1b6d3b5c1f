//! The first process of a pid namespace that a pod's containers share: it reaps, and
//! ends when it is told to. No program: the child of clone stays in this function.

use std::convert::Infallible;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::thread::{
    set_keep_capabilities, set_name, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::sys::clone::exit;
use crate::sys::{capability, descriptor, signal};

use super::identity;
use super::process::Capabilities;
use super::step::{At, Step, Walk};
use super::{channel, child};

/// The user of a process that needs nothing, as that of the well-known pause image.
pub const NOBODY: u32 = 65535;

/// Drops everything, becomes the user `nobody`, says Ready, waits for Start, and reaps
/// for ever.
pub fn run(socket: BorrowedFd<'_>, null: BorrowedFd<'_>, nobody: u32) -> ! {
    let Err(failure) = walk(socket, null, nobody);
    child::fail(&failure, socket)
}

fn walk(socket: BorrowedFd<'_>, null: BorrowedFd<'_>, nobody: u32) -> Walk<Infallible> {
    // Blocked, so that they wait for us even where the default would be to ignore them,
    // which for the first process of a namespace is all of them.
    signal::block_all().at(Step::Signals)?;
    // /proc/PID/comm: what people see in ps.
    let _ = set_name(c"berth-sandbox");
    for number in 0..3 {
        descriptor::install(null, number).at(Step::Stdio)?;
    }
    child::close_all_but(socket, std::iter::empty())?;
    capability::limit_bounding(0).at(Step::Bounding)?;
    set_keep_capabilities(false).at(Step::Uid)?;
    set_thread_groups(&[]).at(Step::Groups)?;
    let (uid, gid) = (
        rustix::process::Uid::from_raw(nobody),
        rustix::process::Gid::from_raw(nobody),
    );
    set_thread_res_gid(gid, gid, gid).at(Step::Gid)?;
    set_thread_res_uid(uid, uid, uid).at(Step::Uid)?;
    identity::make_undumpable()?;
    identity::set_capabilities(&Capabilities::default())?;
    set_no_new_privs(true).at(Step::NoNewPrivs)?;
    channel::say_ready(socket, None).at(Step::Talk)?;
    if !channel::wait(socket) {
        exit(128);
    }
    // There is no exec to close it: end-of-file tells the parent that all is well.
    descriptor::close_all_but(&[]).at(Step::CloseFiles)?;
    reap()
}

fn reap() -> ! {
    loop {
        match signal::wait() {
            Ok(libc::SIGTERM | libc::SIGINT) => exit(0),
            Ok(_) | Err(Errno::INTR) => signal::reap_all(),
            Err(_) => exit(1),
        }
    }
}
