//! What berthd tells its shims of the node, so that a start costs the same however many
//! pods there are.
//!
//! Both things that it takes off them were as long as the mount table, which grows with
//! every pod and with every volume of a kubelet: reading it to find the cgroup
//! hierarchies, and copying it for the mount namespace of an init. Mounts are all made
//! detached, so an init needs nothing of the node's: its namespace is a copy of one that is
//! as good as empty.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::Path,
    thread,
};

use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount},
    process::{chdir, pivot_root},
};

use crate::{cgroup::Layout, proto::plan, sys::namespace};

/// For [`plan::LaunchPlan`]. While it lives, so does the namespace that it names.
#[derive(Debug)]
pub struct Surroundings {
    told: plan::Surroundings,
    _bare: Option<File>,
}

impl Surroundings {
    /// Looks around. `folder` exists and is berthd's own; nothing in it is touched.
    pub fn detect(folder: &Path) -> Surroundings {
        let bare = bare_mounts(folder)
            .inspect_err(|error| {
                tracing::warn!(%error, "make an empty mount namespace: inits get copies of the node's mounts, and start slower the more there are");
            })
            .ok();
        let path = bare
            .as_ref()
            .map(|file| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        Surroundings {
            told: plan::Surroundings {
                hierarchies: Layout::detect().map(Layout::told).unwrap_or_default(),
                bare_mounts: path.unwrap_or_default(),
            },
            _bare: bare,
        }
    }

    pub fn told(&self) -> plan::Surroundings {
        self.told.clone()
    }
}

/// See `Surroundings.bare_mounts` in plan.proto. By a thread, for it moves there and stays.
fn bare_mounts(folder: &Path) -> io::Result<File> {
    thread::scope(|scope| {
        let made = thread::Builder::new()
            .name("mounts".into())
            .spawn_scoped(scope, || empty_namespace(folder))?;
        made.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn empty_namespace(folder: &Path) -> io::Result<File> {
    namespace::unshare(namespace::MOUNT)?;
    // First of all, or what follows would happen to the node.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount(
        "berth",
        folder,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        c"size=16k,mode=755",
    )?;
    chdir(folder)?;
    for name in ["root", "proc", "sys"] {
        fs::create_dir(name)?;
    }
    // A user namespace may only mount these where whole ones are in sight
    // (mount_too_revealing in the kernel's fs/namespace.c).
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "proc", "proc", flags, None)?;
    mount("sysfs", "sys", "sysfs", flags, None)?;
    // The node is stacked upon the new root, and taken away.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    mount_remount("/", flags | MountFlags::RDONLY, c"")?;
    File::open("/proc/thread-self/ns/mnt")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts() -> String {
        fs::read_to_string("/proc/self/mountinfo").unwrap()
    }

    #[test]
    fn the_namespace_is_empty_and_the_nodes_is_as_before() {
        let folder = tempfile::tempdir().unwrap();
        let before = mounts();
        let surroundings = Surroundings::detect(folder.path());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let mounted = |table: &str| table.contains(folder.path().to_str().unwrap());
        assert!(!mounted(&before) && !mounted(&mounts()));
        let told = surroundings.told();
        assert_eq!(
            told.hierarchies.len(),
            Layout::detect().unwrap().hierarchies.len()
        );
        let seen = thread::spawn(move || {
            let bare = File::open(told.bare_mounts).unwrap();
            // Who shares a working folder cannot go elsewhere.
            namespace::unshare(namespace::MOUNT).unwrap();
            namespace::join(std::os::fd::AsFd::as_fd(&bare), namespace::MOUNT).unwrap();
            let mut names: Vec<_> = fs::read_dir("/")
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            (fs::read_to_string("/proc/thread-self/mountinfo").unwrap(), names)
        });
        let (table, names) = seen.join().unwrap();
        assert_eq!(names, ["proc", "root", "sys"]);
        assert_eq!(table.lines().count(), 3, "{table}");
    }
}
