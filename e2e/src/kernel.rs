//! What the kernel holds for one berthd: mounts, cgroups, links, nftables,
//! processes. Everything is found by names that only this berthd has, so that
//! stories side by side, and the machine itself, do not disturb each other.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;

use rustix::process::Pid;

use crate::{Result, machine};

/// The names by which a node's things are known.
#[derive(Clone, Debug)]
pub struct Names {
    /// The folder that root and state are in.
    pub folder: PathBuf,
    pub bridge: String,
    /// Parent cgroup, "/name".
    pub cgroup: String,
    /// Further words that are ours: a CNI bridge, another cgroup parent.
    pub more: Vec<String>,
}

/// One line for each thing that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    lines: BTreeSet<String>,
}

impl Snapshot {
    pub fn take(names: &Names) -> Result<Snapshot> {
        let mut lines = BTreeSet::new();
        mounts(names, &mut lines)?;
        cgroups(names, &mut lines)?;
        links(names, &mut lines);
        tables(names, &mut lines);
        processes(names, &mut lines)?;
        units(names, &mut lines);
        Ok(Snapshot { lines })
    }

    /// What is here and was not in `before`.
    pub fn since(&self, before: &Snapshot) -> Vec<String> {
        self.lines.difference(&before.lines).cloned().collect()
    }
}

impl Names {
    fn are_in(&self, text: &str) -> bool {
        let folder = self.folder.to_string_lossy();
        text.contains(&*folder)
            || text.contains(&self.bridge)
            || text.contains(&self.cgroup)
            || self.more.iter().any(|word| text.contains(word.as_str()))
    }
}

fn mounts(names: &Names, lines: &mut BTreeSet<String>) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let ours = table.lines().filter(|line| names.are_in(line));
    lines.extend(ours.map(|line| format!("mount {line}")));
    Ok(())
}

/// Mount points of all cgroup hierarchies, v1 and v2.
pub fn hierarchies() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        if right.starts_with("cgroup") {
            found.extend(left.split(' ').nth(4).map(PathBuf::from));
        }
    }
    Ok(found)
}

/// Ids of containers, and of pods with an init, that have a cgroup in any hierarchy.
pub fn ids_with_cgroups(names: &Names) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for root in hierarchies()? {
        let parent = root.join(names.cgroup.trim_start_matches('/'));
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            found.extend(id_in(&entry.file_name().to_string_lossy()));
        }
    }
    Ok(found)
}

fn cgroups(names: &Names, lines: &mut BTreeSet<String>) -> Result<()> {
    for root in hierarchies()? {
        let mut folders = vec![root];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let path = entry.path();
                if names.are_in(&path.to_string_lossy()) {
                    lines.insert(format!("cgroup {}", path.display()));
                }
                folders.push(path);
            }
        }
    }
    Ok(())
}

fn links(names: &Names, lines: &mut BTreeSet<String>) {
    let text = output("ip", &["-o", "link"]);
    let ours = text.lines().filter(|line| names.are_in(line));
    lines.extend(ours.map(|line| {
        let name = line.split(':').nth(1).unwrap_or(line).trim();
        format!("link {name}")
    }));
}

/// Tables that mention a name of ours, each with its lines.
fn tables(names: &Names, lines: &mut BTreeSet<String>) {
    let rules = output("nft", &["list", "ruleset"]);
    for table in rules.split("\n}") {
        if names.are_in(table) {
            let head = table
                .lines()
                .find(|line| line.starts_with("table"))
                .unwrap_or("table ?");
            lines.extend(table.lines().map(|line| format!("nft {head} {}", line.trim())));
        }
    }
}

/// Scopes and slices that systemd knows, in the state that it has for them.
fn units(names: &Names, lines: &mut BTreeSet<String>) {
    if !machine::has_systemd_cgroups() {
        return;
    }
    let known = [
        "show",
        "--all",
        "--property=Id,Slice,ControlGroup,ActiveState",
        "*.scope",
        "*.slice",
    ];
    // A slice without a cgroup is known by its name only.
    let path = |id: &str| format!("/{id}/");
    for unit in output("systemctl", &known).split("\n\n") {
        let id = unit
            .lines()
            .find_map(|line| line.strip_prefix("Id="))
            .unwrap_or_default();
        if names.are_in(unit) || names.are_in(&path(id)) {
            lines.insert(format!("unit {}", unit.trim().replace('\n', " ")));
        }
    }
}

/// A process is ours by its arguments, its folder or its cgroup.
fn processes(names: &Names, lines: &mut BTreeSet<String>) -> Result<()> {
    for pid in pids(names)? {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        lines.insert(format!("process {pid} {}", name.trim()));
    }
    Ok(())
}

/// Ids of all processes of this node but our own.
pub fn pids(names: &Names) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let folder = entry.path();
        let text = |name: &str| fs::read(folder.join(name)).unwrap_or_default();
        let place = |name: &str| fs::read_link(folder.join(name)).unwrap_or_default();
        let ours = [
            String::from_utf8_lossy(&text("cmdline")).replace('\0', " "),
            String::from_utf8_lossy(&text("cgroup")).into_owned(),
            place("cwd").to_string_lossy().into_owned(),
        ]
        .iter()
        .any(|text| names.are_in(text));
        if ours && pid != std::process::id() && !is_zombie(&folder) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The node's shims, and the ids that they were started for.
