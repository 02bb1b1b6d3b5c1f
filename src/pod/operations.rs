//! Operations: every call that changes something runs in a task of its own,
//! keyed by its object and apart from the client's connection.
//!
//! A second call with the same key joins the first and gets its result. When a
//! client's deadline passes or it goes away, only its waiting ends; the work goes
//! on, and the retry joins it. That is the answer to "name is reserved"
//! (containerd issues 12438 and 9947, CRI-O issue 7010).

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tracing::Instrument;

use crate::failpoint;

/// Where an operation is: the name of the step that runs now.
#[derive(Clone, Debug)]
pub struct Stage(Arc<Mutex<&'static str>>);

impl Stage {
    fn new() -> Stage {
        Stage(Arc::new(Mutex::new("begin")))
    }

    /// Says what is done from now on: "attach the network".
    pub fn set(&self, name: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = name;
        failpoint::reach(name);
    }

    /// The step that runs now.
    pub fn get(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client's time was up; the operation goes on.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{key}: still at the step \"{stage}\" when the time of the call was up; it goes on, call again to join it"
)]
pub struct Interrupted {
    pub key: String,
    pub stage: &'static str,
}

struct Flight<T> {
    stage: Stage,
    outcome: watch::Receiver<Option<T>>,
}

/// The operations under way whose result is a `T`.
pub struct Operations<T> {
    flights: Mutex<HashMap<String, Flight<T>>>,
    /// Dropped senders tell `drain` that nothing is left.
    busy: watch::Sender<usize>,
}

impl<T> fmt::Debug for Operations<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Operations({} under way)", *self.busy.borrow())
    }
}

impl<T> Default for Operations<T> {
    fn default() -> Self {
        Operations {
            flights: Mutex::new(HashMap::new()),
            busy: watch::Sender::new(0),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Operations<T> {
    fn flights(&self) -> MutexGuard<'_, HashMap<String, Flight<T>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the operation `key`, or starts it with `work`, and waits for its
    /// result, at most for `limit`.
    pub async fn join<F, W>(
        self: &Arc<Self>,
        key: String,
        limit: Option<Duration>,
        work: F,
    ) -> Result<T, Interrupted>
    where
        F: FnOnce(Stage) -> W,
        W: Future<Output = T> + Send + 'static,
    {
        let (stage, mut outcome) = self.enter(&key, work);
        let done = async {
            match outcome.wait_for(Option::is_some).await {
                Ok(value) => value.clone(),
                Err(_) => None,
            }
        };
        let ended = match limit {
            Some(limit) => tokio::time::timeout(limit, done).await.unwrap_or(None),
            None => done.await,
        };
        ended.ok_or_else(|| Interrupted {
            key,
            stage: stage.get(),
        })
    }

    fn enter<F, W>(self: &Arc<Self>, key: &str, work: F) -> (Stage, watch::Receiver<Option<T>>)
    where
        F: FnOnce(Stage) -> W,
        W: Future<Output = T> + Send + 'static,
    {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(key) {
            return (flight.stage.clone(), flight.outcome.clone());
        }
        let stage = Stage::new();
        let (sender, outcome) = watch::channel(None);
        flights.insert(
            key.to_owned(),
            Flight {
                stage: stage.clone(),
                outcome: outcome.clone(),
            },
        );
        self.busy.send_modify(|n| *n += 1);
        drop(flights);
        let (work, operations, key) = (work(stage.clone()), self.clone(), key.to_owned());
        // The work is a part of the call that began it, also for those that join.
        let work = work.in_current_span();
        tokio::spawn(async move {
            let value = work.await;
            // Forgotten before it is told: who calls after the answer starts anew.
            operations.flights().remove(&key);
            let _ = sender.send(Some(value));
            operations.busy.send_modify(|n| *n -= 1);
        });
        (stage, outcome)
    }

    /// Waits until no operation is under way.
    pub async fn drain(&self) {
        let mut busy = self.busy.subscribe();
        // The sender lives as long as self: it cannot fail.
        let _ = busy.wait_for(|n| *n == 0).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_retry_joins_and_gets_the_result() {
        let operations = Arc::new(Operations::<u32>::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let call = |limit| {
            let (operations, runs) = (operations.clone(), runs.clone());
            async move {
                operations
                    .join("run a".into(), limit, |stage| async move {
                        runs.fetch_add(1, Ordering::SeqCst);
                        stage.set("sleep");
                        tokio::time::sleep(Duration::from_secs(10)).await;
                        7
                    })
                    .await
            }
        };
        let first = call(Some(Duration::from_secs(1))).await.unwrap_err();
        assert_eq!(first.stage, "sleep");
        let (a, b) = tokio::join!(call(None), call(None));
        assert_eq!((a.unwrap(), b.unwrap()), (7, 7));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        // After the answer a call is a new operation.
        call(None).await.unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_work_goes_on_when_the_caller_is_dropped() {
        let operations = Arc::new(Operations::<u32>::default());
        let done = Arc::new(AtomicUsize::new(0));
        let seen = done.clone();
        let call = operations.join("a".into(), None, |_| async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            seen.fetch_add(1, Ordering::SeqCst);
            0
        });
        drop(tokio::time::timeout(Duration::from_millis(1), call).await);
        operations.drain().await;
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }
}
