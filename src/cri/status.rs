//! Errors as gRPC statuses. The only place that knows both.

use tonic::{Code, Status};

use super::error::Error;
use crate::kind::{HasKind, Kind};

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let code = code(error.kind());
        // What the caller did is its own business; what the node could not do is the operator's too.
        if matches!(code, Code::Internal | Code::DataLoss | Code::ResourceExhausted) {
            tracing::error!(%error, ?code);
        } else {
            tracing::debug!(%error, ?code);
        }
        Status::new(code, error.to_string())
    }
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Unavailable => Code::Unavailable,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::DataLoss => Code::DataLoss,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    }
}
