//! Mounts, pinned namespaces, folders and shims.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{Error, Subject, Thing, records::Records};
use crate::runtime::shim_of;

/// A mount point below root or state.
#[derive(Debug)]
pub struct Mount {
    point: PathBuf,
    /// It pins a namespace.
    namespace: bool,
}

/// What of the machine's mount table is below root or state.
pub fn mounts(subject: &Subject) -> Result<Vec<Mount>, Error> {
    let path = Path::new("/proc/self/mountinfo");
    let table = fs::read_to_string(path).map_err(read(path))?;
    let mut found = Vec::new();
    for line in table.lines() {
        let Some((mount, kind)) = line.split_once(" - ") else {
            continue;
        };
        let point = PathBuf::from(unescaped(mount.split(' ').nth(4).unwrap_or_default()));
        let inside = |folder: &PathBuf| point != *folder && point.starts_with(folder);
        if inside(&subject.root) || inside(&subject.state) {
            let namespace = kind.starts_with("nsfs ");
            found.push(Mount { point, namespace });
        }
    }
    Ok(found)
}

/// A mount is its sandbox's or container's by the folder that it is in.
pub fn judge_mount(mount: Mount, subject: &Subject, records: &Records) -> Thing {
    let below = mount
        .point
        .strip_prefix(&subject.state)
        .or_else(|_| mount.point.strip_prefix(&subject.root));
    let parts: Vec<_> = below
        .unwrap_or(&mount.point)
        .iter()
        .map(|part| part.to_string_lossy())
        .collect();
    let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
    let owner = match parts[..] {
        ["sandboxes", id, "ns", name] if mount.namespace => records
            .sandboxes
            .get(id)
            .filter(|record| record.namespaces.iter().any(|known| known == name))
            .map(|_| format!("sandbox {id}")),
        ["sandboxes", id, _, ..] => records.owner_of_sandbox(id),
        ["containers", id, _, ..] => records.owner_of_bundle(id),
        _ => None,
    };
    let kind = if mount.namespace { "namespace" } else { "mount" };
    Thing::new(kind, mount.point.to_string_lossy(), owner)
}

/// The shims whose bundle is below the state folder: pid and id.
pub fn shims(subject: &Subject) -> Result<Vec<(u32, String)>, Error> {
    let bundles = subject.state.join("containers");
    let proc = Path::new("/proc");
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).map_err(read(proc))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(id) = shim_of(pid, &bundles) {
            found.push((pid, id));
        }
    }
    Ok(found)
}

/// A folder, and what it is for.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    of: Of,
}

#[derive(Debug)]
enum Of {
    Sandbox,
    Bundle,
    Layer,
    /// A layer that a berthd which runs is making or removing.
    Work,
}

/// The folders that belong to one object each.
pub fn folders(subject: &Subject) -> Result<Vec<Folder>, Error> {
    let mut found = Vec::new();
    let running = is_running(subject);
    for path in entries(&subject.state.join("sandboxes"))? {
        let of = Of::Sandbox;
        found.push(Folder { path, of });
    }
    for folder in [subject.state.join("containers"), subject.root.join("containers")] {
        for path in entries(&folder)? {
            let of = Of::Bundle;
            found.push(Folder { path, of });
        }
    }
    for path in entries(&subject.root.join("layers"))? {
        let work = running && number(&path).is_none();
        let of = if work { Of::Work } else { Of::Layer };
        found.push(Folder { path, of });
    }
    Ok(found)
}

pub fn judge_folder(folder: Folder, records: &Records) -> Thing {
    let name = folder.path.file_name().unwrap_or_default().to_string_lossy();
    let owner = match folder.of {
        Of::Sandbox => records.owner_of_sandbox(&name),
        Of::Bundle => records.owner_of_bundle(&name),
        Of::Work => Some("pull under way".to_owned()),
        Of::Layer => number(&folder.path)
            .filter(|number| records.layers.contains(number))
            .map(|number| format!("layer {number}")),
    };
    Thing::new("folder", folder.path.to_string_lossy(), owner)
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.parse().ok()
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let all = match fs::read_dir(folder) {
        Ok(all) => all,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read(folder)(error)),
    };
    Ok(all.flatten().map(|entry| entry.path()).collect())
}

/// Whether a berthd holds the lock of the root. It is looked up in the kernel's
/// table: to try the lock could get in the way of a berthd that starts.
fn is_running(subject: &Subject) -> bool {
    let Ok(lock) = fs::metadata(subject.root.join("lock")) else {
        return false;
    };
    let inode = format!(":{}", lock.ino());
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    table.lines().any(|line| {
        let mut words = line.split_whitespace();
        line.contains("FLOCK") && words.any(|word| word.ends_with(&inode))
    })
}

/// Spaces and the like are written as three octal digits.
fn unescaped(field: &str) -> String {
    let mut plain = field.to_owned();
    for (code, text) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(code, text);
    }
    plain
}

fn read(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Read { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_belong_to_the_folder_they_are_in() {
        let subject = Subject {
            root: "/r".into(),
            state: "/s".into(),
            config: Default::default(),
        };
        let record = serde_json::json!({
            "state": "Ready", "created_at": 1, "handler": "", "namespaces": ["net"], "attachment": null,
            "cgroup_parent": "/p", "cgroups_made": [], "init": false, "hostname": "h",
        });
        let mut records = Records::default();
        // As an earlier version wrote it: without what came later.
        let record = serde_json::from_value(record).unwrap();
        records.sandboxes.insert("a1".into(), record);
        let owner = |point: &str, namespace| {
            let point = PathBuf::from(point);
            judge_mount(Mount { point, namespace }, &subject, &records).owner
        };
        let ours = Some("sandbox a1".to_owned());
        assert_eq!(owner("/s/sandboxes/a1/ns/net", true), ours);
        assert_eq!(owner("/s/sandboxes/a1/shm", false), ours);
        for (orphan, namespace) in [
            ("/s/sandboxes/a1/ns/user", true),
            ("/s/sandboxes/b2/ns/net", true),
            ("/s/containers/a1/rootfs", false),
            ("/s/other", false),
        ] {
            assert_eq!(owner(orphan, namespace), None, "{orphan}");
        }
    }
}
