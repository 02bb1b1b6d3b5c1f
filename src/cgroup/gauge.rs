//! A cgroup that is measured again and again: one pass over its files, each read once and by
//! one call, and kept open for the next time, for opening a file of a cgroup takes five times
//! as long as reading it. An open file costs the kernel some 5 KiB, so only those are kept that
//! a kubelet asks for every few seconds, and only so many.

use std::{
    cell::{Cell, RefCell},
    ffi::CString,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};

use super::{
    Error, Layout, Result, files,
    stats::{Detail, Stats},
    stats_v1, stats_v2, tree,
};

/// Most files that are kept, of all cgroups together: 600 containers have their files open,
/// in 20 MiB of the kernel's memory. Those of others are opened each time.
const MAX_KEPT: usize = 4096;

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Measures one cgroup.
#[derive(Debug, Default)]
pub struct Gauge(Mutex<Vec<Open>>);

/// The cgroup's folder in one hierarchy.
#[derive(Debug)]
struct Open {
    /// Place in the layout.
    hierarchy: usize,
    folder: Folder,
}

impl Gauge {
    /// What the cgroup `path` has used, always the same one; None when it is gone.
    ///
    /// # Errors
    /// For a malformed path; the file and the errno.
    pub fn measure(&self, path: &str, detail: Detail) -> Result<Option<Stats>> {
        tree::check_path(path)?;
        let layout = Layout::detect()?;
        let mut open = self.open();
        let kept = !open.is_empty();
        let mut found = read(&mut open, layout, path, detail)?;
        if open.iter().any(|one| one.folder.gone.get()) || found.is_none() {
            // It was removed, and perhaps made anew.
            open.clear();
            if kept {
                found = read(&mut open, layout, path, detail)?;
            }
        }
        Ok(found)
    }

    /// Closes what is kept: of a cgroup that is gone, open files would keep its memory.
    pub fn close(&self) {
        self.open().clear();
    }

    fn open(&self) -> MutexGuard<'_, Vec<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(open: &mut Vec<Open>, layout: &Layout, path: &str, detail: Detail) -> Result<Option<Stats>> {
    let needed = layout.hierarchies.iter().enumerate();
    for (place, hierarchy) in needed.filter(|(_, hierarchy)| detail.needs(hierarchy)) {
        if !open.iter().any(|one| one.hierarchy == place)
            && let Some(folder) = Folder::open(&hierarchy.folder(path))?
        {
            open.push(Open {
                hierarchy: place,
                folder,
            });
        }
    }
    let mut v1 = Vec::new();
    let mut unified = None;
    for one in open.iter() {
        one.folder.keeps.set(detail != Detail::All);
        match layout.hierarchies.get(one.hierarchy) {
            Some(hierarchy) if hierarchy.is_v2() => unified = Some(&one.folder),
            Some(hierarchy) => v1.push((hierarchy.controllers.as_slice(), &one.folder)),
            None => {}
        }
    }
    // With controllers in v1, the v2 hierarchy of a hybrid machine has pressure only.
    let stats = match unified {
        Some(folder) if layout.is_pure_v2() => stats_v2::read(folder, detail)?,
        unified => stats_v1::read(&v1, unified, detail)?,
    };
    // Every cgroup that is there has at least one of them.
    Ok((stats.cpu.is_some() || stats.memory.is_some()).then_some(stats))
}

/// An open cgroup folder, and those of its files that are read again.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    kept: RefCell<Vec<Kept>>,
    /// Whether files that are read now are kept.
    keeps: Cell<bool>,
    /// A kept file's cgroup is no longer there.
    gone: Cell<bool>,
}

#[derive(Debug)]
struct Kept {
    name: Box<str>,
    fd: OwnedFd,
}

