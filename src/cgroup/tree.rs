//! The folders of a cgroup: made from the root down, removed from the leaves up.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, mkdirat, unlinkat};
use rustix::io::Errno;

use super::layout::Layout;
use super::{Error, Hierarchy, Result, files};

/// A parent that another container's removal takes away in between is made again.
const CREATE_ATTEMPTS: u32 = 5;
/// 1, 2, 4 ... ms between attempts: about 2 s together. A cgroup stays busy until its
/// last process is reaped.
const REMOVE_ATTEMPTS: u32 = 11;

pub fn check_path(path: &str) -> Result<()> {
    let bad = |reason| {
        Err(Error::Path {
            path: path.to_owned(),
            reason,
        })
    };
    let Some(relative) = path.strip_prefix('/') else {
        return bad("it is not absolute");
    };
    if relative.is_empty() {
        return bad("it is the root");
    }
    for name in relative.split('/') {
        if name.is_empty() || name == "." || name == ".." {
            return bad("it has an empty, . or .. component");
        }
        if name.contains(['\n', '\0']) || name.len() > 255 {
            return bad("a component is too long, or has a newline or NUL");
        }
    }
    Ok(())
}

/// The cgroups above `path`, outermost first, without the root.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/')
        .skip(1)
        .filter_map(move |(at, _)| path.get(..at))
}

/// Makes the cgroup in every hierarchy; answers which parents were made anywhere.
/// When it fails, nothing it made is left.
pub fn create(path: &str, hierarchies: &[Hierarchy]) -> Result<Vec<String>> {
    let mut made = Vec::new();
    let mut leaves = 0;
    let result = hierarchies.iter().try_for_each(|hierarchy| {
        create_in(path, hierarchy, &mut made)?;
        leaves += 1;
        Ok(())
    });
    made.sort_unstable_by_key(String::len);
    made.dedup();
    if let Err(error) = result {
        let _ = remove(path, hierarchies.get(..leaves).unwrap_or_default());
        remove_empty_parents(&made);
        return Err(error);
    }
    Ok(made)
}

fn create_in(path: &str, hierarchy: &Hierarchy, made: &mut Vec<String>) -> Result<()> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match create_once(path, hierarchy, made) {
            Err(Error::File {
                errno: Errno::NOENT, ..
            }) if attempt < CREATE_ATTEMPTS => {}
            answer => return answer,
        }
    }
}

fn create_once(path: &str, hierarchy: &Hierarchy, made: &mut Vec<String>) -> Result<()> {
    if !hierarchy.is_v2() && create_below(path, hierarchy)? {
        return Ok(());
    }
    let mut above = "/";
    for parent in parents(path) {
        if make_folder(&hierarchy.folder(parent))? {
            made.push(parent.to_owned());
        }
        prepare(hierarchy, above, parent)?;
        above = parent;
    }
    make_leaf(path, hierarchy)?;
    prepare(hierarchy, above, path)
}

/// v1: makes the cgroup when those above it are there and need nothing, as they mostly are.
/// False: they have to be looked at.
fn create_below(path: &str, hierarchy: &Hierarchy) -> Result<bool> {
    match make_leaf(path, hierarchy) {
        Err(Error::File {
            errno: Errno::NOENT, ..
        }) => return Ok(false),
        made => made?,
    }
    if !hierarchy.has("cpuset") {
        return Ok(true);
    }
    let above = parents(path).last().unwrap_or("/");
    inherit_cpuset(&hierarchy.folder(above), &hierarchy.folder(path))
}

/// Makes one folder below a cgroup that exists, new: what was left over by a start that was
/// killed is removed first, for its limits and counters must not be inherited.
pub fn make_leaf(path: &str, hierarchy: &Hierarchy) -> Result<()> {
    let leaf = hierarchy.folder(path);
    if !make_folder(&leaf)? {
        let mut pids = Vec::new();
        collect_pids(&leaf, &mut pids)?;
        if !pids.is_empty() {
            return Err(Error::InUse {
                cgroup: path.to_owned(),
                pids,
            });
        }
        remove_folder(&leaf)?;
        make_folder(&leaf)?;
    }
    Ok(())
}

/// Whether it was made; false: it was there.
fn make_folder(folder: &Path) -> Result<bool> {
    match mkdirat(CWD, folder, Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(Error::File {
            step: "mkdir",
            path: folder.to_owned(),
            errno,
        }),
    }
}

/// What a cgroup needs from the one above it before processes and limits can come.
fn prepare(hierarchy: &Hierarchy, above: &str, path: &str) -> Result<()> {
    if hierarchy.is_v2() {
        enable_controllers(hierarchy, above)
    } else if hierarchy.has("cpuset") {
        inherit_cpuset(&hierarchy.folder(above), &hierarchy.folder(path)).map(drop)
    } else {
        Ok(())
    }
}

/// v2: has all controllers given on down to a cgroup that somebody else has made.
/// systemd does so for those that it knows, which huge pages are not of.
pub fn enable_above(path: &str, hierarchies: &[Hierarchy]) -> Result<()> {
    for hierarchy in hierarchies.iter().filter(|h| h.is_v2()) {
        for above in std::iter::once("/").chain(parents(path)) {
            enable_controllers(hierarchy, above)?;
        }
    }
    Ok(())
}

/// v2: what the parent has is given on to its children. One at a time, and without
/// insisting: a controller that cannot be enabled is missed when a limit needs it.
fn enable_controllers(hierarchy: &Hierarchy, above: &str) -> Result<()> {
    let folder = hierarchy.folder(above);
    let available = files::read_if_exists(&folder.join("cgroup.controllers"))?.unwrap_or_default();
    let control = folder.join("cgroup.subtree_control");
    let enabled = files::read_if_exists(&control)?.unwrap_or_default();
    for controller in available.split_whitespace() {
        if !enabled.split_whitespace().any(|known| known == controller) {
            let _ = files::try_write(&control, &format!("+{controller}"));
        }
    }
    Ok(())
}

