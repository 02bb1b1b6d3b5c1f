//! A sandbox: what the pod's containers share, and no process of its own.
//!
//! ```text
//!            Made            Stop              Stopped             Remove
//!   Making ────────> Ready ────────> Stopping ──────────> NotReady ───────> Removing ──> (gone)
//!     │ │                               ^ │ ^                                 ^ │ ^
//!     │ │                               │ └─┘ Stop                            │ └─┘ Remove
//!     │ └───────────── Stop ────────────┘                                     │
//!     └──────────────────────────────── Remove ───────────────────────────────┘
//! ```
//!
//! What was half made is removed at once: nobody was told of it, and a retry makes it
//! anew. `Making` is recorded before anything is acquired: a berthd that dies in it
//! finds the intent when it starts again and takes everything back. `Stopping`
//! and `Removing` are kept when a step fails, and the next call finishes them.
//!
//! Who may change it: the operation that holds [`Sandbox::gate`] for writing.
//! Creating a container holds it for reading. Everybody else reads snapshots.

use std::sync::Arc;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::{
    Error, Samples, Timeline, Told,
    recorded::{self, Recorded},
};
use crate::{
    network::Attachment,
    proto::cri,
    runtime::Shim,
    store::{PodRow, Store},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    Making,
    Ready,
    Stopping,
    NotReady,
    Removing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxEvent {
    Made,
    Stop,
    Stopped,
    Remove,
}

impl SandboxState {
    /// In the order of a life.
    pub const ALL: [SandboxState; 5] = [
        SandboxState::Making,
        SandboxState::Ready,
        SandboxState::Stopping,
        SandboxState::NotReady,
        SandboxState::Removing,
    ];

    /// The state after `event`, or None when it cannot happen now.
    pub fn next(self, event: SandboxEvent) -> Option<SandboxState> {
        use {SandboxEvent as E, SandboxState as S};
        match (self, event) {
            (S::Making, E::Made) => Some(S::Ready),
            (S::Making | S::Ready | S::Stopping, E::Stop) => Some(S::Stopping),
            (S::Stopping, E::Stopped) => Some(S::NotReady),
            (S::Making | S::NotReady | S::Removing, E::Remove) => Some(S::Removing),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            SandboxState::Making => "being made",
            SandboxState::Ready => "ready",
            SandboxState::Stopping => "being stopped",
            SandboxState::NotReady => "stopped",
            SandboxState::Removing => "being removed",
        }
    }

    /// The state as the CRI knows it.
    pub fn cri(self) -> cri::PodSandboxState {
        match self {
            SandboxState::Ready => cri::PodSandboxState::SandboxReady,
            _ => cri::PodSandboxState::SandboxNotready,
        }
    }
}

impl SandboxEvent {
    fn name(self) -> &'static str {
        match self {
            SandboxEvent::Made => "become ready",
            SandboxEvent::Stop => "be stopped",
            SandboxEvent::Stopped => "end stopping",
            SandboxEvent::Remove => "be removed",
        }
    }
}

/// What is recorded of a sandbox besides its request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub state: SandboxState,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The handler as the request named it: empty for the default one.
    pub handler: String,
    /// Namespaces that are pinned below the state folder: "net", "ipc", "uts".
    pub namespaces: Vec<String>,
    /// What the network gave; absent until it did.
    pub attachment: Option<Attachment>,
    /// Parent of the containers' cgroups, "/kubepods/burstable/pod…".
    pub cgroup_parent: String,
    /// Cgroups above those of the containers that nobody but us has made: removed
    /// when the last pod that counts on them is.
    pub cgroups_made: Vec<String>,
    /// The pod has an init for a shared PID namespace (or is about to).
    pub init: bool,
    pub hostname: String,
    /// The SELinux level that keeps the pod apart; empty without SELinux.
    #[serde(default)]
    pub selinux_level: String,
    /// What the kubelet told last; absent: as in the request.
    #[serde(default, with = "super::message")]
    pub overhead: Option<cri::LinuxContainerResources>,
    #[serde(default, with = "super::message")]
    pub resources: Option<cri::LinuxContainerResources>,
    /// What its start took, and the pulls of its images.
    #[serde(default)]
    pub timeline: Timeline,
}

/// A sandbox of this node.
#[derive(Debug)]
pub struct Sandbox {
    /// 64 hex digits.
    pub id: String,
    /// "NAME_NAMESPACE_UID_ATTEMPT", unique.
    pub name: String,
    /// Held for writing by stop and remove, for reading while a container is created.
    pub gate: tokio::sync::RwLock<()>,
    /// Its events so far.
    pub told: Told,
    pub samples: Samples,
    record: Recorded<SandboxRecord>,
    /// The request that made it, as it was asked: a retry is told by it from another request.
    config: Arc<cri::PodSandboxConfig>,
    /// The shim of the pod's init, when it has one.
    pub init: tokio::sync::Mutex<Option<(Shim, u32)>>,
}

