//! Gives a tree of the host the SELinux label of the container that mounts it.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, Stat, XattrFlags, openat, setxattr},
    io::Errno,
};

use super::walk::{Visitor, open_folder, walk};

const NAME: &str = "security.selinux";

/// Folders that are the node's, however a request calls them: with another label it
/// would not work any more. What is below them may be relabelled, but for [`WHOLE`].
const NODES: [&str; 14] = [
    "/", "/etc", "/home", "/lib", "/lib64", "/opt", "/run", "/srv", "/tmp", "/usr", "/var", "/var/lib",
    "/var/log", "/root",
];
/// Those of which nothing may be.
const WHOLE: [&str; 6] = ["/bin", "/boot", "/dev", "/proc", "/sbin", "/sys"];

/// Sets the label of a file, or of a folder and all that is in it on the same file
/// system; links themselves, not what they lead to. A file system without labels is
/// left as it is.
///
/// # Errors
/// A folder of the node, or that of the first call that failed. Blocks.
pub fn relabel(path: &Path, label: &str) -> io::Result<()> {
    let real = resolve(path)?;
    let of_node = |folder: &&str| real == Path::new(*folder);
    if NODES.iter().any(of_node) || WHOLE.iter().any(|folder| real.starts_with(folder)) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it belongs to the node, which would not work with a container's label",
        ));
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = openat(CWD, &real, flags, Mode::empty())?;
    let folder = FileType::from_raw_mode(rustix::fs::fstat(&top)?.st_mode) == FileType::Directory;
    let done = set(top.as_fd(), label).and_then(|()| {
        if folder {
            walk(open_folder(&top, c".")?, &mut Relabel { label })
        } else {
            Ok(())
        }
    });
    match done {
        Err(Errno::OPNOTSUPP) => Ok(()),
        done => Ok(done?),
    }
}

/// The path without links, by the kernel's own view of what was opened.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let fd = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn set(fd: BorrowedFd<'_>, label: &str) -> Result<(), Errno> {
    // With the NUL at the end, as the kernel keeps it.
    let value = [label.as_bytes(), b"\0"].concat();
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    setxattr(name, NAME, &value, XattrFlags::empty())
}

struct Relabel<'a> {
    label: &'a str,
}

impl Visitor for Relabel<'_> {
    fn leaf(&mut self, folder: BorrowedFd<'_>, name: &CStr, _kind: FileType) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(folder, name, flags, Mode::empty()) {
            // Somebody else removes what we look at.
            Err(Errno::NOENT) => Ok(()),
            opened => set(opened?.as_fd(), self.label),
        }
    }

    fn enter(&mut self, _name: &CStr, folder: BorrowedFd<'_>, _stat: &Stat) -> Result<bool, Errno> {
        set(folder, self.label).map(|()| true)
    }

    fn leave(&mut self, _parent: BorrowedFd<'_>, _name: &CStr) -> Result<(), Errno> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn everything_in_a_folder_and_nothing_behind_links() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let outside = tempfile::tempdir().unwrap();
        let volume = tempfile::tempdir().unwrap();
        fs::create_dir(volume.path().join("folder")).unwrap();
        fs::write(volume.path().join("folder/file"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), volume.path().join("link")).unwrap();
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        relabel(volume.path(), label).unwrap();
        let read = |path: &Path| {
            let mut value = [0u8; 128];
            let length = rustix::fs::lgetxattr(path, NAME, &mut value[..])?;
            Ok::<_, Errno>(
                String::from_utf8_lossy(&value[..length])
                    .trim_end_matches('\0')
                    .to_owned(),
            )
        };
        // A file system without them, such as an old tmpfs, keeps none.
        let Ok(top) = read(volume.path()) else {
            eprintln!("skipped: {} keeps no labels", volume.path().display());
            return;
        };
        assert_eq!(top, label);
        for path in ["folder", "folder/file", "link"] {
            assert_eq!(read(&volume.path().join(path)).unwrap(), label, "{path}");
        }
        assert!(read(outside.path()).is_err(), "a link was followed");
        // A link as the volume itself is the one that is asked for.
        relabel(&volume.path().join("link"), label).unwrap();
        assert_eq!(read(outside.path()).unwrap(), label);
    }

    #[test]
    fn what_is_the_nodes_stays_so() {
        for path in [
            "/",
            "/etc",
            "/usr/../etc",
            "/proc/self",
            "/sys/kernel",
            "/dev/null",
        ] {
            let error = relabel(Path::new(path), "a:b:c:d").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{path}");
        }
    }
}
