//! Cgroups below the parents of pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use super::{Error, Subject, Thing, records::Records};
use crate::{
    cgroup::{Hierarchy, Layout},
    instance::Instance,
    runtime::cgroup_driver,
};

/// The folders of all cgroups of the machine, by their path below the root of each
/// hierarchy.
pub fn all() -> Result<Vec<(String, PathBuf)>, Error> {
    let mut found = Vec::new();
    for hierarchy in &Layout::detect()?.hierarchies {
        walk(hierarchy, &mut found);
    }
    Ok(found)
}

fn walk(hierarchy: &Hierarchy, found: &mut Vec<(String, PathBuf)>) {
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        // One that goes meanwhile is none.
        for entry in fs::read_dir(hierarchy.folder(&folder))
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
                found.push((path.clone(), entry.path()));
                folders.push(path);
            }
        }
    }
}

/// Those of recorded objects, and those that nobody else can have made.
pub fn judge(
    groups: Vec<(String, PathBuf)>,
    subject: &Subject,
    instance: &Instance,
    records: &Records,
) -> Vec<Thing> {
    let owners = Owners::of(subject, instance, records);
    groups
        .into_iter()
        .filter_map(|(path, folder)| {
            let owner = match owners.verdict(&path) {
                Verdict::Owned(owner) => Some(owner),
                Verdict::Orphan => None,
                Verdict::Others => return None,
            };
            Some(Thing::new("cgroup", folder.to_string_lossy(), owner))
        })
        .collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Owned(String),
    Orphan,
    /// Not ours, or a part of what is listed already.
    Others,
}

#[derive(Debug)]
struct Owners {
    /// By path: cgroups of containers and inits, and parents that are ours.
    owned: BTreeMap<String, String>,
    /// Parents of recorded pods, with what is above them.
    above: BTreeSet<String>,
    /// The parents of pods that name none, by each driver; all that is below is ours.
    own: Vec<String>,
    /// Nobody else would make a cgroup of such a name.
    named_by_us: bool,
}

impl Owners {
    fn of(subject: &Subject, instance: &Instance, records: &Records) -> Owners {
        let configured = subject.config.cgroup.parent.as_str();
        let mut owned = BTreeMap::new();
        let mut above = BTreeSet::new();
        for (id, sandbox) in &records.sandboxes {
            let owner = format!("sandbox {id}");
            let parent = sandbox.cgroup_parent.trim_end_matches('/');
            if sandbox.init {
                owned.insert(cgroup_driver::path(parent, id), owner.clone());
            }
            for made in &sandbox.cgroups_made {
                owned.insert(made.clone(), owner.clone());
            }
            for (at, _) in parent.match_indices('/').skip(1) {
                above.insert(parent[..at].to_owned());
            }
            above.insert(parent.to_owned());
        }
        owned.insert(cgroup_driver::shims::path(&instance.name), "instance".to_owned());
        for (id, container) in &records.containers {
            owned.insert(container.cgroup.clone(), format!("container {id}"));
        }
        Owners {
            owned,
            above,
            own: cgroup_driver::own_parents(configured, &instance.name),
            named_by_us: configured.is_empty(),
        }
    }

    fn verdict(&self, path: &str) -> Verdict {
        if let Some(owner) = self.owned.get(path) {
            return Verdict::Owned(owner.clone());
        }
        // The kubelet's, or there before us.
        if self.above.contains(path) {
            return Verdict::Others;
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        // Below a container's are those of its execs, and its own.
        let inside = |owned: &String| {
            path.strip_prefix(owned.as_str())
                .is_some_and(|rest| rest.starts_with('/'))
        };
        let of_object = self.owned.keys().filter(|path| !self.above.contains(*path));
        if of_object.into_iter().any(inside) {
            return Verdict::Others;
        }
        let below_own = self.own.iter().any(inside);
        let own = self.named_by_us && self.own.iter().any(|own| own == path);
        if below_own || own || (cgroup_driver::is_of_container(name) && self.above.contains(parent)) {
            return Verdict::Orphan;
        }
        Verdict::Others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whose() {
        let id = |c: char| c.to_string().repeat(64);
        let pod = "/kubepods/pod1";
        let owners = Owners {
            owned: [
                (format!("{pod}/{}", id('a')), "container a".to_owned()),
                ("/berth".to_owned(), "sandbox s".to_owned()),
                ("/berth/c".to_owned(), "container c".to_owned()),
            ]
            .into(),
            above: ["/kubepods", pod, "/berth", "/a.slice"].map(str::to_owned).into(),
            own: ["/berth", "/berth.slice"].map(str::to_owned).into(),
            named_by_us: true,
        };
        let owned = |path: &str, owner: &str| {
            assert_eq!(owners.verdict(path), Verdict::Owned(owner.into()), "{path}");
        };
        owned(&format!("{pod}/{}", id('a')), "container a");
        owned("/berth", "sandbox s");
        for others in [
            "/kubepods",
            pod,
            "/kubepods/pod2",
            "/system.slice",
            "/berth/c/exec-1",
            "/berth-other/x",
            "/a.slice/other.scope",
        ] {
            assert_eq!(owners.verdict(others), Verdict::Others, "{others}");
        }
        for orphan in [
            &format!("{pod}/{}", id('b')),
            "/berth/d",
            "/berth/d/e",
            "/berth.slice",
            &format!("/a.slice/berth-{}.scope", id('b')),
        ] {
            assert_eq!(owners.verdict(orphan), Verdict::Orphan, "{orphan}");
        }
    }
}
