//! What kind of failure an error is, for the caller: each module's error says
//! its own kind, and `cri/status.rs` alone turns kinds into gRPC codes.

/// Kinds of failure, named as gRPC's codes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong, whatever the state of the node.
    InvalidArgument,
    NotFound,
    AlreadyExists,
    /// The request is right but the object is in the wrong state.
    FailedPrecondition,
    /// Something outside did not answer (a registry, a plugin): try again.
    Unavailable,
    /// Credentials are missing or were refused.
    Unauthenticated,
    PermissionDenied,
    /// A limit of the node: disk, addresses, memory.
    ResourceExhausted,
    DeadlineExceeded,
    /// What came in is damaged: a digest that does not hold, a truncated body.
    DataLoss,
    Unimplemented,
    Internal,
}

/// An error that knows its kind.
pub trait HasKind {
    fn kind(&self) -> Kind;
}
