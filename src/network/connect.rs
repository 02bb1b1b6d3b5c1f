//! Connecting to what listens inside a pod, from the node: no program is run for
//! it, and no route to the pod is needed.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use super::host::{self, inside, open_netns};
use crate::kind::{HasKind, Kind};

/// Loopback answers at once, but a listener whose queue is full does not.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why nobody was reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Namespace(#[from] host::Error),
    #[error("connect to 127.0.0.1:{port} and [::1]:{port} in {netns}: {source}: is the port listened on?")]
    Connect {
        port: u16,
        netns: PathBuf,
        source: io::Error,
    },
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Namespace(_) => Kind::Internal,
            Error::Connect { .. } => Kind::Unavailable,
        }
    }
}

/// Connects to a port of the loopback, IPv4 first and then IPv6, in the pinned
/// network namespace; without one in the node's. Blocks.
pub fn connect(netns: Option<&Path>, port: u16) -> Result<TcpStream, Error> {
    let connect = || {
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        TcpStream::connect_timeout(&v4, PATIENCE)
            // The first error is the one to tell: most pods listen on IPv4.
            .or_else(|error| TcpStream::connect_timeout(&v6, PATIENCE).map_err(|_| error))
            .map_err(|source| Error::Connect {
                port,
                netns: netns.unwrap_or(Path::new("the network of the node")).into(),
                source,
            })
    };
    match netns {
        None => connect(),
        Some(path) => inside(&open_netns(path)?, path, connect),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn both_families_of_the_node() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = v4.local_addr().unwrap().port();
        assert!(connect(None, port).unwrap().peer_addr().unwrap().is_ipv4());
        drop(v4);
        let Ok(v6) = TcpListener::bind(("::1", 0)) else {
            println!("skipped: this host has no IPv6");
            return;
        };
        let port = v6.local_addr().unwrap().port();
        assert!(connect(None, port).unwrap().peer_addr().unwrap().is_ipv6());
        drop(v6);
        let error = connect(None, port).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
}
