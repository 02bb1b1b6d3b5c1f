//! The errors of images: each names the image or object, the step, who said
//! what, and where it helps, what to do. No credential and no query string of a
//! URL (which may be signed) is ever in one.

use std::{fmt, io, path::PathBuf, sync::Arc};

use crate::{
    kind::{HasKind, Kind},
    store,
};

/// Errors of images.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("image reference {reference:?}: {message}")]
    Reference { reference: String, message: String },
    #[error("image {name:?} is not on this node; pull it first")]
    NotFound { name: String },
    #[error("image id {name:?} is the beginning of several ids; give more of its digits")]
    Ambiguous { name: String },
    #[error("credentials of the pull: {message}")]
    Credentials { message: String },
    #[error("registry configuration {path}: {message}")]
    Hosts { path: PathBuf, message: String },
    #[error(
        "no host may {step} {object}: [host] and server in the hosts.toml of {registry} lack the capability"
    )]
    NoHost {
        step: &'static str,
        object: String,
        registry: String,
    },
    /// Every host that was asked refused; their answers in order.
    #[error("{step} {object}: {}", Answers(.refusals))]
    Registry {
        step: &'static str,
        object: String,
        refusals: Vec<Refusal>,
    },
    #[error("image {image} has no variant for {wanted}; it has: {present}")]
    Platform {
        image: String,
        wanted: String,
        present: String,
    },
    #[error(
        "{object} is a Docker schema 1 manifest, which carries no verifiable config and is long retired; push the image again with a current tool"
    )]
    SchemaOne { object: String },
    #[error("{object} {message}")]
    Manifest { object: String, message: String },
    #[error("{object} {message}")]
    Unsupported { object: String, message: String },
    #[error("{object}: unpack: {source}")]
    Unpack {
        object: String,
        source: super::unpack::Error,
    },
    #[error(transparent)]
    Layers(#[from] super::layers::Error),
    #[error(transparent)]
    CopyUp(#[from] super::copy_up::Error),
    #[error("{step} {path}: {source}")]
    Io {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("work on image {image} was cut off: berthd is stopping; try again when it is back")]
    Stopped { image: String },
    #[error("layer {diff_id} was lost by another pull that failed; pull again")]
    Lost { diff_id: String },
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The error of a pull, told to everyone who waited for it.
    #[error(transparent)]
    Pull(#[from] Arc<Error>),
}

/// What one host answered.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// `https://registry-1.docker.io`.
    pub host: String,
    pub kind: Kind,
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.host, self.message)
    }
}

struct Answers<'a>(&'a [Refusal]);

impl fmt::Display for Answers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, refusal) in self.0.iter().enumerate() {
            write!(f, "{}{refusal}", if n == 0 { "" } else { "; " })?;
        }
        let remedy = match self.0.last().map(|r| r.kind) {
            Some(Kind::NotFound) => "check the name and tag",
            Some(Kind::Unauthenticated) => "check the user and password of the pull",
            Some(Kind::PermissionDenied) => "check what this user may pull",
            Some(Kind::Unavailable) => "check that the registry is up and reachable from this node",
            _ => return Ok(()),
        };
        write!(f, " ({remedy})")
    }
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Reference { .. } | Error::Ambiguous { .. } | Error::Credentials { .. } => {
                Kind::InvalidArgument
            }
            Error::NotFound { .. } | Error::Platform { .. } => Kind::NotFound,
            Error::Hosts { .. } | Error::NoHost { .. } => Kind::FailedPrecondition,
            // The last host is the registry itself; those before are mirrors.
            Error::Registry { refusals, .. } => refusals.last().map_or(Kind::Unavailable, |r| r.kind),
            Error::SchemaOne { .. } | Error::Unsupported { .. } => Kind::Unimplemented,
            Error::Manifest { .. } => Kind::DataLoss,
            Error::Unpack { source, .. } => source.kind(),
            Error::Layers(source) => source.kind(),
            Error::CopyUp(source) => source.kind(),
            Error::Io { source, .. } => io_kind(source),
            Error::Stopped { .. } | Error::Lost { .. } => Kind::Unavailable,
            Error::Store(source) => source.kind(),
            Error::Pull(source) => source.kind(),
        }
    }
}

fn io_kind(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::ResourceExhausted,
        _ => Kind::Internal,
    }
}
