//! Which hierarchies this machine has: found once, from /proc/self/mountinfo, or told.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{Error, Result, files};
use crate::proto::plan;

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub root: PathBuf,
    /// The folder name in /sys/fs/cgroup that containers know: "cpu,cpuacct", "systemd", "unified".
    pub name: String,
    /// v1 controllers; empty for v2 (they differ from cgroup to cgroup) and for v1's named hierarchies.
    pub controllers: Vec<String>,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Hierarchy {
    #[must_use]
    pub fn is_v2(&self) -> bool {
        self.version == Version::V2
    }

    /// Whether this is the v1 hierarchy of a controller.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }

    /// Whether a v2 controller is enabled in the cgroup `path`.
    pub(super) fn offers(&self, path: &str, controller: &str) -> bool {
        let list = files::read_if_exists(&self.folder(path).join("cgroup.controllers"));
        matches!(list, Ok(Some(text)) if text.split_whitespace().any(|known| known == controller))
    }

    /// The folder of a cgroup, `path` being absolute and checked.
    #[must_use]
    pub fn folder(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

static LAYOUT: OnceLock<Layout> = OnceLock::new();

/// All hierarchies of the machine, v1 ones first.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    pub hierarchies: Vec<Hierarchy>,
}

impl Layout {
    /// Reads the mount table at the first call; hierarchies do not come and go later.
    ///
    /// # Errors
    /// [`Error::NoHierarchy`] when there is none.
    pub fn detect() -> Result<&'static Self> {
        if let Some(layout) = LAYOUT.get() {
            return Ok(layout);
        }
        let table = files::read_if_exists(Path::new("/proc/self/mountinfo"))?.unwrap_or_default();
        let layout = Self::parse(&table);
        if layout.hierarchies.is_empty() {
            return Err(Error::NoHierarchy);
        }
        Ok(LAYOUT.get_or_init(|| layout))
    }

    /// Takes what [`Layout::told`] has said of this machine; nothing when it said nothing,
    /// or when they are known.
    pub fn know(told: &[plan::Hierarchy]) {
        if !told.is_empty() {
            let _ = LAYOUT.set(Self::heard(told));
        }
    }

    /// The inverse of [`Layout::told`].
    fn heard(told: &[plan::Hierarchy]) -> Self {
        let heard = |one: &plan::Hierarchy| Hierarchy {
            root: one.root.clone().into(),
            name: one.name.clone(),
            controllers: one.controllers.clone(),
            version: if one.v2 { Version::V2 } else { Version::V1 },
        };
        Self {
            hierarchies: told.iter().map(heard).collect(),
        }
    }

    /// For [`Layout::know`] of another process in the same mount namespace. Empty when a
    /// mount point's name is no text.
    #[must_use]
    pub fn told(&self) -> Vec<plan::Hierarchy> {
        let told = |one: &Hierarchy| {
            Some(plan::Hierarchy {
                root: one.root.to_str()?.to_owned(),
                name: one.name.clone(),
                controllers: one.controllers.clone(),
                v2: one.is_v2(),
            })
        };
        let all = self.hierarchies.iter().map(told).collect::<Option<_>>();
        all.unwrap_or_default()
    }

    /// cgroup v2 alone: no v1 controller is in use.
    #[must_use]
    pub fn is_pure_v2(&self) -> bool {
        self.hierarchies.iter().all(Hierarchy::is_v2)
    }

    fn parse(table: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> =
            table
                .lines()
                .filter_map(parse_line)
                .fold(Vec::new(), |mut found, next| {
                    // The same hierarchy may be mounted more than once: the first counts.
                    let same = |known: &Hierarchy| known.version == next.version && known.name == next.name;
                    if !found.iter().any(same) {
                        found.push(next);
                    }
                    found
                });
        hierarchies.sort_by_key(Hierarchy::is_v2);
        Self { hierarchies }
    }
}

/// "36 35 98:0 /root /mount/point rw,noatime shared:1 - fstype source superoptions", proc(5).
fn parse_line(line: &str) -> Option<Hierarchy> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    // A part of a hierarchy, bound into a container for instance, is not the hierarchy.
    if mount.next()? != "/" {
        return None;
    }
    let root = PathBuf::from(unescape(mount.next()?));
    let mut file_system = file_system.split(' ');
    let kind = file_system.next()?;
    let options = file_system.nth(1)?;
    match kind {
        "cgroup2" => Some(Hierarchy {
            root,
            name: "unified".to_owned(),
            controllers: Vec::new(),
            version: Version::V2,
        }),
        "cgroup" => {
            const NOT_CONTROLLERS: [&str; 7] = [
                "rw",
                "ro",
                "noprefix",
                "clone_children",
                "xattr",
                "cpuset_v2_mode",
                "favordynmods",
            ];
            let mut name = None;
            let mut controllers = Vec::new();
            for option in options.split(',') {
                if let Some(named) = option.strip_prefix("name=") {
                    name = Some(named.to_owned());
                } else if !NOT_CONTROLLERS.contains(&option) && !option.contains('=') {
                    controllers.push(option.to_owned());
                }
            }
            let name = name.unwrap_or_else(|| controllers.join(","));
            Some(Hierarchy {
                root,
                name,
                controllers,
                version: Version::V1,
            })
        }
        _ => None,
    }
}

/// Spaces and the like are written as three octal digits.
fn unescape(field: &str) -> String {
    let mut plain = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        let (before, escaped) = rest.split_at(at);
        plain.push_str(before);
        let code = escaped
            .get(1..4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) if byte.is_ascii() => {
                plain.push(char::from(byte));
                rest = escaped.get(4..).unwrap_or_default();
            }
            _ => {
                plain.push('\\');
                rest = escaped.get(1..).unwrap_or_default();
            }
        }
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pure_v2_is_one_hierarchy() {
        let layout =
            Layout::parse("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(layout.is_pure_v2());
        assert_eq!(
            layout.hierarchies[0].folder("/a/b"),
            Path::new("/sys/fs/cgroup/a/b")
        );
    }

    #[test]
    fn hybrid_has_controllers_in_v1_and_parts_do_not_count() {
        let table = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
34 31 0:31 /part /elsewhere rw - cgroup cgroup rw,memory\n\
35 31 0:32 / /with\\040space rw - cgroup cgroup rw,pids\n";
        let layout = Layout::parse(table);
        assert!(!layout.is_pure_v2());
        let names: Vec<_> = layout.hierarchies.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["cpu,cpuacct", "systemd", "pids", "unified"]);
        assert!(layout.hierarchies[0].has("cpuacct"));
        assert!(layout.hierarchies[1].controllers.is_empty());
        assert_eq!(layout.hierarchies[2].root, Path::new("/with space"));
        assert!(layout.hierarchies[3].is_v2());
        assert_eq!(Layout::heard(&layout.told()), layout);
    }
}