impl Kept {
    /// None: there are enough.
    fn new(name: &str, fd: OwnedFd) -> Option<Kept> {
        if KEPT.fetch_add(1, Ordering::Relaxed) >= MAX_KEPT {
            KEPT.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Kept {
            name: name.into(),
            fd,
        })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Folder {
    /// None when it does not exist.
    pub fn open(path: &Path) -> Result<Option<Folder>> {
        let found = files::open_folder(path)?;
        Ok(found.map(|fd| Folder {
            fd,
            path: path.to_owned(),
            kept: RefCell::default(),
            keeps: Cell::new(false),
            gone: Cell::new(false),
        }))
    }

    /// The text of a file; None when there is none, when the kernel has it switched
    /// off, or when the cgroup is being removed.
    pub fn read(&self, name: &str) -> Result<Option<String>> {
        let failed = |step, errno| Error::File {
            step,
            path: self.path.join(name),
            errno,
        };
        let mut kept = self.kept.borrow_mut();
        if let Some(file) = kept.iter().find(|file| &*file.name == name) {
            return text(&file.fd).or_else(|errno| match errno {
                Errno::NODEV | Errno::NOENT => {
                    self.gone.set(true);
                    Ok(None)
                }
                Errno::OPNOTSUPP => Ok(None),
                errno => Err(failed("read", errno)),
            });
        }
        let Ok(file) = CString::new(name) else {
            return Ok(None);
        };
        let fd = match openat(&self.fd, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(None),
            Err(errno) => return Err(failed("open", errno)),
        };
        match text(&fd) {
            Ok(text) => {
                if self.keeps.get() {
                    kept.extend(Kept::new(name, fd));
                }
                Ok(text)
            }
            Err(Errno::NODEV | Errno::NOENT | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(failed("read", errno)),
        }
    }

    /// A file with one number; None for "max" too.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.read(name)?.and_then(|text| text.trim().parse().ok()))
    }

    /// The names of its files that begin with `start`.
    pub fn names(&self, start: &str) -> Vec<String> {
        let open = || {
            openat(
                CWD,
                &self.path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let Ok(entries) = open().and_then(rustix::fs::Dir::new) else {
            return Vec::new();
        };
        let names = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.filter(|name| name.starts_with(start)).collect();
        names.sort();
        names
    }

    /// The processes in it and below it.
    pub fn processes(&self) -> Result<u64> {
        let mut pids = Vec::new();
        tree::collect_pids(&self.path, &mut pids)?;
        Ok(pids.len().try_into().unwrap_or(u64::MAX))
    }
}

/// All of a file, whatever was read of it before.
fn text(fd: &OwnedFd) -> std::result::Result<Option<String>, Errno> {
    let mut text = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        match rustix::io::pread(fd, &mut buffer, u64::try_from(text.len()).unwrap_or(0)) {
            Ok(count) => {
                text.extend_from_slice(buffer.get(..count).unwrap_or_default());
                // The kernel writes such a file in one go: it gives less than there is
                // room for only at the end.
                if count < buffer.len() {
                    return Ok(Some(String::from_utf8_lossy(&text).into_owned()));
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A folder with these files, as a cgroup has them.
    pub fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let folder = Folder::open(dir.path()).unwrap().unwrap();
        (dir, folder)
    }

    #[test]
    fn what_is_not_there_is_absent() {
        let (_dir, folder) = folder(&[("a", "max\n"), ("b", "12\n")]);
        assert_eq!(folder.read("none").unwrap(), None);
        assert_eq!(folder.number("a").unwrap(), None);
        assert_eq!(folder.number("b").unwrap(), Some(12));
        assert_eq!(folder.names("b"), ["b"]);
    }

    #[test]
    fn what_is_kept_is_read_anew() {
        let long = "x".repeat(20_000);
        let (dir, folder) = folder(&[("a", "1\n"), ("b", &long)]);
        folder.keeps.set(true);
        assert_eq!(folder.number("a").unwrap(), Some(1));
        assert_eq!(folder.read("b").unwrap(), Some(long.clone()));
        // The same file with another content; one in its place is not looked at.
        std::fs::write(dir.path().join("a"), "22\n").unwrap();
        std::fs::remove_file(dir.path().join("b")).unwrap();
        assert_eq!(folder.number("a").unwrap(), Some(22));
        assert_eq!(folder.read("b").unwrap(), Some(long));
        assert_eq!(folder.kept.borrow().len(), 2);
    }
}
