//! A container: one shim, one init process, one writable layer.
//!
//! ```text
//!            Made             Started            Exited             Remove
//!   Making ────────> Created ─────────> Running ────────> Exited ──────────> Removing ──> (gone)
//!     │                 │ └──────────── Exited ────────────^                  ^   │ ^
//!     └──── Remove ─────┴────────────────── Remove ───────────────────────────┘   └─┘ Remove
//! ```
//!
//! `Making` is recorded before anything is acquired. An exit is recorded by the
//! shim first (the file `exit`), then here, and only then does anybody hear of
//! it. A running container is killed before it is removed: Running has no Remove.
//!
//! Who may change it: start, update and remove hold [`Container::gate`]; an exit
//! is recorded by the task that watches the shim, which needs no gate. Nobody
//! holds a lock while waiting for a process to end.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    Error, Samples, Timeline, Told,
    recorded::{self, Recorded},
};
use crate::{
    proto::{cri, plan::Process},
    runtime::{OciRuntime, Shim},
    store::{PodRow, Store},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    Making,
    Created,
    Running,
    Exited,
    Removing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerEvent {
    Made,
    Started,
    Exited,
    Remove,
}

impl ContainerState {
    /// In the order of a life.
    pub const ALL: [ContainerState; 5] = [
        ContainerState::Making,
        ContainerState::Created,
        ContainerState::Running,
        ContainerState::Exited,
        ContainerState::Removing,
    ];

    /// The state after `event`, or None when it cannot happen now.
    pub fn next(self, event: ContainerEvent) -> Option<ContainerState> {
        use {ContainerEvent as E, ContainerState as S};
        match (self, event) {
            (S::Making, E::Made) => Some(S::Created),
            (S::Created, E::Started) => Some(S::Running),
            (S::Created | S::Running, E::Exited) => Some(S::Exited),
            (S::Making | S::Created | S::Exited | S::Removing, E::Remove) => Some(S::Removing),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            ContainerState::Making => "being made",
            ContainerState::Created => "created",
            ContainerState::Running => "running",
            ContainerState::Exited => "exited",
            ContainerState::Removing => "being removed",
        }
    }

    /// The state as the CRI knows it.
    pub fn cri(self) -> cri::ContainerState {
        match self {
            ContainerState::Making => cri::ContainerState::ContainerUnknown,
            ContainerState::Created => cri::ContainerState::ContainerCreated,
            ContainerState::Running => cri::ContainerState::ContainerRunning,
            ContainerState::Exited | ContainerState::Removing => cri::ContainerState::ContainerExited,
        }
    }
}

impl ContainerEvent {
    fn name(self) -> &'static str {
        match self {
            ContainerEvent::Made => "become created",
            ContainerEvent::Started => "be started",
            ContainerEvent::Exited => "exit",
            ContainerEvent::Remove => "be removed",
        }
    }
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, or 128 plus the signal.
    pub code: i32,
    /// "Completed", "Error", "OOMKilled", "StartError".
    pub reason: String,
    /// For people; often empty.
    pub message: String,
    /// Nanoseconds since the epoch; 0: it never started.
    pub started_at: i64,
    pub finished_at: i64,
}

/// What is recorded of a container besides its request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub state: ContainerState,
    /// Nanoseconds since the epoch; 0: not yet.
    pub created_at: i64,
    pub started_at: i64,
    pub exit: Option<Exit>,
    /// "sha256:…" of the image's configuration.
    pub image_id: String,
    /// REPOSITORY@DIGEST, or the id of an image that has no such name.
    pub image_ref: String,
    /// Ids of the images that are mounted, with the mount's place in the request.
    #[serde(default)]
    pub volume_images: Vec<(usize, String)>,
    /// Absolute; empty: no log is written.
    pub log_path: PathBuf,
    /// Number of the signal that asks it to stop.
    pub stop_signal: i32,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Below the root of each hierarchy.
    pub cgroup: String,
    /// The init; 0: none yet.
    pub pid: u32,
    /// What the resources are since the first update; absent: those of the request.
    #[serde(default, with = "super::message")]
    pub resources: Option<cri::LinuxContainerResources>,
    /// The OCI runtime that makes it; absent: the launcher does.
    #[serde(default)]
    pub runtime: Option<OciRuntime>,
    /// Whether its spec has hooks that berthd runs later. Of records that do not tell, the
    /// spec is read.
    #[serde(default = "perhaps")]
    pub later_hooks: bool,
    /// What its creation and start took.
    #[serde(default)]
    pub timeline: Timeline,
}

fn perhaps() -> bool {
    true
}

/// A container of this node.
#[derive(Debug)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// "CONTAINER_POD_NAMESPACE_UID_ATTEMPT", unique.
    pub name: String,
    /// Id of its sandbox.
    pub sandbox: String,
    /// Held by start, update and remove.
    pub gate: tokio::sync::Mutex<()>,
    /// Its events so far.
    pub told: Told,
    pub samples: Samples,
    record: Recorded<ContainerRecord>,
    shim: Mutex<Option<Shim>>,
    /// The request that made it, as it was asked: a retry is told by it from another request.
    config: Arc<cri::ContainerConfig>,
    /// What its execs have in common, once one was made; forgotten when its spec changes.
    exec_template: Mutex<Option<Arc<Process>>>,
    /// True once the exit is recorded.
    ended: watch::Sender<bool>,
}

