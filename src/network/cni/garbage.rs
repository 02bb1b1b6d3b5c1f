//! GC: plugins give back what belongs to no attachment any more.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::RwLockWriteGuard;

use super::{
    Cni,
    config::Conflist,
    error::Error,
    request::{Request, Verb},
};

/// How long a moment without ADD and DEL is looked for, and how often.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

impl Cni {
    /// The networks whose plugins may be asked: those of all folders, each once.
    pub fn with_garbage(&self) -> Vec<Arc<Conflist>> {
        let mut found: Vec<Arc<Conflist>> = Vec::new();
        for folder in std::iter::once(&self.folder).chain(self.of_handlers.values()) {
            // What is wrong with a configuration is said by the status.
            if let Ok(Some(list)) = folder.current()
                && list.speaks("1.1.0")
                && !list.disable_gc
                && !found.iter().any(|other| other.name == list.name)
            {
                found.push(list);
            }
        }
        found
    }

    /// Waits for a moment without ADD and DEL, and keeps them waiting as long as the
    /// guard lives. It does not queue for it: behind who queues, pods would wait.
    pub async fn alone(&self, list: &Conflist) -> Result<RwLockWriteGuard<'_, ()>, Error> {
        let begin = Instant::now();
        loop {
            match self.gate.try_write() {
                Ok(guard) => return Ok(guard),
                Err(_) if begin.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
                Err(_) => {
                    let network = list.name.clone();
                    return Err(Error::Busy { network });
                }
            }
        }
    }

    /// GC of every plugin. One that fails does not keep the others from cleaning up.
    pub async fn collect(
        &self,
        _alone: &RwLockWriteGuard<'_, ()>,
        list: &Conflist,
        valid: &[String],
    ) -> Vec<Error> {
        let mut errors = Vec::new();
        for plugin in &list.plugins {
            let request = Request::of_network(Verb::Gc, list, plugin, valid);
            if let Err(e) = self.call(request).await
                && !e.is_unknown_verb()
            {
                errors.push(e);
            }
        }
        errors
    }
}
