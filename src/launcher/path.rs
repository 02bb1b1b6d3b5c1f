//! Paths inside a root that may be hostile: resolved by the kernel (openat2 with
//! RESOLVE_IN_ROOT), made component by component through descriptors, never joined
//! to a path on the host.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat_raw};
use rustix::io::Errno;

/// As many links as the kernel follows.
const MAX_LINKS: u32 = 40;
const PATH_MAX: usize = 4096;

/// What is made when the last component is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    Folder,
    File,
}

/// Links are followed, as inside of a chroot; those of procfs never.
pub const FOLLOW: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// Not a single link: for what we make in /dev, which must be the /dev we mounted (CVE-2026-41579 of runc).
pub const NO_LINKS: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_SYMLINKS);

/// An O_PATH descriptor of what exists.
pub fn find(root: BorrowedFd<'_>, path: &CStr, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { c"/" } else { path };
    loop {
        match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename raced with "..": the kernel asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
}

/// An O_PATH descriptor of what exists, or was made with its missing parents (folders
/// 0755, files 0644). A link that leads to nothing is followed, as images with
/// `/var/run -> /run` and no /run need it.
pub fn find_or_make(
    root: BorrowedFd<'_>,
    path: &CStr,
    leaf: Leaf,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    match find(root, path, resolve) {
        Err(Errno::NOENT) => {}
        answer => return answer,
    }
    let mut wanted = Buffer::new();
    wanted.push(path.to_bytes())?;
    for _ in 0..MAX_LINKS {
        if let Some(fd) = make(root, &mut wanted, leaf, resolve)? {
            return Ok(fd);
        }
    }
    Err(Errno::LOOP)
}

/// None: a link was in the way, `path` is now the one behind it, and the walk starts again.
fn make(
    root: BorrowedFd<'_>,
    path: &mut Buffer,
    leaf: Leaf,
    resolve: ResolveFlags,
) -> Result<Option<OwnedFd>, Errno> {
    let mut folder = find(root, c"/", resolve)?;
    let mut done = 0;
    while let Some((start, end)) = path.component(done) {
        let last = path.component(end).is_none();
        let found = path.with_prefix(end, |prefix| find(root, prefix, resolve))?;
        match found {
            Ok(fd) => folder = fd,
            Err(Errno::NOENT) => {
                let mode =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = path.with_component(start, end, |name| {
                    if last && leaf == Leaf::File {
                        openat(&folder, name, mode, Mode::from_raw_mode(0o644)).map(drop)
                    } else {
                        mkdirat(&folder, name, Mode::from_raw_mode(0o755))
                    }
                })?;
                match made {
                    Ok(()) => {
                        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        folder = path.with_component(start, end, |name| {
                            openat(&folder, name, flags, Mode::empty())
                        })??;
                    }
                    Err(Errno::EXIST) if !resolve.contains(ResolveFlags::NO_SYMLINKS) => {
                        *path = path.behind_link(&folder, start, end)?;
                        return Ok(None);
                    }
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        }
        done = end;
    }
    Ok(Some(folder))
}

/// A path on the stack, for nothing may be allocated here.
struct Buffer {
    bytes: [u8; PATH_MAX],
    length: usize,
}

impl Buffer {
    fn new() -> Self {
        Self {
            bytes: [0; PATH_MAX],
            length: 0,
        }
    }

    /// One byte stays free for the terminator.
    fn push(&mut self, text: &[u8]) -> Result<(), Errno> {
        let end = self.length + text.len();
        if end >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes
            .get_mut(self.length..end)
            .ok_or(Errno::NAMETOOLONG)?
            .copy_from_slice(text);
        self.length = end;
        Ok(())
    }

    fn slice(&self, from: usize, to: usize) -> Result<&[u8], Errno> {
        self.bytes.get(from..to).ok_or(Errno::INVAL)
    }

    /// Start and end of the next component at or behind `from`.
    fn component(&self, from: usize) -> Option<(usize, usize)> {
        let rest = self.bytes.get(from..self.length)?;
        let start = from + rest.iter().position(|byte| *byte != b'/')?;
        let rest = self.bytes.get(start..self.length)?;
        let length = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        Some((start, start + length))
    }

    fn with_component<T>(&mut self, from: usize, to: usize, f: impl FnOnce(&CStr) -> T) -> Result<T, Errno> {
        let end = self.bytes.get_mut(to).ok_or(Errno::INVAL)?;
        let saved = std::mem::replace(end, 0);
        let name = CStr::from_bytes_until_nul(self.bytes.get(from..=to).ok_or(Errno::INVAL)?);
        let answer = f(name.map_err(|_| Errno::INVAL)?);
        if let Some(end) = self.bytes.get_mut(to) {
            *end = saved;
        }
        Ok(answer)
    }

    fn with_prefix<T>(&mut self, to: usize, f: impl FnOnce(&CStr) -> T) -> Result<T, Errno> {
        self.with_component(0, to, f)
    }

    /// The path with the link at `start..end` replaced by what it says.
    fn behind_link(&mut self, folder: &OwnedFd, start: usize, end: usize) -> Result<Self, Errno> {
        let mut target = [0u8; PATH_MAX];
        let length = self
            .with_component(start, end, |name| readlinkat_raw(folder, name, &mut target[..]))?
            // Not a link: somebody else was faster, and made something else.
            .map_err(|errno| {
                if errno == Errno::INVAL {
                    Errno::EXIST
                } else {
                    errno
                }
            })?;
        let target = target.get(..length).ok_or(Errno::NAMETOOLONG)?;
        let mut next = Self::new();
        if target.first() != Some(&b'/') {
            next.push(self.slice(0, start)?)?;
        }
        next.push(target)?;
        next.push(self.slice(end, self.length)?)?;
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let folder = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(folder.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        (folder, fd)
    }

    #[test]
    fn missing_folders_and_files_are_made() {
        let (folder, root) = root();
        find_or_make(root.as_fd(), c"/a/b//c", Leaf::Folder, FOLLOW).unwrap();
        find_or_make(root.as_fd(), c"a/b/file", Leaf::File, FOLLOW).unwrap();
        find_or_make(root.as_fd(), c"/a/b/file", Leaf::File, NO_LINKS).unwrap();
        find_or_make(root.as_fd(), c"/", Leaf::Folder, FOLLOW).unwrap();
        assert!(folder.path().join("a/b/c").is_dir());
        assert!(folder.path().join("a/b/file").is_file());
    }

    #[test]
    fn links_stay_inside_and_dangling_ones_are_followed() {
        let (folder, root) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), folder.path().join("abs")).unwrap();
        symlink("../../../../../up", folder.path().join("rel")).unwrap();
        std::fs::create_dir(folder.path().join("var")).unwrap();
        symlink("/run", folder.path().join("var/run")).unwrap();
        symlink("loop", folder.path().join("loop")).unwrap();
        find_or_make(root.as_fd(), c"/abs/x", Leaf::Folder, FOLLOW).unwrap();
        find_or_make(root.as_fd(), c"/rel/y", Leaf::File, FOLLOW).unwrap();
        find_or_make(root.as_fd(), c"/var/run/secrets", Leaf::Folder, FOLLOW).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(folder.path().join("up/y").is_file());
        assert!(folder.path().join("run/secrets").is_dir());
        let looped = find_or_make(root.as_fd(), c"/loop/z", Leaf::Folder, FOLLOW);
        assert_eq!(looped.unwrap_err(), Errno::LOOP);
        let no_links = find_or_make(root.as_fd(), c"/var/run/x", Leaf::Folder, NO_LINKS);
        assert_eq!(no_links.unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_path_that_is_too_long_is_refused() {
        let (_folder, root) = root();
        let long = std::ffi::CString::new("a/".repeat(3000)).unwrap();
        assert!(find_or_make(root.as_fd(), &long, Leaf::Folder, FOLLOW).is_err());
    }
}