impl Container {
    pub fn new(
        id: String,
        name: String,
        sandbox: String,
        config: cri::ContainerConfig,
        record: ContainerRecord,
    ) -> Container {
        let ended = watch::Sender::new(record.exit.is_some());
        let told = Told::of(record.state);
        Container {
            id,
            name,
            sandbox,
            gate: tokio::sync::Mutex::new(()),
            told,
            samples: Samples::default(),
            record: Recorded::new(record),
            shim: Mutex::new(None),
            config: config.into(),
            exec_template: Mutex::new(None),
            ended,
        }
    }

    pub fn from_row(row: PodRow) -> Result<Container, Error> {
        let damaged = |message: String| Error::Damaged {
            what: "container",
            id: row.id.clone(),
            message,
        };
        let record = serde_json::from_str(&row.record).map_err(|e| damaged(e.to_string()))?;
        let config =
            cri::ContainerConfig::decode(row.config.as_slice()).map_err(|e| damaged(e.to_string()))?;
        Ok(Container::new(
            row.id.clone(),
            row.name,
            row.sandbox,
            config,
            record,
        ))
    }

    /// A snapshot of the record.
    pub fn record(&self) -> ContainerRecord {
        self.record.show().clone()
    }

    pub fn state(&self) -> ContainerState {
        self.record.show().state
    }

    /// Nanoseconds since the epoch.
    pub fn created_at(&self) -> i64 {
        self.record.show().created_at
    }

    /// Ids of the images that it stands on, and of those that it mounts.
    pub fn images(&self) -> Vec<String> {
        let record = self.record();
        let volumes = record.volume_images.into_iter().map(|(_, id)| id);
        std::iter::once(record.image_id).chain(volumes).collect()
    }

    /// The request that made it, as it was asked.
    pub fn config(&self) -> Arc<cri::ContainerConfig> {
        self.config.clone()
    }

    /// The resources of the request, or of the last update.
    pub fn resources(&self) -> Option<cri::LinuxContainerResources> {
        let updated = self.record.show().resources.clone();
        updated.or_else(|| self.config.linux.as_ref()?.resources.clone())
    }

    /// Whether an OCI runtime makes it, and not the launcher.
    pub fn has_oci_runtime(&self) -> bool {
        self.record.show().runtime.is_some()
    }

    /// What its execs have in common; `read` makes it from its spec.
    pub fn exec_template<E>(&self, read: impl FnOnce() -> Result<Process, E>) -> Result<Arc<Process>, E> {
        // Held while reading: what is read before a change is not kept after it.
        let mut kept = self.exec_template.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*kept {
            return Ok(known.clone());
        }
        let made = Arc::new(read()?);
        *kept = Some(made.clone());
        Ok(made)
    }

    /// Its spec has changed.
    pub fn forget_exec_template(&self) {
        *self.exec_template.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Its shim, while there is one.
    pub fn shim(&self) -> Option<Shim> {
        self.shim.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_shim(&self, shim: Option<Shim>) {
        *self.shim.lock().unwrap_or_else(PoisonError::into_inner) = shim;
    }

    /// Waits until the exit is recorded.
    pub async fn ended(&self) {
        // The sender lives as long as self: it cannot fail.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Changes the record, and writes it before anybody sees the change.
    pub fn update(&self, store: &Store, change: impl FnOnce(&mut ContainerRecord)) -> Result<(), Error> {
        self.change(store, |record| {
            change(record);
            Ok(())
        })
    }

    fn change(
        &self,
        store: &Store,
        change: impl FnOnce(&mut ContainerRecord) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.record.change(change, |record| {
            Ok(store.put_container(&self.id, &recorded::json("container", &self.id, record)?)?)
        })
    }

    /// Moves to the state after `event`, and applies `change` with it.
    pub fn advance(
        &self,
        store: &Store,
        event: ContainerEvent,
        change: impl FnOnce(&mut ContainerRecord),
    ) -> Result<(), Error> {
        self.change(store, |record| {
            record.state = record.state.next(event).ok_or_else(|| Error::State {
                what: "container",
                id: self.id.clone(),
                event: event.name(),
                state: record.state.name(),
            })?;
            change(record);
            Ok(())
        })
    }

    /// Records the exit, once; a second one is ignored. Returns whether it was the first.
    pub fn record_exit(&self, store: &Store, exit: Exit) -> Result<bool, Error> {
        let done = self.advance(store, ContainerEvent::Exited, |record| {
            // Ours is of the moment when the shim had answered: one that ended at
            // once would have ended before it began.
            if record.started_at == 0 || record.started_at > exit.finished_at {
                record.started_at = exit.started_at;
            }
            record.pid = 0;
            record.exit = Some(exit);
        });
        match done {
            Err(Error::State { .. }) => Ok(false),
            Err(e) => Err(e),
            Ok(()) => {
                self.samples.gauge.close();
                self.ended.send_replace(true);
                Ok(true)
            }
        }
    }

    /// Records a container that is new.
    pub fn record_new(&self, store: &Store) -> Result<(), Error> {
        let record = recorded::json("container", &self.id, &self.record())?;
        Ok(store.add_container(&PodRow {
            id: self.id.clone(),
            name: self.name.clone(),
            sandbox: self.sandbox.clone(),
            record,
            config: self.config.encode_to_vec(),
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::{ContainerEvent as E, ContainerState as S};

    #[test]
    fn every_pair_of_state_and_event() {
        let states = [S::Making, S::Created, S::Running, S::Exited, S::Removing];
        let table = [
            (E::Made, [Some(S::Created), None, None, None, None]),
            (E::Started, [None, Some(S::Running), None, None, None]),
            (E::Exited, [None, Some(S::Exited), Some(S::Exited), None, None]),
            (
                E::Remove,
                [
                    Some(S::Removing),
                    Some(S::Removing),
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
