//! The socket: a Unix socket of mode 0600 in a folder of mode 0700, the peer's
//! credentials, message sizes and keep-alive.

use std::{
    fs,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::{image_service::ImageApi, lingering::Lingering, observe::Observed, runtime_service::RuntimeApi};
use crate::{
    proto::cri::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
    sys,
};

/// The kubelet's own limit, of both directions.
const MESSAGE_LIMIT: usize = 16 << 20;

/// Errors of making the socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("address {0:?} is not of the form unix:///ABSOLUTE/PATH")]
    Address(String),
    #[error("{step} {path}: {source}")]
    Io {
        step: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("socket {path} is served by another process: stop it, or use another --address")]
    Busy { path: PathBuf },
    #[error("serve: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// The path of `unix:///PATH`.
pub fn socket_path(address: &str) -> Result<PathBuf, Error> {
    let path = address.strip_prefix("unix://").map(PathBuf::from);
    path.filter(|p| p.is_absolute())
        .ok_or_else(|| Error::Address(address.to_owned()))
}

/// Binds the socket. One that a dead process left is replaced; one that answers is not.
/// With a `group`, its members may use the socket too.
pub async fn bind(path: &Path, group: Option<u32>) -> Result<UnixListener, Error> {
    let io = |step: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { step, path, source }
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let (folder_mode, socket_mode) = if group.is_some() {
        (0o750, 0o660)
    } else {
        (0o700, 0o600)
    };
    if !folder.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(folder_mode)
            .create(folder)
            .map_err(io("make folder", folder))?;
        std::os::unix::fs::chown(folder, None, group).map_err(io("set the group of", folder))?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let source = std::io::Error::other("something that is no socket is in the way");
            return Err(Error::Io {
                step: "bind",
                path: path.into(),
                source,
            });
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => return Err(Error::Busy { path: path.into() }),
        Ok(_) => fs::remove_file(path).map_err(io("remove the old socket", path))?,
        Err(_) => {}
    }
    // The folder may be an open one (/run, /tmp): the socket gets its mode before it
    // gets its name.
    let making = path.with_extension(format!("making-{}", std::process::id()));
    let _ = fs::remove_file(&making);
    let listener = UnixListener::bind(&making).map_err(io("bind", &making))?;
    fs::set_permissions(&making, fs::Permissions::from_mode(socket_mode))
        .map_err(io("set the mode of", path))?;
    std::os::unix::fs::chown(&making, None, group).map_err(io("set the group of", path))?;
    fs::rename(&making, path).map_err(io("name", path))?;
    Ok(listener)
}

/// Connections of root, of our own user, and of the group when one is set. The
/// file's mode says the same; this holds when somebody loosens it.
fn admitted(
    listener: UnixListener,
    group: Option<u32>,
    open: mpsc::Sender<()>,
) -> impl Stream<Item = Result<Lingering, std::io::Error>> {
    let own = rustix::process::geteuid().as_raw();
    UnixListenerStream::new(listener).filter_map(move |accepted| {
        let stream = match accepted {
            Ok(stream) => stream,
            // Out of descriptors, or a client that left in between: the server goes on.
            Err(error) => {
                tracing::warn!(%error, "accept");
                return std::future::ready(None);
            }
        };
        let admitted = stream.peer_cred().is_ok_and(|peer| {
            peer.uid() == 0 || peer.uid() == own || group.is_some_and(|g| is_member(&stream, peer.gid(), g))
        });
        if !admitted {
            tracing::warn!(peer = ?stream.peer_cred(), "refused a client: neither root, nor our user, nor our group");
        }
        std::future::ready(admitted.then(|| Ok(Lingering::new(stream, open.clone()))))
    })
}

/// Whether the peer is of the group, by its primary or a supplementary one.
fn is_member(stream: &UnixStream, primary: u32, group: u32) -> bool {
    primary == group || sys::peer::groups(stream.as_fd()).is_ok_and(|all| all.contains(&group))
}

/// Serves both services until `shutdown`; calls under way are answered before it returns,
/// and connections are closed.
pub async fn serve(
    listener: UnixListener,
    group: Option<u32>,
    runtime: RuntimeApi,
    image: ImageApi,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let runtime = RuntimeServiceServer::new(runtime)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let image = ImageServiceServer::new(image)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let (runtime, image) = (Observed(runtime), Observed(image));
    let (open, mut ended) = mpsc::channel(1);
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_service(runtime)
        .add_service(image)
        .serve_with_incoming_shutdown(admitted(listener, group, open), shutdown)
        .await?;
    // Until all that was open is closed.
    ended.recv().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(
            socket_path("unix:///run/berth/berth.sock").unwrap(),
            Path::new("/run/berth/berth.sock")
        );
        for wrong in [
            "",
            "/run/berth.sock",
            "unix://run/berth.sock",
            "tcp://127.0.0.1:1",
        ] {
            assert!(socket_path(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/berth.sock");
        let first = bind(&path, None).await.unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(matches!(bind(&path, None).await, Err(Error::Busy { .. })));
        drop(first);
        bind(&path, None).await.unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        assert!(
            bind(&path, None)
                .await
                .unwrap_err()
                .to_string()
                .contains("no socket")
        );
    }
}
