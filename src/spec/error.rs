//! What can be wrong with a request, an image or this node.

use std::{io, path::PathBuf};

use crate::kind::{HasKind, Kind};

/// Errors of making a spec or a plan. The caller adds the container's name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is wrong by itself; `field` is its path in ContainerConfig.
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    /// The image's config is wrong.
    #[error("image {image:?}: {message}")]
    Image { image: String, message: String },
    /// A part of the interface that is not there yet.
    #[error("{field} is not supported: {reason}")]
    Unsupported { field: String, reason: String },
    /// The request is right, but not on this node or in this sandbox now.
    #[error("{field}: {message}")]
    Precondition { field: String, message: String },
    #[error("{step} {path}: {source}")]
    Io {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("seccomp profile {profile}: {message}")]
    Seccomp { profile: String, message: String },
    /// The OCI spec, after all edits, cannot be run by this launcher.
    #[error("config.json: {field}: {message}")]
    Spec { field: String, message: String },
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Invalid { .. } | Error::Image { .. } | Error::Seccomp { .. } => Kind::InvalidArgument,
            Error::Unsupported { .. } => Kind::Unimplemented,
            Error::Precondition { .. } => Kind::FailedPrecondition,
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::FailedPrecondition,
            Error::Io { .. } | Error::Spec { .. } => Kind::Internal,
        }
    }
}

impl Error {
    pub(super) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Invalid {
            field: field.into(),
            message: message.into(),
        }
    }

    pub(super) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Unsupported {
            field: field.into(),
            reason: reason.into(),
        }
    }

    pub(super) fn precondition(field: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Precondition {
            field: field.into(),
            message: message.into(),
        }
    }

    pub(super) fn spec(field: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Spec {
            field: field.into(),
            message: message.into(),
        }
    }

    /// For `map_err`: what was done to which path.
    pub(super) fn io(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { step, path, source }
    }
}
