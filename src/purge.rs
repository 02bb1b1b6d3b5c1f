//! `berthd purge`: everything that one berthd has made goes, and nothing else.
//!
//! The orderly part is [`crate::cri::purge`]: pods are stopped and removed by
//! their records, as a kubelet would have it, CNI plugins included. What is here
//! is the rest: whatever an audit still names is ended, unmounted and deleted,
//! whoever owned it, then the records and the folders. So it also works on what a
//! berthd with damaged records has left.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};

use crate::{
    audit::{self, Subject, Thing, audit},
    boot,
    cgroup::{self, Layout},
    image::remove_all,
    instance::Instance,
    network,
    runtime::cgroup_driver,
    spec::{self, apparmor::default_profile},
};

/// How long the kernel may take to let go of what was ended.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// What of the root is berthd's, or was put there for the time after the package
/// is removed.
const OF_ROOT: &[&str] = &[
    "berth.db",
    "berth.db-wal",
    "berth.db-shm",
    "blobs",
    "layers",
    "containers",
    "removed",
    "lock",
];
/// What of the state folder is.
const OF_STATE: &[&str] = &["containers", "sandboxes", "berth.sock", boot::MARK];

/// Errors of a purge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Audit(#[from] audit::Error),
    #[error("purge: {step} {path}: {source}")]
    Io {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("purge: {0}")]
    Cgroup(#[from] cgroup::Error),
    #[error("purge: {0}")]
    Driver(#[from] cgroup_driver::Error),
    #[error("purge: {0}")]
    Profile(#[from] spec::Error),
    #[error("purge: {0}")]
    Network(#[from] network::Error),
    #[error("purge: still there: {0}; what is in use ends with the process that uses it, then purge again")]
    Left(String),
    #[error("purge: {path} has things in it that are not berthd's, they stay: {names}")]
    Others { path: PathBuf, names: String },
}

/// Ends and deletes what the orderly part left, then records and folders. The
/// caller holds the lock of the root, so that no berthd runs. Blocks.
pub fn rest(subject: &Subject) -> Result<(), Error> {
    // By the records, for they say which cgroups below the kubelet's are ours;
    // without them when they cannot be read any more.
    if let Ok(found) = audit(subject) {
        take_away(found.owned.into_iter().chain(found.orphans));
    }
    for name in OF_ROOT.iter().filter(|name| name.starts_with("berth.db")) {
        remove(&subject.root.join(name))?;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut found = audit(subject)?;
        if found.orphans.is_empty() {
            break;
        }
        take_away(found.orphans.iter().cloned());
        if Instant::now() > deadline {
            found.orphans.sort();
            let names = found
                .orphans
                .iter()
                .map(|thing| format!("{} {}", thing.kind, thing.name));
            return Err(Error::Left(names.collect::<Vec<_>>().join(", ")));
        }
        std::thread::sleep(PAUSE);
    }
    // One for all instances: it goes with the one that packages install, as other
    // instances would lose it under their containers.
    if Instance::of(&subject.state).is_default() {
        default_profile::unload()?;
    }
    folder(&subject.state, OF_STATE)?;
    folder(&subject.root, OF_ROOT)
}

/// Each thing once, processes first; what fails is found by the next audit.
fn take_away(things: impl Iterator<Item = Thing>) {
    let mut things: Vec<Thing> = things.collect();
    let turn = |thing: &Thing| match thing.kind {
        "cgroup" => 0,
        "shim" => 1,
        "mount" | "namespace" => 2,
        "link" | "table" => 3,
        _ => 4,
    };
    // What is inside goes before what it is in.
    things.sort_by_key(|thing| (turn(thing), std::cmp::Reverse(thing.name.len())));
    for thing in things {
        if let Err(error) = take(&thing) {
            tracing::warn!(kind = thing.kind, name = thing.name, %error, "take away");
        }
    }
}

fn take(thing: &Thing) -> Result<(), Error> {
    let path = Path::new(&thing.name);
    match thing.kind {
        "cgroup" => end_cgroup(path),
        "shim" => {
            // "PID of ID", and the id is what the look was for.
            let pid = thing.name.split(' ').next().and_then(|pid| pid.parse().ok());
            if let Some(pid) = pid.and_then(Pid::from_raw) {
                // It may have ended by itself, for its container has.
                let _ = kill_process(pid, Signal::KILL);
            }
            Ok(())
        }
        "mount" | "namespace" => unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|errno| failed("unmount", path)(errno.into())),
        "link" => Ok(network::audit::delete_link(&thing.name)?),
        "table" => Ok(network::audit::delete_table(
            thing.name.trim_start_matches("inet "),
        )?),
        "folder" => remove_all(path).map_err(failed("remove folder", path)),
        // Addresses are in the records only.
        _ => Ok(()),
    }
}

fn end_cgroup(folder: &Path) -> Result<(), Error> {
    let hierarchies = &Layout::detect()?.hierarchies;
    let inside = |root: &Path| folder.strip_prefix(root).ok().map(Path::to_owned);
    let path = hierarchies.iter().find_map(|hierarchy| inside(&hierarchy.root));
    let Some(path) = path else { return Ok(()) };
    Ok(cgroup_driver::end_blocking(&format!("/{}", path.display()))?)
}

/// Removes what is named, and the folder when nothing else is in it.
fn folder(path: &Path, ours: &[&str]) -> Result<(), Error> {
    for name in ours {
        remove(&path.join(name))?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            let entries = fs::read_dir(path).map_err(failed("read folder", path))?;
            let names = entries
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned());
            let mut names: Vec<_> = names.collect();
            names.sort();
            Err(Error::Others {
                path: path.into(),
                names: names.join(", "),
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A mount point of its own, as a disk for images is.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        done => done.map_err(failed("remove folder", path)),
    }
}

/// A file or a folder with all in it; one that is not there is fine.
fn remove(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(found) if found.is_dir() => remove_all(path),
        _ => fs::remove_file(path),
    };
    removed.map_err(failed("remove", path))
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { step, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_stays_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("layers/1")).unwrap();
        fs::write(root.join("lock"), "").unwrap();
        fs::write(root.join("theirs"), "").unwrap();
        let error = folder(&root, OF_ROOT).unwrap_err().to_string();
        assert!(error.ends_with("they stay: theirs"), "{error}");
        assert!(root.join("theirs").exists() && !root.join("layers").exists());
        fs::remove_file(root.join("theirs")).unwrap();
        folder(&root, OF_ROOT).unwrap();
        assert!(!root.exists());
        folder(&root, OF_ROOT).unwrap();
    }
}
