//! Whom the kernel's OOM killer took, and for whose limit.
//!
//! v2 counts both in `memory.events`: "oom_kill" where the victim was, "oom" where the
//! limit was that could not be held, and `memory.events.local` tells a cgroup's own
//! from those of the cgroups below (Documentation/admin-guide/cgroup-v2.rst). v1 counts
//! victims in `memory.oom_control` and, of limits, only how often they were reached
//! (`memory.failcnt`), or that usage was as high: the innermost of those gets the blame.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::{Cgroup, Hierarchy, files, stats::Keyed, stats_v1::NO_LIMIT};

/// An OOM kill in a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OomKill {
    /// The cgroup whose limit could not be held: the one that was watched or one above
    /// it. Empty: the machine itself had no memory left.
    pub cgroup: String,
    /// That limit in bytes; 0 for the machine's memory.
    pub limit: u64,
}

/// What is counted since the watch has begun.
#[derive(Debug)]
pub struct OomWatch {
    /// Outermost last; the first is the one that is watched. None are there without
    /// control of memory.
    levels: Vec<Level>,
    /// `memory.events` of a scope, which systemd removes as soon as it is empty: it is
    /// read when it changes, which is before the victim dies.
    events: Option<File>,
}

#[derive(Debug)]
struct Level {
    path: String,
    files: Files,
    begin: Counts,
    last: Counts,
    /// In bytes, as it was last; 0: none, or not read.
    limit: u64,
}

/// The files of one cgroup that count.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug)]
enum Version {
    V1,
    /// Of the cgroup that is watched: what is below it is a part of it.
    V2,
    /// Of one above: what is below it has limits of its own.
    V2Above,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Processes that were killed, in v2 with the cgroups below.
    kills: u64,
    /// How often the limit could not be held.
    at_limit: u64,
    /// The same, or that of a cgroup below.
    at_limit_below: u64,
}

impl OomWatch {
    /// Begins with what the cgroup and those above it have counted until now.
    #[must_use]
    pub fn begin(cgroup: &Cgroup) -> Self {
        let memory = cgroup.controller("memory");
        let levels = memory.map(|memory| levels(cgroup.path(), memory));
        let levels = levels.unwrap_or_default();
        let scope = levels.first().filter(|_| cgroup.delegated);
        let events = scope.and_then(|level| File::open(level.files.folder.join("memory.events")).ok());
        Self { levels, events }
    }

    /// What to wait on for priority events (EPOLLPRI), and then to [`OomWatch::look`].
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(AsFd::as_fd)
    }

    /// Takes the numbers as they are now. What is gone keeps those it had, and is not
    /// to be waited on any more.
    pub fn look(&mut self) {
        let Some((own, above)) = self.levels.split_first_mut() else {
            return;
        };
        let there = own.look(self.events.as_ref());
        if !there {
            self.events = None;
        }
        // While it is there and none was killed, those above have nothing to tell.
        if there && !own.has_killed() {
            return;
        }
        for level in above {
            level.look(None);
        }
    }

    /// What the OOM killer did here, by the last [`OomWatch::look`]. `killed`: a process
    /// here ended by a SIGKILL that nobody is known to have sent. That counts when a
    /// limit was reached but the cgroup went away before its victims could be read.
    #[must_use]
    pub fn verdict(&self, killed: bool) -> Option<OomKill> {
        let (own, above) = self.levels.split_first()?;
        let unread = || {
            let near = own.at_limit() || above.first().is_some_and(Level::has_killed);
            killed && near && !own.files.folder.exists()
        };
        if !own.has_killed() && !unread() {
            return None;
        }
        let culprit = self.levels.iter().find(|level| level.at_limit());
        // The one above knows it still of what went away.
        let told = above.first().filter(|level| unread() && level.at_limit_below());
        let culprit = culprit.or(told.map(|_| own));
        Some(OomKill {
            cgroup: culprit.map(|level| level.path.clone()).unwrap_or_default(),
            limit: culprit.map_or(0, |level| level.limit),
        })
    }
}

/// The cgroup and those above it, without the root, which has no limit.
fn levels(path: &str, memory: &Hierarchy) -> Vec<Level> {
    let paths = std::iter::successors(Some(path), |path| path.rsplit_once('/').map(|(above, _)| above));
    paths
        .filter(|path| !path.is_empty())
        .enumerate()
        .map(|(index, path)| {
            let files = Files {
                folder: memory.folder(path),
                version: match (memory.is_v2(), index) {
                    (false, _) => Version::V1,
                    (true, 0) => Version::V2,
                    (true, _) => Version::V2Above,
                },
            };
            // The first one is new, and has counted nothing.
            let (limit, begin) = match index {
                0 => (files.limit(), None),
                _ => files.read(None),
            };
            let begin = begin.unwrap_or_default();
            Level {
                path: path.to_owned(),
                limit: limit.unwrap_or(0),
                files,
                begin,
                last: begin,
            }
        })
        .collect()
}

