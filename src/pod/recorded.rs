//! A record in memory that is changed when the change has been written down.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::Error;
use crate::store::lock_aside;

/// A record as it is written down; `what` and `id` are for the error.
pub fn json<R: Serialize>(what: &'static str, id: &str, record: &R) -> Result<String, Error> {
    serde_json::to_string(record).map_err(|e| Error::Damaged {
        what,
        id: id.to_owned(),
        message: e.to_string(),
    })
}

/// Whoever looks never waits for the disk, and sees what was written last; those who change
/// it take turns.
#[derive(Debug)]
pub struct Recorded<R> {
    shown: Mutex<R>,
    changing: Mutex<()>,
}

impl<R: Clone> Recorded<R> {
    pub fn new(record: R) -> Recorded<R> {
        Recorded {
            shown: Mutex::new(record),
            changing: Mutex::new(()),
        }
    }

    /// For a look of a moment: nothing may wait while it is held.
    pub fn show(&self) -> MutexGuard<'_, R> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies `change` to a copy, writes that down, and shows it. An error of either leaves
    /// all as it was.
    pub fn change(
        &self,
        change: impl FnOnce(&mut R) -> Result<(), Error>,
        write: impl FnOnce(&R) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let _one = lock_aside(&self.changing);
        let mut record = self.show().clone();
        change(&mut record)?;
        write(&record)?;
        *self.show() = record;
        Ok(())
    }
}
