//! The shim as a process: how it is started and how its socket is reached.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;

use super::{Error, fork_server::ForkServer, ttrpc::Client, watched};
use crate::shim::{SOCKET, fork_server::Beginning};

/// The shim's log in the container's state folder.
const LOG: &str = "shim.log";

/// Binds the socket in `dir` and has the shim made: its pid and pidfd. The error with its step.
pub async fn start(
    server: &ForkServer,
    id: &str,
    dir: &Path,
) -> Result<(u32, OwnedFd), (&'static str, io::Error)> {
    let (folder, socket) = socket_path(dir).map_err(|error| ("open the folder", error))?;
    match fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(("remove the old socket", error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&socket).map_err(|error| ("bind shim.sock", error))?;
    // As berthd's own, should the folders above it be opened by somebody.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))
        .map_err(|error| ("set the mode of shim.sock", error))?;
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(dir.join(LOG))
        .map_err(|error| ("open shim.log", error))?;
    let with = Beginning {
        listener: listener.as_fd(),
        folder: folder.as_fd(),
        log: log.as_fd(),
    };
    server
        .fork(id, &with)
        .await
        .map_err(|error| ("make its process", error))
}

/// Waits for a child, so that it is no zombie when it has ended. If berthd ends first,
/// init does it.
pub async fn reap(pidfd: OwnedFd) {
    match watched(pidfd, Interest::READABLE) {
        Ok(pidfd) => {
            let _ = pidfd.readable().await;
            let _ = waitid(
                WaitId::PidFd(pidfd.as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            );
        }
        Err(error) => tracing::warn!(%error, "a shim cannot be waited for, and stays a zombie when it ends"),
    }
}

/// A path to the socket that is short enough for a sockaddr_un, whatever the
/// folder's is; good as long as the descriptor is open.
fn socket_path(dir: &Path) -> io::Result<(File, PathBuf)> {
    let folder = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(dir)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    Ok((folder, path.into()))
}

/// Connects to the socket in `dir`; [`Error::Gone`] when nobody listens.
pub async fn connect(id: &str, dir: &Path) -> Result<Client, Error> {
    let gone = || Error::Gone {
        id: id.into(),
        dir: dir.into(),
    };
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => gone(),
        _ => Error::Connect {
            id: id.into(),
            dir: dir.into(),
            source,
        },
    };
    let (_folder, path) = socket_path(dir).map_err(failed)?;
    let stream = tokio::net::UnixStream::connect(&path).await.map_err(failed)?;
    Ok(Client::new(stream))
}

/// The id of the shim that a process is: it is known by its name, and by its working
/// folder, which is or was in `bundles`. None: it is none, or has ended.
pub fn shim_of(pid: u32, bundles: &Path) -> Option<String> {
    let process = Path::new("/proc").join(pid.to_string());
    let line = fs::read(process.join("cmdline")).ok()?;
    let folder = fs::read_link(process.join("cwd")).ok()?;
    // By inode, for the path to the state folder may lead through links.
    let place = |path: &Path| fs::metadata(path).map(|folder| (folder.dev(), folder.ino()));
    let here = place(&process.join("cwd/..")).ok()? == place(bundles).ok()?;
    if !line.starts_with(b"berth-shim\0") || !here {
        return None;
    }
    let id = folder.file_name()?.to_string_lossy();
    Some(id.strip_suffix(" (deleted)").unwrap_or(&id).to_owned())
}

/// Kills the shim of `id`, whose folder is `dir`, however it hangs; whether there was one.
/// It cannot be asked for its pid then, and nobody remembers it after a restart.
pub fn kill_by_folder(id: &str, dir: &Path) -> io::Result<bool> {
    let bundles = dir.parent().unwrap_or(dir);
    let mut found = false;
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
        // Held before it is looked at, so that the pid cannot become another's.
        let Some(Ok(process)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
            continue;
        };
        if shim_of(number, bundles).is_some_and(|of| of == id) {
            pidfd_send_signal(&process, Signal::KILL)?;
            found = true;
        }
    }
    Ok(found)
}

/// The last line of the shim's log, for an error: empty, or begins with ": ".
pub fn last_words(dir: &Path) -> String {
    let tail = || -> io::Result<String> {
        let mut log = File::open(dir.join(LOG))?;
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(1024)))?;
        let mut tail = Vec::new();
        log.take(1024).read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).into_owned())
    };
    // Not the hint about a backtrace that ends a panic's report.
    let text = tail().unwrap_or_default();
    let told: Vec<&str> = text.lines().filter(|line| !line.starts_with("note: ")).collect();
    match told.rchunks(2).next() {
        Some(last) => format!(": {}", last.join(" ")),
        None => String::new(),
    }
}
