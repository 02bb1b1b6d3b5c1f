//! What nobody needs leaves the disk: layers of no image and under no container,
//! blobs of no image, and at the start what an earlier process left half-made.
//!
//! Rows are deleted durably before folders are removed: after a power cut a
//! folder may be there without its row, never a row without its folder.

use std::{
    collections::HashSet,
    sync::{TryLockError, atomic::Ordering},
};

use super::{Inner, digest::Digest, error::Error};
use crate::{failpoint, store::images as records};

impl Inner {
    /// Removes what is unused now. While a commit runs this returns at once, and
    /// the commit's pull does it.
    pub fn collect(&self) {
        self.stale.store(true, Ordering::SeqCst);
        while self.stale.load(Ordering::SeqCst) {
            let _one = match self.assembly.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // Whoever has it looks at `stale` after.
                Err(TryLockError::WouldBlock) => return,
            };
            self.stale.store(false, Ordering::SeqCst);
            if let Err(error) = self.collect_once() {
                tracing::warn!(%error, "unused layers and blobs stay until the next removal or start");
            }
        }
    }

    fn collect_once(&self) -> Result<(), Error> {
        let unused: Vec<u64> = {
            // Nobody takes hold of a layer between the look and the deletion.
            let held = self.flights.held();
            let free = |diff_id: &str| diff_id.parse::<Digest>().is_ok_and(|d| !held.contains_key(&d));
            let unused = self
                .store
                .read("look for unused layers", records::unused_layers)?;
            let unused: Vec<u64> = unused
                .into_iter()
                .filter(|(_, diff_id)| free(diff_id))
                .map(|(number, _)| number)
                .collect();
            if !unused.is_empty() {
                self.store.durable("delete unused layers", |t| {
                    unused
                        .iter()
                        .try_for_each(|number| records::delete_layer(t, *number))
                })?;
            }
            unused
        };
        for number in unused {
            failpoint::reach("delete a layer");
            self.layers.remove(number)?;
        }
        self.blobs.sweep(&self.known_blobs()?)
    }

    /// The start: also what has no row and what is half-made.
    pub fn sweep(&self) {
        let known = match self.store.read("list layers", records::layer_numbers) {
            Ok(known) => known.into_iter().collect::<HashSet<u64>>(),
            Err(error) => return tracing::warn!(%error, "left-overs stay until the next start"),
        };
        for error in self.layers.sweep(&known) {
            tracing::warn!(%error, "a left-over of the layer store stays until the next start");
        }
        self.collect();
    }

    fn known_blobs(&self) -> Result<HashSet<String>, Error> {
        let images = self.store.read("list images", records::images)?;
        let digests = images.iter().flat_map(|image| [&image.id, &image.manifest]);
        Ok(digests
            .filter_map(|digest| digest.parse::<Digest>().ok())
            .map(|digest| digest.hex())
            .collect())
    }
}
