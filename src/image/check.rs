//! After an unclean stop of the machine: every layer is read and compared with its seal
//! before an image that stands on it is said to be there.
//!
//! ```text
//! open --- looked at ---> whole
//!                   \---> broken: its images are hidden, a pull fetches it anew
//! ```
//!
//! One thread looks at all of them; whoever asks for an image by name, or pulls one, has
//! its layers looked at now. Images that nobody has pulled again after [`KEPT`] leave the
//! disk: until then the layers that are whole need not be fetched.

use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use rustix::io::Errno;

use super::{Error, Inner, assemble, content, flights::lock, seal::Seal};
use crate::{
    store::{
        self, Store,
        images::{self as records, LayerRow},
    },
    telemetry::metrics::metrics,
};

/// How long the whole layers of a broken image are kept for a pull.
pub const KEPT: Duration = Duration::from_secs(3600);

/// Pause before a look that failed for want of memory or descriptors is made again.
const RETRY: Duration = Duration::from_millis(200);

/// Which layers nobody has looked at yet.
#[derive(Debug, Default)]
pub struct Checks {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeSet<u64>,
    /// Being looked at; also in `open`.
    busy: BTreeSet<u64>,
}

impl Checks {
    pub fn open(&self) -> BTreeSet<u64> {
        lock(&self.state).open.clone()
    }

    pub fn is_over(&self) -> bool {
        lock(&self.state).open.is_empty()
    }

    /// The right to look at a layer; None when somebody has. Waits for who is looking.
    fn begin(&self, number: u64) -> Option<Turn<'_>> {
        let mut state = lock(&self.state);
        while state.busy.contains(&number) {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.open.contains(&number) {
            return None;
        }
        state.busy.insert(number);
        Some(Turn { checks: self, number })
    }
}

struct Turn<'a> {
    checks: &'a Checks,
    number: u64,
}

impl Turn<'_> {
    fn over(&self) {
        lock(&self.checks.state).open.remove(&self.number);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.checks.state).busy.remove(&self.number);
        self.checks.done.notify_all();
    }
}

impl Inner {
    /// Has all layers looked at, by a thread of its own; `over` is called when that is done.
    pub fn check_all(self: &Arc<Self>, over: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let all = self.store.read("list layers", records::whole_layers)?;
        if all.is_empty() {
            over();
            return Ok(());
        }
        tracing::warn!(
            layers = all.len(),
            "the machine stopped uncleanly: images are said to be there when their layers were looked at"
        );
        self.open_all(&all)?;
        let inner = Arc::clone(self);
        std::thread::Builder::new()
            .name("image-check".into())
            .spawn(move || {
                let mut failed = false;
                for number in all {
                    if let Err(error) = inner.check(&[number]) {
                        tracing::error!(number, %error, "look at a layer");
                        failed = true;
                    }
                }
                if !failed {
                    over();
                }
            })
            .map(drop)
            .map_err(content::io_error("start the check of", &self.root))
    }

    /// Nobody has looked at these.
    pub(super) fn open_all(&self, numbers: &[u64]) -> Result<(), Error> {
        lock(&self.checks.state).open = numbers.iter().copied().collect();
        self.refresh()
    }

    /// Looks at those of the layers that nobody has looked at. Blocks for as long as it
    /// takes to read them.
    pub fn check(&self, numbers: &[u64]) -> Result<(), Error> {
        let mut looked = false;
        for number in numbers {
            if let Some(turn) = self.checks.begin(*number) {
                self.look(*number)?;
                turn.over();
                looked = true;
            }
        }
        if looked { self.refresh() } else { Ok(()) }
    }

    /// Has the layers of an image looked at, when that is still to be done.
    pub async fn look_at(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        if self.checks.is_over() {
            return Ok(());
        }
        let Some(image) = self.catalog().find_hidden(name)? else {
            return Ok(());
        };
        let id = image.id.clone();
        let rows = move |store: &Store| {
            store.read("look for the layers of an image", |c| {
                records::image_layers(c, &id)
            })
        };
        self.look_at_rows(name, rows).await
    }

    /// Likewise those rows of layers, which `image` needs. Nothing is read when all was
    /// looked at.
    pub async fn look_at_rows(
        self: &Arc<Self>,
        image: &str,
        rows: impl FnOnce(&Store) -> Result<Vec<LayerRow>, store::Error> + Send + 'static,
    ) -> Result<(), Error> {
        if self.checks.is_over() {
            return Ok(());
        }
        let inner = Arc::clone(self);
        super::blocking(&image, move || {
            let numbers: Vec<u64> = rows(&inner.store)?.iter().map(|row| row.number).collect();
            inner.check(&numbers)
        })
        .await
    }

    fn look(&self, number: u64) -> Result<(), Error> {
        let row = self
            .store
            .read("look for a layer", |c| records::whole_layer(c, number))?;
        let Some(row) = row else { return Ok(()) };
        let implied = assemble::paths(&row.implied);
        let seal = loop {
            match self.layers.folder(number).and_then(|top| Seal::of(top, &implied)) {
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR) => std::thread::sleep(RETRY),
                seal => break seal.map(Seal::to_bytes),
            }
        };
        let why = match seal {
            Ok(seal) if seal == row.seal => return Ok(()),
            // Unpacked by a berthd that made none: it is trusted as that one trusted it, and
            // what it loses from now on is noticed.
            Ok(seal) if row.seal.is_empty() => {
                self.store
                    .write("seal a layer", |t| records::set_seal(t, number, &seal))?;
                return Ok(());
            }
            Ok(_) => "it is not what was unpacked".to_owned(),
            Err(errno) => errno.to_string(),
        };
        let marked = self
            .store
            .durable("mark a layer as broken", |t| records::set_broken(t, number))?;
        if !marked {
            // It went with its image while it was looked at.
            return Ok(());
        }
        metrics().layers_broken.inc();
        let path = self.layers.path(number);
        tracing::error!(layer = %path.display(), diff_id = row.diff_id, why, "this layer is broken; the next pull fetches it anew");
        Ok(())
    }

    /// Lets go of images that were found broken and not pulled again for a while.
    pub fn forget_broken(&self) -> Result<(), Error> {
        let broken = self
            .store
            .read("look for broken images", records::broken_images)?;
        if broken.is_empty() {
            return Ok(());
        }
        self.store
            .durable("delete broken images", |t| records::delete_images(t, &broken))?;
        tracing::warn!(images = ?broken, "these were broken and are not needed: they are removed");
        self.refresh()?;
        self.collect();
        Ok(())
    }
}
