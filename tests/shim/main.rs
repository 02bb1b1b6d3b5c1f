//! Stories of the shim, with the real binary and real containers: needs root, and
//! a machine whose cgroups can be written.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attach;
mod exec;
mod fixture;
mod frames;
mod life;
mod log;

/// Whether containers can be made here; says why not.
fn can_run() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return false;
    }
    if !std::path::Path::new("/bin/busybox").exists() {
        println!("skipped: needs busybox-static");
        return false;
    }
    true
}
