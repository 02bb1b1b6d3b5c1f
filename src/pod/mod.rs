//! The objects of a node: sandboxes and containers, their states, who may
//! change them, and what happens when a change fails half-way.
//!
//! Nothing here speaks to the kernel or a client: the verbs in `cri` do, and
//! record here what they did.

mod container;
mod events;
mod message;
mod operations;
mod recorded;
mod registry;
mod samples;
mod sandbox;
mod timeline;

pub use self::{
    container::{Container, ContainerEvent, ContainerRecord, ContainerState, Exit},
    events::{Event, Events, Told},
    operations::{Interrupted, Operations, Stage},
    registry::Pods,
    samples::{LayerUsage, Samples},
    sandbox::{Sandbox, SandboxEvent, SandboxRecord, SandboxState},
    timeline::{Begun, Step, Timeline},
};
use crate::{
    kind::{HasKind, Kind},
    store,
};

/// Errors of the objects.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {id} is not on this node")]
    NotFound { what: &'static str, id: String },
    #[error("{what} {id} is ambiguous: {count} ids begin with it, give more digits")]
    Ambiguous {
        what: &'static str,
        id: String,
        count: usize,
    },
    #[error("{what} {id} cannot {event} while it is {state}")]
    State {
        what: &'static str,
        id: String,
        event: &'static str,
        state: &'static str,
    },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("record of {what} {id} is damaged: {message}")]
    Damaged {
        what: &'static str,
        id: String,
        message: String,
    },
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::NotFound { .. } => Kind::NotFound,
            Error::Ambiguous { .. } => Kind::InvalidArgument,
            Error::State { .. } => Kind::FailedPrecondition,
            Error::Store(e) => e.kind(),
            Error::Damaged { .. } => Kind::DataLoss,
        }
    }
}

/// A new id: 32 random bytes as 64 hex digits, as the peers' ids are.
pub fn new_id() -> String {
    use std::fmt::Write;
    let mut bytes = [0u8; 32];
    // The kernel's generator does not fail once the machine has booted.
    getrandom::fill(&mut bytes).unwrap_or_else(|e| panic!("getrandom: {e}"));
    bytes.iter().fold(String::with_capacity(64), |mut id, byte| {
        let _ = write!(id, "{byte:02x}");
        id
    })
}

/// Nanoseconds since the epoch, the unit of time of the CRI.
pub fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_64_hex_digits_and_differ() {
        let (a, b) = (super::new_id(), super::new_id());
        assert_eq!(a.len(), 64);
        assert!(a.bytes().all(|c| c.is_ascii_hexdigit()));
        assert_ne!(a, b);
    }
}
