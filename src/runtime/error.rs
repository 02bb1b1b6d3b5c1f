//! What can go wrong between berthd and a shim.

use std::{io, path::PathBuf, time::Duration};

use crate::{
    kind::{HasKind, Kind},
    shim::ttrpc::Code,
};

/// Errors of this module; each names the container, or the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("shim binary {path}: {step}: {source}")]
    Binary {
        path: PathBuf,
        step: &'static str,
        source: io::Error,
    },
    #[error("start the shim of container {id} in {dir}: {step}: {source}")]
    Spawn {
        id: String,
        dir: PathBuf,
        step: &'static str,
        source: io::Error,
    },
    #[error("the shim of container {id} is gone: nobody listens on {dir}/shim.sock")]
    Gone { id: String, dir: PathBuf },
    #[error("connect to the shim of container {id} in {dir}: {source}")]
    Connect {
        id: String,
        dir: PathBuf,
        source: io::Error,
    },
    /// The shim died, or ended with its container, during the call.
    #[error("the shim of container {id} ended during {method}{last_words}")]
    Broken {
        id: String,
        method: &'static str,
        /// The end of its log: empty, or begins with ": ".
        last_words: String,
    },
    #[error("the shim of container {id} ended without an exit record{last_words}")]
    Vanished { id: String, last_words: String },
    #[error(
        "the shim of container {id} did not answer {method} within {after:?}: see whether it hangs (state D or T)"
    )]
    Slow {
        id: String,
        method: &'static str,
        after: Duration,
    },
    /// The shim's own words; its message names the step.
    #[error("{method}: {message}")]
    Remote {
        id: String,
        method: &'static str,
        /// A gRPC code.
        code: i32,
        message: String,
    },
    /// A program could not be executed.
    #[error("{message}")]
    Start {
        id: String,
        /// 127: not found; 126: not executable; 128: something else.
        code: i32,
        message: String,
    },
    #[error("the shim of container {id} answered {method} with something else: {reason}")]
    Protocol {
        id: String,
        method: &'static str,
        reason: String,
    },
    #[error("exec in container {id}: {step}: {source}")]
    Exec {
        id: String,
        step: &'static str,
        source: io::Error,
    },
    #[error("command {command:?} in container {id} did not end within {after:?} and was killed")]
    ExecTimeout {
        id: String,
        command: String,
        after: Duration,
    },
    #[error("exit record in {dir}: {source}")]
    Record { dir: PathBuf, source: io::Error },
}

impl Error {
    /// The shim has left: what became of its container is in the exit record.
    pub fn is_gone(&self) -> bool {
        matches!(
            self,
            Error::Gone { .. } | Error::Broken { .. } | Error::Vanished { .. }
        )
    }

    /// The shim's code is this one.
    pub fn is_remote(&self, wanted: Code) -> bool {
        matches!(self, Error::Remote { code, .. } if *code == wanted as i32)
    }
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Remote { code, .. } => match Code::try_from(*code) {
                Ok(Code::InvalidArgument) => Kind::InvalidArgument,
                Ok(Code::NotFound) => Kind::NotFound,
                Ok(Code::AlreadyExists) => Kind::AlreadyExists,
                Ok(Code::PermissionDenied) => Kind::PermissionDenied,
                Ok(Code::ResourceExhausted) => Kind::ResourceExhausted,
                Ok(Code::FailedPrecondition) => Kind::FailedPrecondition,
                Ok(Code::Unimplemented) => Kind::Unimplemented,
                Ok(Code::DeadlineExceeded) => Kind::DeadlineExceeded,
                Ok(Code::Unavailable) => Kind::Unavailable,
                _ => Kind::Internal,
            },
            Error::Start { .. } => Kind::FailedPrecondition,
            Error::ExecTimeout { .. } | Error::Slow { .. } => Kind::DeadlineExceeded,
            Error::Gone { .. } => Kind::NotFound,
            Error::Broken { .. } => Kind::Unavailable,
            Error::Spawn { source, .. } | Error::Exec { source, .. }
                if matches!(
                    source.raw_os_error(),
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOSPC | libc::EAGAIN)
                ) =>
            {
                Kind::ResourceExhausted
            }
            _ => Kind::Internal,
        }
    }
}