impl Level {
    /// Takes its numbers; false when it is gone. `held`: its `memory.events`, open.
    fn look(&mut self, held: Option<&File>) -> bool {
        let (limit, counts) = self.files.read(held);
        self.last = counts.unwrap_or(self.last);
        // Of one above it is wanted only when that one is to blame.
        let limit = limit.or_else(|| self.at_limit().then(|| self.files.limit()).flatten());
        self.limit = limit.unwrap_or(self.limit);
        counts.is_some()
    }

    fn has_killed(&self) -> bool {
        self.last.kills > self.begin.kills
    }

    fn at_limit(&self) -> bool {
        self.last.at_limit > self.begin.at_limit
    }

    fn at_limit_below(&self) -> bool {
        self.last.at_limit_below > self.begin.at_limit_below
    }
}

impl Files {
    /// The limit, which is not looked for above a v2 cgroup, and what was counted: None when
    /// the cgroup is gone. `held`: its `memory.events`, open.
    fn read(&self, held: Option<&File>) -> (Option<u64>, Option<Counts>) {
        match self.version {
            Version::V1 => {
                let limit = self.limit();
                (limit, limit.and_then(|limit| self.counts_v1(limit)))
            }
            Version::V2 => (self.limit(), self.counts_v2(held)),
            Version::V2Above => (None, self.counts_v2(held)),
        }
    }

    fn counts_v1(&self, limit: u64) -> Option<Counts> {
        let number = |name| self.text(name)?.trim().parse::<u64>().ok();
        // Without a limit of memory there is none of memory and swap either.
        let at_limit = if limit < NO_LIMIT {
            // Linux since 6.16 does not count failures of memory and swap together.
            let most = number("memory.memsw.max_usage_in_bytes");
            let full = most.is_some() && most >= number("memory.memsw.limit_in_bytes");
            let failures = number("memory.failcnt")? + number("memory.memsw.failcnt").unwrap_or(0);
            failures + u64::from(full)
        } else {
            0
        };
        Some(Counts {
            kills: Keyed::new(&self.text("memory.oom_control")?).of("oom_kill"),
            at_limit,
            at_limit_below: 0,
        })
    }

    fn counts_v2(&self, held: Option<&File>) -> Option<Counts> {
        let events = match held {
            Some(file) => again(file)?,
            None => self.text("memory.events")?,
        };
        // Since Linux 5.2.
        let local = match self.version {
            Version::V2Above => self.text("memory.events.local"),
            _ => None,
        };
        let count = |text: &str, key| Keyed::new(text).of(key);
        Some(Counts {
            kills: count(&events, "oom_kill"),
            at_limit: count(local.as_ref().unwrap_or(&events), "oom"),
            at_limit_below: count(&events, "oom"),
        })
    }

    /// In bytes; None when it is gone, or has none.
    fn limit(&self) -> Option<u64> {
        let name = match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 | Version::V2Above => "memory.max",
        };
        self.text(name)?.trim().parse().ok()
    }

    fn text(&self, name: &str) -> Option<String> {
        files::read_if_exists(&self.folder.join(name)).ok().flatten()
    }
}

