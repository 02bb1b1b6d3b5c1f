//! All that a machine holds, not only what carries a name of ours: for stories in a
//! machine of their own, which say that it is as it was.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{Result, kernel};

/// What package tools and systemd write when any package comes or goes.
const OTHERS: &[&str] = &[
    "/run/systemd/",
    "/run/log/",
    "/run/dpkg",
    "/run/lock",
    "/var/lib/dpkg/",
    "/var/lib/apt/",
    "/var/log/apt/",
    "/var/log/dpkg.log",
    "/var/cache/",
];

/// One line for each mount, cgroup, link, process, unit, user, profile and file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    lines: BTreeSet<String>,
}

impl Machine {
    pub fn look() -> Result<Machine> {
        let mut lines = BTreeSet::new();
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        lines.extend(points.map(|point| format!("mount {point}")));
        for root in kernel::hierarchies()? {
            walk(&root, &mut |path, folder| {
                if folder {
                    lines.insert(format!("cgroup {}", path.display()));
                }
            });
        }
        for line in kernel::output("ip", &["-o", "link"]).lines() {
            let name = line.split(':').nth(1).unwrap_or(line).trim();
            lines.insert(format!("link {name}"));
        }
        for line in kernel::output("nft", &["list", "tables"]).lines() {
            lines.insert(format!("nft {line}"));
        }
        let units = ["list-units", "--all", "--plain", "--no-legend"];
        let files = ["list-unit-files", "--plain", "--no-legend"];
        for arguments in [&units[..], &files[..]] {
            for line in kernel::output("systemctl", arguments).lines() {
                let name = line.split_whitespace().next().unwrap_or_default();
                lines.insert(format!("unit {name}"));
            }
        }
        // Where there is no AppArmor, there is no such file.
        let profiles = fs::read_to_string("/sys/kernel/security/apparmor/profiles");
        lines.extend(
            profiles
                .unwrap_or_default()
                .lines()
                .map(|line| format!("profile {line}")),
        );
        lines.extend(processes()?);
        for file in ["/etc/passwd", "/etc/group"] {
            let text = fs::read_to_string(file)?;
            lines.extend(text.lines().map(|line| format!("{file} {line}")));
        }
        for root in ["/etc", "/usr", "/var", "/run", "/opt", "/root", "/home", "/srv"] {
            walk(Path::new(root), &mut |path, _| {
                lines.insert(format!("file {}", path.display()));
            });
        }
        Ok(Machine { lines })
    }

    /// What is here and was not in `before`, without what any package would leave;
    /// but whatever has the word in its name counts.
    pub fn since(&self, before: &Machine, word: &str) -> Vec<String> {
        let new = self.lines.difference(&before.lines);
        let others = |line: &&String| {
            line.contains(word)
                || !line
                    .strip_prefix("file ")
                    .is_some_and(|path| OTHERS.iter().any(|other| path.starts_with(other)))
        };
        new.filter(others).cloned().collect()
    }
}

/// By name: ids are new all the time. The kernel's own have no program.
fn processes() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let folder = entry.path();
        let Ok(program) = fs::read_link(folder.join("exe")) else {
            continue;
        };
        names.insert(format!("process {}", program.display()));
    }
    Ok(names)
}

/// All below a folder, on its file system and on those mounted there, but the
/// host's, which the machine is fed from. Links are not followed.
fn walk(root: &Path, seen: &mut dyn FnMut(&Path, bool)) {
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path: PathBuf = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            seen(&path, is_folder);
            if is_folder && path != Path::new("/run/control") {
                folders.push(path);
            }
        }
    }
}
