//! What is remembered of a sandbox's network: enough to take it down again,
//! whatever has happened since.

use serde::{Deserialize, Serialize};

use super::{
    Error,
    cni::Conflist,
    pod::{Attachment, AttachmentKind, PodNetwork},
};
use crate::store::Store;

/// Recorded before anything is made, and again when all is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub pod: PodNetwork,
    pub via: Via,
    /// None: attach has not completed.
    pub attachment: Option<Attachment>,
}

/// Who makes the network, and takes it down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    Bridge,
    /// CNI, with the configuration as it was then.
    Cni(Conflist),
}

impl Record {
    /// The record of a sandbox, if there is one.
    pub fn read(store: &Store, id: &str) -> Result<Option<Record>, Error> {
        let Some(text) = store.network_attachment(id)? else {
            return Ok(None);
        };
        let damaged = |e: serde_json::Error| Error::Damaged {
            id: id.to_owned(),
            message: e.to_string(),
        };
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// What the plugins answered, when they all have.
    pub fn result(&self) -> Option<&serde_json::Value> {
        match &self.attachment.as_ref()?.kind {
            AttachmentKind::Cni { result, .. } => Some(result),
            AttachmentKind::Bridge { .. } => None,
        }
    }

    pub fn write(&self, store: &Store) -> Result<(), Error> {
        Ok(store.network_put(&self.pod.id, &self.to_json()?)?)
    }

    pub fn to_json(&self) -> Result<String, Error> {
        serde_json::to_string(self).map_err(|e| Error::Damaged {
            id: self.pod.id.clone(),
            message: e.to_string(),
        })
    }
}
