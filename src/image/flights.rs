//! Work in flight that others join: pulls by what is pulled, layers by their
//! diff id; and the layers that a pull counts on, which nobody may remove.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::watch;

use super::{
    digest::Digest,
    layers::{Ingest, Layer, Layers},
    unpack::Unpacked,
};

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these mutexes guard is whole between statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A layer that was fetched and verified, and is in no record yet. Dropped by
/// the last pull that counts on it without having been recorded, it leaves the disk.
#[derive(Debug)]
pub struct Fresh {
    layers: Arc<Layers>,
    pub unpacked: Unpacked,
    pub state: Mutex<FreshState>,
}

#[derive(Debug)]
pub enum FreshState {
    /// In its temporary folder.
    Ingested(Ingest),
    /// Under its number.
    Committed(Layer),
    /// Someone's: recorded, or gone.
    Settled,
}

impl Fresh {
    pub fn new(layers: Arc<Layers>, unpacked: Unpacked, state: FreshState) -> Arc<Fresh> {
        Arc::new(Fresh {
            layers,
            unpacked,
            state: Mutex::new(state),
        })
    }

    /// The layer is in the records: it stays.
    pub fn recorded(&self) {
        *lock(&self.state) = FreshState::Settled;
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // An Ingest removes itself.
        if let FreshState::Committed(layer) = std::mem::replace(state, FreshState::Settled)
            && let Err(error) = self.layers.remove(layer.number)
        {
            tracing::warn!(layer = layer.number, %error, "an unused layer is removed at the next start");
        }
    }
}

/// What a layer's slot holds.
#[derive(Debug)]
enum Slot {
    Fetching(watch::Receiver<Option<Arc<Fresh>>>),
    Fetched(Weak<Fresh>),
}

/// Layers in flight, and layers held.
#[derive(Debug, Default)]
pub struct LayerFlights {
    slots: Mutex<HashMap<Digest, Slot>>,
    held: Mutex<HashMap<Digest, usize>>,
}

/// What is to be done for a layer.
#[derive(Debug)]
pub enum Turn {
    /// Fetched, by another pull or this one.
    Ready(Arc<Fresh>),
    /// Being fetched: wait, then ask again.
    Wait(watch::Receiver<Option<Arc<Fresh>>>),
    /// Yours to fetch.
    Yours(Flight),
}

/// The right to fetch a layer; dropped without landing, the next who waits gets it.
#[derive(Debug)]
pub struct Flight {
    flights: Arc<LayerFlights>,
    diff_id: Digest,
    sender: watch::Sender<Option<Arc<Fresh>>>,
}

impl LayerFlights {
    pub fn turn(self: &Arc<Self>, diff_id: Digest) -> Turn {
        let mut slots = lock(&self.slots);
        match slots.get(&diff_id) {
            Some(Slot::Fetching(receiver)) => return Turn::Wait(receiver.clone()),
            Some(Slot::Fetched(fresh)) => {
                if let Some(fresh) = fresh.upgrade() {
                    return Turn::Ready(fresh);
                }
            }
            None => {}
        }
        slots.retain(|_, slot| match slot {
            Slot::Fetching(_) => true,
            Slot::Fetched(fresh) => fresh.strong_count() > 0,
        });
        let (sender, receiver) = watch::channel(None);
        slots.insert(diff_id, Slot::Fetching(receiver));
        Turn::Yours(Flight {
            flights: Arc::clone(self),
            diff_id,
            sender,
        })
    }

    /// Keeps all variants of these layers until the guard is dropped.
    pub fn hold(self: &Arc<Self>, diff_ids: &[Digest]) -> Hold {
        let mut held = lock(&self.held);
        for diff_id in diff_ids {
            *held.entry(*diff_id).or_default() += 1;
        }
        Hold {
            flights: Arc::clone(self),
            diff_ids: diff_ids.to_vec(),
        }
    }

    /// The held layers; while the guard lives nobody takes hold of more.
    pub fn held(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        lock(&self.held)
    }
}