pub fn shims(names: &Names) -> Result<Vec<(Pid, String)>> {
    let mut found = Vec::new();
    for pid in pids(names)? {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = arguments
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy)
            .collect();
        if let [program, flag, id, ..] = &words[..]
            && program == "berth-shim"
            && flag == "-id"
            && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
        {
            found.push((pid, id.clone().into_owned()));
        }
    }
    Ok(found)
}

/// Processes in containers, with the container's id.
pub fn programs(names: &Names) -> Result<Vec<(Pid, String)>> {
    let all = pids(names)?.into_iter();
    let pids = all.filter_map(|pid| i32::try_from(pid).ok().and_then(Pid::from_raw));
    Ok(pids
        .filter_map(|pid| Some((pid, container_of(names, pid)?)))
        .collect())
}

/// The id of the container that a process is in.
pub fn container_of(names: &Names, pid: Pid) -> Option<String> {
    let table = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).ok()?;
    table
        .lines()
        .filter(|line| line.contains(&names.cgroup))
        .find_map(id_in)
}

/// The 64 hexadecimal digits in a path.
pub fn id_in(path: &str) -> Option<String> {
    let words = path.split(|c: char| !c.is_ascii_hexdigit());
    words
        .filter(|word| word.len() == 64)
        .map(str::to_owned)
        .next_back()
}

/// One that died and waits for its parent is no leak of ours unless berthd is its parent.
fn is_zombie(folder: &Path) -> bool {
    let (state, _) = state_and_parent(folder).unwrap_or_default();
    state == 'Z'
}

/// Fields 3 and 4 of proc_pid_stat(5); None: the process is gone.
fn state_and_parent(folder: &Path) -> Option<(char, u32)> {
    let status = fs::read_to_string(folder.join("stat")).ok()?;
    let mut rest = status.rsplit(") ").next()?.split(' ');
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

/// A child of a berthd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    ForkServer(Pid),
    Shim(Pid),
    Zombie(Pid),
}

/// The children of a berthd that are there for its shims, or that nobody waits for.
pub fn children(berthd: u32) -> Result<Vec<Child>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw) else {
            continue;
        };
        let Some((state, parent)) = state_and_parent(&entry.path()) else {
            continue;
        };
        if parent != berthd {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if state == 'Z' {
            found.push(Child::Zombie(pid));
        } else if line.starts_with(b"berth-shim\0-fork-server\0") {
            found.push(Child::ForkServer(pid));
        } else if line.starts_with(b"berth-shim\0-id\0") {
            found.push(Child::Shim(pid));
        }
    }
    Ok(found)
}

/// The processes that a berthd's shims are copies of: one, and for a moment the one whose
/// place it took.
pub fn fork_servers(berthd: u32) -> Result<Vec<Pid>> {
    let servers = children(berthd)?.into_iter().filter_map(|child| match child {
        Child::ForkServer(pid) => Some(pid),
        Child::Shim(_) | Child::Zombie(_) => None,
    });
    Ok(servers.collect())
}

/// Lines of the machine's mount table.
pub fn mount_count() -> Result<usize> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().count())
}

/// Private memory of a process, bytes: what would be free if it went.
pub fn private_memory(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    let kilobytes: u64 = private
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    Ok(kilobytes * 1024)
}

/// Memory of a process that is in no file, bytes.
pub fn anonymous_memory(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    let kilobytes: u64 = number.with_context(|| format!("no RssAnon in {path}"))?.parse()?;
    Ok(kilobytes * 1024)
}

/// Standard output of a program, empty when it is not there.
pub fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| String::new(),
        |o| String::from_utf8_lossy(&o.stdout).into_owned(),
    )
}

/// What lies in a folder: relative paths, without the folders that are always
/// there and without the records.
pub fn files(root: &Path) -> BTreeSet<String> {
    const ALWAYS: [&str; 5] = ["blobs", "blobs/sha256", "containers", "layers", "sandboxes"];
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .to_string_lossy()
                .into_owned();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            }
            if !ALWAYS.contains(&&*name) && !name.starts_with("berth.db") {
                found.insert(name);
            }
        }
    }
    found
}

/// A file of a process's cgroup, in the first hierarchy that has one of these names
/// (as v1 and v2 call it). None: the kernel has no such file.
pub fn cgroup_file(pid: u32, names: &[&str]) -> Result<Option<String>> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let own: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .collect();
    for root in hierarchies()? {
        for path in &own {
            let folder = root.join(path.trim_start_matches('/'));
            let found = names
                .iter()
                .find_map(|name| fs::read_to_string(folder.join(name)).ok());
            if found.is_some() {
                return Ok(found);
            }
        }
    }
    Ok(None)
}

/// Limits how many processes the cgroup of a process may have. False: the kernel has no
/// such limit.
pub fn limit_pids(pid: u32, count: u32) -> Result<bool> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for root in hierarchies()? {
        for path in table.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
            let file = root.join(path.trim_start_matches('/')).join("pids.max");
            // The first hierarchy may be one whose root only has the path.
            if file.exists() {
                fs::write(file, count.to_string())?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The number behind a key of such a file; the whole file when the key is empty.
pub fn number_of(text: &str, key: &str) -> Option<u64> {
    if key.is_empty() {
        return text.trim().parse().ok();
    }
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, value) = lines.find(|(name, _)| *name == key)?;
    value.trim().parse().ok()
}