/// Reads a file from its beginning, which also has the kernel take its change for seen.
fn again(file: &File) -> Option<String> {
    let mut buffer = [0; 512];
    let count = file.read_at(&mut buffer, 0).ok()?;
    Some(String::from_utf8_lossy(buffer.get(..count)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A watch over folders that a test writes; the container's is the first.
    fn watch(root: &std::path::Path, version: [Version; 2]) -> OomWatch {
        let level = |path: &str, version| {
            let files = Files {
                folder: root.join(path.trim_start_matches('/')),
                version,
            };
            fs::create_dir_all(&files.folder).unwrap();
            let begin = files.read(None).1.unwrap_or_default();
            Level {
                path: path.into(),
                files,
                begin,
                last: begin,
                limit: 0,
            }
        };
        OomWatch {
            levels: vec![level("/pod/c", version[0]), level("/pod", version[1])],
            events: None,
        }
    }

    const V2: [Version; 2] = [Version::V2, Version::V2Above];

    fn write(root: &std::path::Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn whose_limit_it_was() {
        let container = [
            ("pod/c/memory.events", "max 9\noom 3\noom_kill 1\n"),
            ("pod/memory.events", "oom 3\noom_kill 1\n"),
        ];
        let pod = [
            ("pod/c/memory.events", "oom 2\noom_kill 1\n"),
            ("pod/memory.events", "oom 5\noom_kill 1\n"),
            ("pod/memory.events.local", "oom 2\noom_kill 0\n"),
        ];
        let node = [("pod/c/memory.events", "oom 2\noom_kill 1\n")];
        let none = [("pod/c/memory.events", "oom 3\noom_kill 0\n")];
        for (files, expected) in [
            (&container[..], Some(("/pod/c", 20))),
            (&pod[..], Some(("/pod", 40))),
            (&node[..], Some(("", 0))),
            (&none[..], None),
        ] {
            let root = tempfile::tempdir().unwrap();
            // What was before the container does not count.
            write(
                root.path(),
                &[
                    ("pod/c/memory.events", "oom 2\noom_kill 0\n"),
                    ("pod/c/memory.max", "20\n"),
                    ("pod/memory.events", "oom 2\noom_kill 0\n"),
                    ("pod/memory.events.local", "oom 0\noom_kill 0\n"),
                    ("pod/memory.max", "40\n"),
                ],
            );
            let mut watch = watch(root.path(), V2);
            watch.look();
            assert_eq!(watch.verdict(true), None);
            write(root.path(), files);
            watch.look();
            let expected = expected.map(|(cgroup, limit): (&str, u64)| OomKill {
                cgroup: cgroup.into(),
                limit,
            });
            assert_eq!(watch.verdict(false), expected, "{files:?}");
        }
    }

    #[test]
    fn a_cgroup_that_went_away_before_its_victims_were_read() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("pod/c/memory.events", "oom 0\noom_kill 0\n"),
                ("pod/c/memory.max", "20\n"),
            ],
        );
        let mut watch = watch(root.path(), V2);
        write(root.path(), &[("pod/c/memory.events", "oom 1\noom_kill 0\n")]);
        watch.look();
        assert_eq!(watch.verdict(true), None, "it is there, and none was killed");
        fs::remove_dir_all(root.path().join("pod/c")).unwrap();
        watch.look();
        assert_eq!(watch.verdict(false), None);
        let verdict = watch.verdict(true).unwrap();
        assert_eq!((&*verdict.cgroup, verdict.limit), ("/pod/c", 20));
    }

    #[test]
    fn one_that_was_never_read_again_is_known_above() {
        for (above, expected) in [
            ("oom 1\noom_kill 1\n", Some(("/pod/c", 20))),
            ("oom 0\noom_kill 1\n", Some(("", 0))),
            ("oom 1\noom_kill 0\n", None),
        ] {
            let root = tempfile::tempdir().unwrap();
            let none = "oom 0\noom_kill 0\n";
            let files = [
                "pod/c/memory.events",
                "pod/memory.events",
                "pod/memory.events.local",
            ];
            write(root.path(), &files.map(|file| (file, none)));
            write(root.path(), &[("pod/c/memory.max", "20\n")]);
            let mut watch = watch(root.path(), V2);
            watch.look();
            fs::remove_dir_all(root.path().join("pod/c")).unwrap();
            write(root.path(), &[("pod/memory.events", above)]);
            watch.look();
            let verdict = watch.verdict(true).map(|kill| (kill.cgroup, kill.limit));
            let expected = expected.map(|(cgroup, limit): (&str, u64)| (cgroup.to_owned(), limit));
            assert_eq!(verdict, expected, "{above:?}");
        }
    }

    #[test]
    fn the_files_of_v1() {
        let root = tempfile::tempdir().unwrap();
        let control = |kills| format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n");
        write(
            root.path(),
            &[
                ("pod/c/memory.oom_control", &control(0)),
                ("pod/c/memory.failcnt", "0\n"),
                ("pod/c/memory.memsw.max_usage_in_bytes", "10\n"),
                ("pod/c/memory.memsw.limit_in_bytes", "20\n"),
                ("pod/c/memory.limit_in_bytes", "20\n"),
                ("pod/memory.oom_control", &control(0)),
                ("pod/memory.failcnt", "7\n"),
                ("pod/memory.limit_in_bytes", "40\n"),
            ],
        );
        let mut watch = watch(root.path(), [Version::V1; 2]);
        write(
            root.path(),
            &[
                ("pod/c/memory.oom_control", &control(1)),
                ("pod/memory.failcnt", "9\n"),
            ],
        );
        watch.look();
        let verdict = watch.verdict(false).unwrap();
        assert_eq!((&*verdict.cgroup, verdict.limit), ("/pod", 40));
        write(root.path(), &[("pod/c/memory.memsw.max_usage_in_bytes", "20\n")]);
        watch.look();
        let verdict = watch.verdict(false).unwrap();
        assert_eq!((&*verdict.cgroup, verdict.limit), ("/pod/c", 20));
    }
}