impl Sandbox {
    pub fn new(id: String, name: String, config: cri::PodSandboxConfig, record: SandboxRecord) -> Sandbox {
        let told = Told::of_sandbox(record.state);
        Sandbox {
            id,
            name,
            gate: tokio::sync::RwLock::new(()),
            told,
            samples: Samples::default(),
            record: Recorded::new(record),
            config: config.into(),
            init: tokio::sync::Mutex::new(None),
        }
    }

    pub fn from_row(row: PodRow) -> Result<Sandbox, Error> {
        let damaged = |message: String| Error::Damaged {
            what: "sandbox",
            id: row.id.clone(),
            message,
        };
        let record = serde_json::from_str(&row.record).map_err(|e| damaged(e.to_string()))?;
        let config =
            cri::PodSandboxConfig::decode(row.config.as_slice()).map_err(|e| damaged(e.to_string()))?;
        Ok(Sandbox::new(row.id.clone(), row.name, config, record))
    }

    /// A snapshot of the record.
    pub fn record(&self) -> SandboxRecord {
        self.record.show().clone()
    }

    pub fn state(&self) -> SandboxState {
        self.record.show().state
    }

    /// Nanoseconds since the epoch.
    pub fn created_at(&self) -> i64 {
        self.record.show().created_at
    }

    /// The request that made it, as it was asked.
    pub fn config(&self) -> Arc<cri::PodSandboxConfig> {
        self.config.clone()
    }

    /// What the pod itself costs: of the request, or as the kubelet told last.
    pub fn overhead(&self) -> Option<cri::LinuxContainerResources> {
        let updated = self.record.show().overhead.clone();
        updated.or_else(|| self.config.linux.as_ref()?.overhead.clone())
    }

    /// What its containers may use together, likewise.
    pub fn resources(&self) -> Option<cri::LinuxContainerResources> {
        let updated = self.record.show().resources.clone();
        updated.or_else(|| self.config.linux.as_ref()?.resources.clone())
    }

    /// Changes the record, and writes it before anybody sees the change.
    pub fn update(&self, store: &Store, change: impl FnOnce(&mut SandboxRecord)) -> Result<(), Error> {
        self.change(store, |record| {
            change(record);
            Ok(())
        })
    }

    fn change(
        &self,
        store: &Store,
        change: impl FnOnce(&mut SandboxRecord) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.record.change(change, |record| {
            Ok(store.put_sandbox(&self.id, &recorded::json("sandbox", &self.id, record)?)?)
        })
    }

    /// Moves to the state after `event`, and applies `change` with it.
    pub fn advance(
        &self,
        store: &Store,
        event: SandboxEvent,
        change: impl FnOnce(&mut SandboxRecord),
    ) -> Result<(), Error> {
        // The look and the change are one: of two that stop, the second sees it.
        self.change(store, |record| {
            record.state = record.state.next(event).ok_or_else(|| Error::State {
                what: "sandbox",
                id: self.id.clone(),
                event: event.name(),
                state: record.state.name(),
            })?;
            change(record);
            Ok(())
        })
    }

    /// Records a sandbox that is new.
    pub fn record_new(&self, store: &Store) -> Result<(), Error> {
        let record = recorded::json("sandbox", &self.id, &self.record())?;
        Ok(store.add_sandbox(&PodRow {
            id: self.id.clone(),
            name: self.name.clone(),
            sandbox: String::new(),
            record,
            config: self.config.encode_to_vec(),
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::{SandboxEvent as E, SandboxState as S};

    #[test]
    fn every_pair_of_state_and_event() {
        let states = [S::Making, S::Ready, S::Stopping, S::NotReady, S::Removing];
        let table = [
            (E::Made, [Some(S::Ready), None, None, None, None]),
            (
                E::Stop,
                [
                    Some(S::Stopping),
                    Some(S::Stopping),
                    Some(S::Stopping),
                    None,
                    None,
                ],
            ),
            (E::Stopped, [None, None, Some(S::NotReady), None, None]),
            (
                E::Remove,
                [
                    Some(S::Removing),
                    None,
                    None,
                    Some(S::Removing),
                    Some(S::Removing),
                ],
            ),
        ];
        for (event, after) in table {
            for (state, after) in states.into_iter().zip(after) {
                assert_eq!(state.next(event), after, "{state:?} {event:?}");
            }
        }
    }
}