impl Flight {
    /// The layer is there: those who wait get it.
    pub fn land(self, fresh: &Arc<Fresh>) {
        lock(&self.flights.slots).insert(self.diff_id, Slot::Fetched(Arc::downgrade(fresh)));
        self.sender.send_replace(Some(Arc::clone(fresh)));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut slots = lock(&self.flights.slots);
        if let Some(Slot::Fetching(_)) = slots.get(&self.diff_id) {
            slots.remove(&self.diff_id);
        }
    }
}

/// See [`LayerFlights::hold`].
#[derive(Debug)]
pub struct Hold {
    flights: Arc<LayerFlights>,
    diff_ids: Vec<Digest>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = lock(&self.flights.held);
        for diff_id in &self.diff_ids {
            if let Some(count) = held.get_mut(diff_id) {
                *count -= 1;
                if *count == 0 {
                    held.remove(diff_id);
                }
            }
        }
    }
}

/// Results that whoever asks for the same key meanwhile gets too.
#[derive(Debug)]
pub struct Joined<K, V>(Mutex<HashMap<K, watch::Receiver<Option<V>>>>);

impl<K, V> Default for Joined<K, V> {
    fn default() -> Self {
        Joined(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone + Send + 'static, V: Clone + Send + Sync + 'static> Joined<K, V> {
    /// Runs `work` in a task of its own, or joins the one of this key. `None`
    /// when the runtime stops before it ends.
    pub async fn run<F>(self: &Arc<Self>, key: K, work: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut receiver = {
            let mut running = lock(&self.0);
            match running.get(&key) {
                Some(receiver) => receiver.clone(),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    running.insert(key.clone(), receiver.clone());
                    let entry = Entry {
                        joined: Arc::clone(self),
                        key,
                    };
                    let work = work();
                    tokio::spawn(async move {
                        let value = work.await;
                        // First out of the table: who comes now starts anew.
                        drop(entry);
                        sender.send_replace(Some(value));
                    });
                    receiver
                }
            }
        };
        let value = receiver.wait_for(Option::is_some).await.ok()?;
        value.clone()
    }
}

/// Takes its key out of the table, also when the task is dropped.
struct Entry<K: Eq + Hash, V> {
    joined: Arc<Joined<K, V>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Entry<K, V> {
    fn drop(&mut self) {
        lock(&self.joined.0).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    #[tokio::test]
    async fn joined_work_runs_once_and_outlives_who_asked() {
        let joined: Arc<Joined<u8, usize>> = Arc::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let ask = |key| {
            let (joined, runs) = (Arc::clone(&joined), Arc::clone(&runs));
            async move {
                joined
                    .run(key, move || async move {
                        tokio::time::sleep(Duration::from_millis(30)).await;
                        runs.fetch_add(1, Ordering::Relaxed)
                    })
                    .await
            }
        };
        // The first asker goes away at once.
        let _ = tokio::time::timeout(Duration::from_millis(1), ask(1)).await;
        let (a, b) = tokio::join!(ask(1), ask(1));
        assert_eq!((a, b, runs.load(Ordering::Relaxed)), (Some(0), Some(0), 1));
        assert_eq!(ask(1).await, Some(1));
    }

    #[test]
    fn a_flight_that_does_not_land_is_anothers() {
        let flights: Arc<LayerFlights> = Arc::default();
        let digest = Digest::of(b"x");
        let Turn::Yours(flight) = flights.turn(digest) else {
            panic!()
        };
        let Turn::Wait(receiver) = flights.turn(digest) else {
            panic!()
        };
        drop(flight);
        assert!(receiver.has_changed().is_err());
        assert!(matches!(flights.turn(digest), Turn::Yours(_)));
    }

    #[test]
    fn holds_are_counted() {
        let flights: Arc<LayerFlights> = Arc::default();
        let digest = Digest::of(b"x");
        let (one, two) = (flights.hold(&[digest, digest]), flights.hold(&[digest]));
        drop(one);
        assert_eq!(flights.held().get(&digest), Some(&1));
        drop(two);
        assert!(flights.held().is_empty());
    }
}
