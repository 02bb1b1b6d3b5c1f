//! The errors of the verbs: those of the modules below, and those that only the
//! door itself can find. Shared between the callers of one operation.

use std::{path::Path, sync::Arc};

use crate::{
    image,
    kind::{HasKind, Kind},
    pod::{self, Interrupted},
    runtime::HandlerError,
    store,
};

/// Why a verb failed, to be shared by all who joined the operation.
pub type Shared = Arc<Error>;

/// Errors of the verbs. Those of modules are passed on with the object they
/// concern; the others name it themselves.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{verb}: {message}")]
    Invalid { verb: &'static str, message: String },
    #[error("{what} {name} is there already as {id}, made from another request: {remedy}")]
    Exists {
        what: &'static str,
        name: String,
        id: String,
        remedy: &'static str,
    },
    /// The object is not in a state for the call.
    #[error("{what} {id}: {message}")]
    Wrong {
        what: &'static str,
        id: String,
        kind: Kind,
        message: String,
    },
    /// Right as it is asked, and nothing that this version does.
    #[error("{rpc}: {what} are not there yet; a later version of berth brings them")]
    NotYet { rpc: &'static str, what: &'static str },
    /// A module below failed at a step.
    #[error("{what} {id}: {step}: {source}")]
    Step {
        what: &'static str,
        id: String,
        step: &'static str,
        kind: Kind,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{what} {id}: {step} {path}: {source}")]
    Io {
        what: &'static str,
        id: String,
        step: &'static str,
        path: String,
        source: std::io::Error,
    },
    /// Something could not be taken away; it stays recorded.
    #[error("{what} {id}: {step}: {message}")]
    Left {
        what: &'static str,
        id: String,
        step: &'static str,
        message: String,
    },
    #[error(transparent)]
    Pod(#[from] pod::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Image(Box<image::Error>),
    #[error(transparent)]
    Handler(#[from] HandlerError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Joined(#[from] Shared),
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Error {
        Error::Image(Box::new(error))
    }
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Invalid { .. } => Kind::InvalidArgument,
            Error::Exists { .. } => Kind::AlreadyExists,
            Error::Wrong { kind, .. } | Error::Step { kind, .. } => *kind,
            Error::NotYet { .. } => Kind::FailedPrecondition,
            Error::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    Kind::ResourceExhausted
                }
                _ => Kind::Internal,
            },
            Error::Left { .. } => Kind::Internal,
            Error::Pod(e) => e.kind(),
            Error::Store(e) => e.kind(),
            Error::Image(e) => e.kind(),
            Error::Handler(e) => e.kind(),
            Error::Interrupted(_) => Kind::DeadlineExceeded,
            Error::Joined(e) => e.kind(),
        }
    }
}

/// Names the object and the step on an error of a module below.
pub trait Context<T> {
    fn step(self, what: &'static str, id: &str, step: &'static str) -> Result<T, Error>;
}

impl<T, E: HasKind + std::error::Error + Send + Sync + 'static> Context<T> for Result<T, E> {
    fn step(self, what: &'static str, id: &str, step: &'static str) -> Result<T, Error> {
        self.map_err(|e| Error::Step {
            what,
            id: id.to_owned(),
            step,
            kind: e.kind(),
            source: Box::new(e),
        })
    }
}

/// Names the object, the step and the path on an error of the system.
pub fn io<'a>(
    what: &'static str,
    id: &'a str,
    step: &'static str,
    path: &'a Path,
) -> impl Fn(std::io::Error) -> Error + 'a {
    move |source| Error::Io {
        what,
        id: id.to_owned(),
        step,
        path: path.display().to_string(),
        source,
    }
}
