//! What goes wrong in streaming.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::kind::{HasKind, Kind};

/// Errors of the streaming server and of what it streams to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen for streaming on {address}: {source}; set streaming.address to an address of this host")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("streaming certificate {path}: {message}")]
    Certificate { path: PathBuf, message: String },
    /// The request is wrong by itself.
    #[error("streaming request: {0}")]
    Invalid(&'static str),
    #[error("streaming request: {limit} URLs wait unused; each is free again after {seconds} seconds")]
    TooManyTokens { limit: usize, seconds: u64 },
    #[error("streaming token: getrandom: {0}")]
    Random(getrandom::Error),
    /// What the backend says; its message names object and step.
    #[error("{message}")]
    Backend { kind: Kind, message: String },
}

impl Error {
    /// An error of the backend.
    pub fn backend(kind: Kind, message: impl Into<String>) -> Error {
        Error::Backend {
            kind,
            message: message.into(),
        }
    }
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Listen { .. } | Error::Random(_) => Kind::Internal,
            Error::Certificate { .. } => Kind::FailedPrecondition,
            Error::Invalid(_) => Kind::InvalidArgument,
            Error::TooManyTokens { .. } => Kind::ResourceExhausted,
            Error::Backend { kind, .. } => *kind,
        }
    }
}
