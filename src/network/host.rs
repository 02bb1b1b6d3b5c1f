//! The node's own settings, and threads inside a pod's namespace.

use std::{
    fs,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use rustix::thread::LinkNameSpaceType;

/// The namespace of the calling thread, whatever its process is in.
pub const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// A failure with a file, which is named.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}: {source}")]
pub struct Error {
    pub step: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl Error {
    pub fn new(step: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Error {
        Error {
            step,
            path: path.into(),
            source: source.into(),
        }
    }

    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Where a sysctl is, from its parts ("net", "ipv4", "ip_forward").
pub fn sysctl_path(parts: &[&str]) -> PathBuf {
    Path::new("/proc/sys").join(parts.join("/"))
}

/// Reads a sysctl of the calling thread's namespaces; None: this kernel has none.
pub fn read_sysctl(path: &Path) -> Result<Option<String>, Error> {
    let mut text = String::new();
    match fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text.trim_end().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::new("read sysctl", path, source)),
    }
}

/// Writes a sysctl of the calling thread's namespaces, in one write.
pub fn write_sysctl(path: &Path, value: &str) -> Result<(), Error> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| Error::new("write sysctl", path, source))
}

/// Opens a pinned network namespace.
pub fn open_netns(path: &Path) -> Result<OwnedFd, Error> {
    fs::File::open(path)
        .map(OwnedFd::from)
        .map_err(|source| Error::new("open network namespace", path, source))
}

/// Runs `work` in a thread inside the network namespace. What it opens there
/// (sockets) stays of that namespace afterwards.
pub fn inside<T: Send, E: Send + From<Error>>(
    netns: &OwnedFd,
    path: &Path,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    let enter = || {
        rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| Error::new("enter network namespace", path, e))?;
        work()
    };
    in_thread(path, enter)
}

/// Runs `work` in a thread of its own, which may change its namespaces: it ends
/// with the work and goes back to no pool.
pub fn in_thread<T: Send, E: Send + From<Error>>(
    path: &Path,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, work)
            .map_err(|source| Error::new("start a thread for", path, source))?;
        thread.join().unwrap_or_else(|_| {
            Err(Error::new("work in a thread for", path, io::Error::other("it panicked")).into())
        })
    })
}