/// v1: a cpuset without CPUs or memory nodes takes no process. False: the one above has none
/// to give.
fn inherit_cpuset(above: &Path, folder: &Path) -> Result<bool> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = files::read_if_exists(&folder.join(file))?.unwrap_or_default();
        if own.trim().is_empty() {
            let inherited = files::read_if_exists(&above.join(file))?.unwrap_or_default();
            if inherited.trim().is_empty() {
                return Ok(false);
            }
            files::write(&folder.join(file), inherited.trim())?;
        }
    }
    Ok(true)
}

/// Removes the cgroup from every hierarchy; what is gone is no error. Every
/// hierarchy is tried, the first error is answered.
pub fn remove(path: &str, hierarchies: &[Hierarchy]) -> Result<()> {
    let mut result = Ok(());
    for hierarchy in hierarchies {
        result = result.and(remove_folder(&hierarchy.folder(path)));
    }
    result
}

/// Removes what is below the cgroup, and leaves itself.
pub fn remove_children(path: &str, hierarchies: &[Hierarchy]) -> Result<()> {
    let mut result = Ok(());
    for hierarchy in hierarchies {
        for child in children(&hierarchy.folder(path))? {
            result = result.and(remove_folder(&child));
        }
    }
    result
}

fn remove_folder(folder: &Path) -> Result<()> {
    let mut pause = Duration::from_millis(1);
    let mut attempt = 0;
    loop {
        attempt += 1;
        match unlinkat(CWD, folder, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) if attempt < REMOVE_ATTEMPTS => {
                // The children first; they are looked at only when there may be some.
                for child in children(folder)? {
                    remove_folder(&child)?;
                }
                if attempt > 1 {
                    std::thread::sleep(pause);
                    pause *= 2;
                }
            }
            Err(errno) => {
                return Err(Error::File {
                    step: "rmdir",
                    path: folder.to_owned(),
                    errno,
                });
            }
        }
    }
}

/// The cgroup and those above it that are missing in at least one hierarchy,
/// outermost first: [`super::Cgroup::create`] of one below would make them.
///
/// # Errors
/// For a malformed path, or when no hierarchy is mounted.
pub fn missing(path: &str) -> Result<Vec<String>> {
    check_path(path)?;
    let layout = Layout::detect()?;
    let is_missing = |path: &str| layout.hierarchies.iter().any(|h| !h.folder(path).exists());
    // Where it is, those above it are.
    if !is_missing(path) {
        return Ok(Vec::new());
    }
    let ends = path
        .match_indices('/')
        .map(|(at, _)| at)
        .skip(1)
        .chain([path.len()]);
    let all = ends.map(|end| &path[..end]);
    Ok(all.filter(|part| is_missing(part)).map(str::to_owned).collect())
}

/// Whether the cgroup is there and has neither processes nor cgroups below it.
#[must_use]
pub fn is_unused(path: &str) -> bool {
    let Ok(layout) = Layout::detect() else {
        return false;
    };
    let mut found = false;
    for folder in layout.hierarchies.iter().map(|h| h.folder(path)) {
        let mut pids = Vec::new();
        if !matches!(children(&folder), Ok(below) if below.is_empty())
            || collect_pids(&folder, &mut pids).is_err()
            || !pids.is_empty()
        {
            return false;
        }
        found |= folder.exists();
    }
    found && check_path(path).is_ok()
}

/// Removes those of `parents` (as [`super::Cgroup::parents_made`] named them) that are empty, innermost
/// first. One that is in use, or gone, is left: whoever empties it removes it.
pub fn remove_empty_parents(parents: &[String]) {
    let Ok(layout) = Layout::detect() else { return };
    for parent in parents.iter().rev() {
        if check_path(parent).is_ok() {
            for hierarchy in &layout.hierarchies {
                let _ = unlinkat(CWD, hierarchy.folder(parent), AtFlags::REMOVEDIR);
            }
        }
    }
}

/// The cgroups directly below a folder; none when it is gone.
pub fn children(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let error = |error: &std::io::Error| Error::File {
        step: "list",
        path: folder.to_owned(),
        errno: Errno::from_io_error(error).unwrap_or(Errno::IO),
    };
    // A folder of cgroups has a link for each folder in it (kernfs), and most have none.
    if std::fs::metadata(folder).is_ok_and(|folder| folder.nlink() == 2) {
        return Ok(Vec::new());
    }
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(other) => return Err(error(&other)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let Ok(entry) = entry else { break };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Adds the processes of a folder and of all below it.
pub fn collect_pids(folder: &Path, pids: &mut Vec<i32>) -> Result<()> {
    let text = match files::read_if_exists(&folder.join("cgroup.procs")) {
        // A threaded cgroup lists its processes in the domain above it only.
        Err(Error::File {
            errno: Errno::OPNOTSUPP,
            ..
        }) => None,
        answer => answer?,
    };
    pids.extend(
        text.unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse::<i32>().ok()),
    );
    for child in children(folder)? {
        collect_pids(&child, pids)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_checked() {
        assert!(check_path("/berth/pod-1/abc").is_ok());
        for bad in ["", "/", "a/b", "/a//b", "/a/../b", "/a/./b", "/a/", "/a\nb"] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn parents_are_listed_from_the_outside() {
        assert_eq!(parents("/a/b/c").collect::<Vec<_>>(), ["/a", "/a/b"]);
        assert_eq!(parents("/a").count(), 0);
    }
}
