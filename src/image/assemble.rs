//! The commit of a pull: layers get their numbers, everything reaches the disk,
//! and then the image is recorded. An image that is in the records is whole.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Inner,
    digest::Digest,
    error::Error,
    flights::{Fresh, FreshState, lock},
    layers::Layer,
    reference::Reference,
    registry::Fetched,
    unpack::Unpacked,
};
use crate::{
    failpoint,
    store::images::{self as records, ImageRow, LayerRow},
};

/// Everything of an image, fetched and verified.
#[derive(Debug)]
pub struct Pulled {
    pub reference: Reference,
    /// What the reference stood for: the index or manifest.
    pub target: Digest,
    /// The config's digest.
    pub id: Digest,
    pub manifest: Fetched,
    pub config: Vec<u8>,
    /// See [`super::Image::size`].
    pub size: u64,
    pub diff_ids: Vec<Digest>,
    /// The layers that the records lacked.
    pub fresh: HashMap<Digest, Arc<Fresh>>,
}

/// Commits; the answer is the image's id. Blocks for as long as the disk takes.
pub fn assemble(inner: &Inner, pulled: Pulled) -> Result<String, Error> {
    // One commit at a time: two images that share a layer agree on its number.
    let _one = lock(&inner.assembly);
    let mut assembly = Assembly {
        inner,
        fresh: &pulled.fresh,
        new: Vec::new(),
        lowers: Vec::new(),
    };
    let mut numbers = Vec::with_capacity(pulled.diff_ids.len());
    for diff_id in &pulled.diff_ids {
        numbers.push(assembly.place(*diff_id)?);
    }
    let new = assembly.new;

    let id = pulled.id.to_string();
    let known = inner.store.read("look for an image", records::images)?;
    let recorded = known.iter().find(|image| image.id == id);
    // Of manifests that differ in their compression only, the first stays.
    if recorded.is_none_or(|image| image.manifest == pulled.manifest.digest.to_string()) {
        inner
            .blobs
            .write(&pulled.manifest.digest, &pulled.manifest.body)?;
    }
    inner.blobs.write(&pulled.id, &pulled.config)?;
    inner.blobs.sync()?;
    failpoint::reach("assemble image: sync");
    if !new.is_empty() {
        inner.layers.sync()?;
    }

    let image = ImageRow {
        id: id.clone(),
        manifest: pulled.manifest.digest.to_string(),
        size: pulled.size,
        names: Vec::new(),
    };
    let target = pulled.target.to_string();
    inner.store.durable("record an image", |t| {
        for (row, _) in &new {
            records::insert_layer(t, row)?;
        }
        records::insert_image(t, &image, &numbers)?;
        let by_digest = pulled.reference.with_digest(pulled.target).to_string();
        records::set_reference(t, &by_digest, &id, &target)?;
        if pulled.reference.tag().is_some() {
            records::set_reference(t, &pulled.reference.to_string(), &id, &target)?;
        }
        Ok(())
    })?;
    for (_, fresh) in &new {
        fresh.recorded();
    }
    inner.refresh()?;
    tracing::info!(image = %pulled.reference, id, layers = numbers.len(), fetched = new.len(), "pulled");
    Ok(id)
}

/// The layers of one image finding their places, from the bottom up.
struct Assembly<'a> {
    inner: &'a Inner,
    fresh: &'a HashMap<Digest, Arc<Fresh>>,
    /// Rows to insert, each with the guard that removes the layer if that fails.
    new: Vec<(LayerRow, Arc<Fresh>)>,
    /// Folders of the layers so far, top first.
    lowers: Vec<PathBuf>,
}

impl Assembly<'_> {
    /// The number of the next layer: a recorded one, or a new one.
    fn place(&mut self, diff_id: Digest) -> Result<u64, Error> {
        let text = diff_id.to_string();
        let mut rows = self
            .inner
            .store
            .read("look for a layer", |c| records::layers_of(c, &text))?;
        rows.extend(
            self.new
                .iter()
                .map(|(row, _)| row.clone())
                .filter(|row| row.diff_id == text),
        );
        let row = match rows.first() {
            Some(first) => {
                let wanted = self.inner.layers.variant(&paths(&first.implied), &self.lowers)?;
                match rows.iter().find(|row| row.variant == wanted) {
                    Some(row) => row.clone(),
                    None => self.derive(first)?,
                }
            }
            None => self.take(diff_id)?,
        };
        if row.opaque {
            self.lowers.clear();
        }
        self.lowers.insert(0, self.inner.layers.path(row.number));
        Ok(row.number)
    }

    /// Gives a layer that was just fetched its number.
    fn take(&mut self, diff_id: Digest) -> Result<LayerRow, Error> {
        let lost = || Error::Lost {
            diff_id: diff_id.to_string(),
        };
        let fresh = self.fresh.get(&diff_id).ok_or_else(lost)?;
        let mut state = lock(&fresh.state);
        let (layer, fits) = match std::mem::replace(&mut *state, FreshState::Settled) {
            FreshState::Ingested(ingest) => {
                let layer = self.inner.layers.commit(ingest, &fresh.unpacked, &self.lowers)?;
                (layer, true)
            }
            // By a pull whose own commit then failed.
            FreshState::Committed(layer) => {
                let wanted = self.inner.layers.variant(&fresh.unpacked.implied, &self.lowers)?;
                let fits = layer.variant == wanted;
                (layer, fits)
            }
            FreshState::Settled => return Err(lost()),
        };
        *state = FreshState::Committed(layer.clone());
        drop(state);
        let row = row(diff_id, &layer, &fresh.unpacked);
        self.new.push((row.clone(), Arc::clone(fresh)));
        if fits { Ok(row) } else { self.derive(&row) }
    }

    /// Makes another variant of a layer that is there.
    fn derive(&mut self, from: &LayerRow) -> Result<LayerRow, Error> {
        let implied = paths(&from.implied);
        let layer = self.inner.layers.derive(from.number, &implied, &self.lowers)?;
        let row = LayerRow {
            number: layer.number,
            variant: layer.variant.clone(),
            bytes: layer.bytes,
            inodes: layer.inodes,
            ..from.clone()
        };
        let guard = Fresh::new(
            Arc::clone(&self.inner.layers),
            Unpacked::default(),
            FreshState::Committed(layer),
        );
        self.new.push((row.clone(), guard));
        Ok(row)
    }
}

fn row(diff_id: Digest, layer: &Layer, unpacked: &Unpacked) -> LayerRow {
    let mut implied = Vec::new();
    for path in &unpacked.implied {
        implied.extend_from_slice(path.as_os_str().as_bytes());
        implied.push(0);
    }
    LayerRow {
        number: layer.number,
        diff_id: diff_id.to_string(),
        variant: layer.variant.clone(),
        implied,
        opaque: unpacked.opaque_root,
        bytes: layer.bytes,
        inodes: layer.inodes,
        seal: unpacked.seal.to_bytes(),
    }
}

/// The paths of [`LayerRow::implied`].
pub(super) fn paths(implied: &[u8]) -> Vec<PathBuf> {
    implied
        .split(|byte| *byte == 0)
        .filter(|path| !path.is_empty())
        .map(|path| Path::new(OsStr::from_bytes(path)).to_owned())
        .collect()
}
