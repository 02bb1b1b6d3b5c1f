//! Volumes: files and folders, read-only, and propagation in both directions.

use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use super::harness::{Container, bind, possible};
use crate::proto::plan::Propagation;

/// A shared mount on the host, gone at the end.
struct Shared(tempfile::TempDir);

impl Shared {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        mount("berth-test", folder.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        let shared = Self(folder);
        mount_change(shared.path(), MountPropagationFlags::SHARED).unwrap();
        std::fs::create_dir(shared.path().join("later")).unwrap();
        shared
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn mount_later(&self) {
        mount(
            "later",
            self.path().join("later"),
            "tmpfs",
            MountFlags::empty(),
            None,
        )
        .unwrap();
        std::fs::write(self.path().join("later/file"), "late\n").unwrap();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = unmount(self.path().join("later"), UnmountFlags::DETACH);
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

fn container(shared: &Shared, propagation: Propagation) -> Container {
    let mut container = Container::new("echo up; sleep 100");
    let mut volume = bind(shared.path(), "/volume");
    volume.propagation = propagation.into();
    container.plan.mounts.push(volume);
    let process = container.process().capabilities.as_mut().unwrap();
    for set in [
        &mut process.bounding,
        &mut process.effective,
        &mut process.permitted,
    ] {
        // CAP_SYS_ADMIN, to mount.
        *set |= 1 << 21;
    }
    container
}

/// Whether a mount on the host arrives in the container, and the other way.
fn arrives(propagation: Propagation) -> (bool, bool) {
    let shared = Shared::new();
    let container = container(&shared, propagation);
    let running = container.start();
    assert_eq!(running.line(), "up");
    shared.mount_later();
    let (text, _) = running.exec("look", "cat /volume/later/file");
    let inwards = text == "late\n";
    std::fs::create_dir(shared.path().join("own")).unwrap();
    let mut process =
        super::harness::process("mount -t tmpfs own /volume/own && echo own > /volume/own/file");
    process.capabilities = container.plan.process.as_ref().unwrap().capabilities;
    let (started, output) = running.try_exec("mount", &process).unwrap();
    let text = super::harness::read_all(&output);
    assert_eq!(super::harness::wait(&started.pidfd), 0, "{text}");
    let outwards = shared.path().join("own/file").exists();
    (inwards, outwards)
}

#[test]
fn propagation_is_what_was_asked_for() {
    if !possible() {
        return;
    }
    assert_eq!(arrives(Propagation::Private), (false, false));
    assert_eq!(arrives(Propagation::Slave), (true, false));
    assert_eq!(arrives(Propagation::Shared), (true, true));
}

#[test]
fn read_only_can_be_recursive() {
    if !possible() {
        return;
    }
    for (recursive, inner) in [(false, "written"), (true, "refused")] {
        let shared = Shared::new();
        shared.mount_later();
        let mut container = container(&shared, Propagation::Private);
        let volume = container.plan.mounts.last_mut().unwrap();
        (volume.attr_set, volume.attr_recursive) = (1, recursive);
        container.process().args[3] = "echo x > /volume/x && echo written || echo refused; \
                                       echo x > /volume/later/x && echo written || echo refused"
            .into();
        let (text, _) = container.run();
        let answers: Vec<_> = text.lines().filter(|line| !line.contains("sh:")).collect();
        assert_eq!(answers, ["refused", inner], "{text}");
    }
}

#[test]
fn files_and_folders_are_made_as_mount_points() {
    if !possible() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), "content\n").unwrap();
    let mut container = Container::new("cat /new/place/file /run-link/deep/file");
    std::os::unix::fs::symlink("/run", container.at("layers/1/run-link")).unwrap();
    container
        .plan
        .mounts
        .push(bind(&source.path().join("file"), "/new/place/file"));
    container.plan.mounts.push(bind(source.path(), "/run-link/deep"));
    assert_eq!(container.run().0, "content\ncontent\n");
}
