//! Errors of CNI; each names the network, the plugin and what it did.

use std::path::PathBuf;

use super::{INTERFACE, exec, folder::Invalid, request::Verb};
use crate::kind::{HasKind, Kind};

/// "Invalid environment variables" of the specification: what plugins made with its
/// library say to a verb that they don't know.
const INVALID_ENVIRONMENT: u64 = 4;

/// Errors of CNI.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(
        "no CNI configuration is in {}, the folder of runtime handler {handler:?}: put one there, or unset runtimes.{handler}.cni_conf_dir",
        folder.display()
    )]
    NoneForHandler { handler: String, folder: PathBuf },
    #[error(
        "CNI network {network}: plugin {plugin:?} is in none of {dirs:?}: install it, or set network.cni_bin_dirs"
    )]
    Missing {
        network: String,
        plugin: String,
        dirs: Vec<PathBuf>,
    },
    #[error("CNI network {network}: {verb} of plugin {plugin} {failure}")]
    Plugin {
        network: String,
        plugin: String,
        verb: Verb,
        failure: exec::Failure,
    },
    #[error(
        "CNI network {network}: plugin {plugin} answered ADD with something else than a result: {message}"
    )]
    Answer {
        network: String,
        plugin: String,
        message: String,
    },
    #[error("CNI network {network} gave the pod no address on {INTERFACE}")]
    NoAddress { network: String },
    #[error("{message}")]
    Annotation { message: String },
    #[error("CNI network {network}: no moment without ADD and DEL was found for GC; the next one is tried")]
    Busy { network: String },
}

impl Error {
    /// Whether the plugin does not know the verb, which is no fault of the network.
    pub fn is_unknown_verb(&self) -> bool {
        let Error::Plugin { failure, .. } = self else {
            return false;
        };
        matches!(failure, exec::Failure::Refused { code: INVALID_ENVIRONMENT, msg, .. } if msg.contains("CNI_COMMAND"))
    }

    /// Whether a plugin was killed for the time that it took.
    pub fn timed_out(&self) -> bool {
        let Error::Plugin { failure, .. } = self else {
            return false;
        };
        matches!(failure, exec::Failure::TimedOut(_))
    }
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Invalid(_) | Error::Missing { .. } | Error::NoneForHandler { .. } => {
                Kind::FailedPrecondition
            }
            Error::Annotation { .. } => Kind::InvalidArgument,
            Error::Plugin { .. } | Error::Answer { .. } | Error::NoAddress { .. } | Error::Busy { .. } => {
                Kind::Unavailable
            }
        }
    }
}
