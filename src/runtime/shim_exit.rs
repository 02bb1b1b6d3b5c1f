//! How a container ended, as berthd learns it.
//!
//! The truth about an exit is the file `exit`, which the shim writes before it
//! tells anybody and before it ends. So a connection that breaks is no loss:
//! either the file is there, or the shim is still there and is connected to
//! again, or it died without a word, which is [`Error::Vanished`].

use std::{path::Path, sync::PoisonError};

use prost::Message;
use tokio::sync::watch;

use super::{Error, Shim, shim_process::last_words};
use crate::{
    proto::{plan::ExitRecord, task},
    shim::exit,
};

/// What a shim said to who waited for the exit; nothing, when it is gone.
pub(super) type Answer = Option<ExitRecord>;

/// How a container has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    pub record: ExitRecord,
    /// The shim said so itself, and nothing of the container is left. A shim that wrote the
    /// record and was killed before that may have left the cgroup.
    pub told: bool,
}

impl Shim {
    /// Waits for the exit, for as long as it takes. Any number may wait; dropping
    /// a wait costs nothing.
    pub async fn wait(&self) -> Result<Ended, Error> {
        let mut exit = self.exit_watch();
        let answer = match exit.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone().flatten(),
            // The task that waits for the shim went with its runtime.
            Err(_) => None,
        };
        let told = answer.is_some();
        match read_exit(&self.inner.dir)?.or(answer) {
            Some(record) => Ok(Ended { record, told }),
            None => Err(Error::Vanished {
                id: self.inner.id.clone(),
                last_words: last_words(&self.inner.dir),
            }),
        }
    }

    /// The exit record is in place.
    pub(super) fn has_ended(&self) -> bool {
        matches!(read_exit(&self.inner.dir), Ok(Some(_)))
    }

    /// One task waits for the shim, all callers for that task.
    fn exit_watch(&self) -> watch::Receiver<Option<Answer>> {
        let mut exit = self.inner.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exit) = &*exit {
            return exit.clone();
        }
        let (sender, receiver) = watch::channel(None);
        *exit = Some(receiver.clone());
        let shim = self.clone();
        tokio::spawn(async move {
            let answer = shim.wait_remote().await;
            sender.send_replace(Some(answer));
        });
        receiver
    }

    /// Returns when the container has ended or the shim is gone; the shim's
    /// answer serves when it could not write the record.
    async fn wait_remote(&self) -> Answer {
        let request = task::WaitRequest {
            id: self.inner.id.clone(),
            ..Default::default()
        };
        let payload = request.encode_to_vec();
        loop {
            let client = self.client();
            if let Ok(response) = client.call("Wait", payload.clone(), Vec::new()).await {
                let answer = self.read_answer::<task::WaitResponse>("Wait", response).ok()?;
                return Some(ExitRecord {
                    code: i32::try_from(answer.exit_status).unwrap_or(255),
                    finished_at: answer
                        .exited_at
                        .map_or(0, |at| at.seconds * 1_000_000_000 + i64::from(at.nanos)),
                    ..ExitRecord::default()
                });
            }
            // Boxed, for this waits as long as the container lives.
            if matches!(read_exit(&self.inner.dir), Ok(Some(_))) || Box::pin(self.reconnect()).await.is_err()
            {
                return None;
            }
        }
    }
}

/// The exit record in a container's state folder, if the container has ended.
pub fn read_exit(dir: &Path) -> Result<Option<ExitRecord>, Error> {
    exit::read(dir).map_err(|source| Error::Record {
        dir: dir.into(),
        source,
    })
}
