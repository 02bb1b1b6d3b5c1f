//! A disk in a file, mounted on a node's root: it can be copied as it is, and stand still.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;

use crate::{Result, kernel};

/// The disks of one node, numbered; one is mounted at a time. Unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    node: PathBuf,
    root: PathBuf,
}

impl Disk {
    /// Whether there can be any; says why not.
    pub fn can_be() -> bool {
        let can = Path::new("/dev/loop-control").exists() && Path::new("/usr/sbin/mkfs.ext4").exists();
        if !can {
            eprintln!("skipped: no loop devices, or no mkfs.ext4, here");
        }
        can
    }

    /// For the node in the folder `node`, whose root is `root`.
    pub fn of(node: &Path, root: &Path) -> Disk {
        Disk {
            node: node.into(),
            root: root.into(),
        }
    }

    pub fn file(&self, number: usize) -> PathBuf {
        self.node.join(format!("disk{number}"))
    }

    /// Makes an empty one, of 160 MiB.
    pub fn make(&self, number: usize) -> Result {
        let path = self.file(number);
        fs::File::create(&path)?.set_len(160 << 20)?;
        run("mkfs.ext4", &["-q", "-F", &path.to_string_lossy()])
    }

    pub fn mount(&self, number: usize) -> Result {
        fs::create_dir_all(&self.root)?;
        let (file, root) = (self.file(number), self.root.to_string_lossy());
        run("mount", &["-o", "loop", &file.to_string_lossy(), &root])
    }

    /// From now on whoever writes waits; nothing that is read from memory does.
    pub fn freeze(&self) -> Result {
        run("fsfreeze", &["-f", &self.root.to_string_lossy()])
    }

    pub fn thaw(&self) -> Result {
        run("fsfreeze", &["-u", &self.root.to_string_lossy()])
    }

    pub fn unmount(&self) {
        // A frozen one would keep all who touched it, and be kept by them.
        let _ = self.thaw();
        while kernel::output("findmnt", &["-n", "-o", "TARGET", &self.root.to_string_lossy()])
            .contains("/root")
        {
            kernel::output("umount", &["-l", &self.root.to_string_lossy()]);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

fn run(program: &str, arguments: &[&str]) -> Result {
    let output = Command::new(program).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(())
}
