//! Images: pulled from registries, kept as layer folders, known by name, id and
//! digest.
//!
//! In reading order: [`reference`] (names), [`pull`] (the walk), [`hosts`],
//! [`registry`], [`endpoint`], [`auth`] (whom to ask and how), [`manifest`], [`platform`] (what
//! comes back), [`fetch`], [`transfer`], [`body`], [`pipeline`], [`decompress`], [`unpack`]
//! (a layer's bytes on their one way), [`assemble`] (the commit), [`catalog`]
//! (what is here), [`gc`] (what is no longer needed), [`seal`] and [`check`] (what a disk lost).
//!
//! This module must not know pods or the CRI: names, credentials and containers'
//! ids come in as plain values.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicBool},
    time::Duration,
};

pub mod assemble;
mod attributes;
pub mod auth;
pub mod body;
pub mod catalog;
pub mod check;
pub mod content;
pub mod copy_up;
pub mod decompress;
pub mod digest;
pub mod endpoint;
pub mod error;
pub mod fetch;
pub mod flights;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod gc;
pub mod hosts;
pub mod http_client;
pub mod layers;
pub mod manifest;
pub mod pipeline;
pub mod platform;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod relabel;
pub mod seal;
pub mod tar;
pub mod tls;
pub mod transfer;
pub mod unpack;
pub mod usage;
pub mod view;
mod walk;

pub use self::walk::remove_all;

#[cfg(test)]
pub(crate) mod tests;

pub use auth::AuthConfig;
pub use catalog::Image;
pub use error::Error;
pub use manifest::ImageConfig;
pub use pull::Pull;

use crate::{
    config::Config,
    store::{Store, Transaction, images as records},
};
use catalog::Catalog;
use check::Checks;
use content::Blobs;
use digest::Digest;
use flights::{Joined, LayerFlights};
use layers::Layers;
use manifest::MAX_CONFIG;
use platform::Platform;
use reference::Reference;
use registry::Patience;
use tls::Roots;
use unpack::Limits;

/// The images of this node.
pub struct Images {
    inner: Arc<Inner>,
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Images")
            .field("root", &self.inner.root)
            .finish_non_exhaustive()
    }
}

/// What images take on their file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsUsage {
    /// A folder of that file system: the root.
    pub mountpoint: PathBuf,
    /// Bytes on disk of layers, manifests and configs.
    pub used_bytes: u64,
    pub inodes_used: u64,
}

/// What the pulls, which outlive their callers, share with [`Images`].
#[derive(Debug)]
pub struct Inner {
    root: PathBuf,
    store: Arc<Store>,
    blobs: Blobs,
    layers: Arc<Layers>,
    catalog: RwLock<Arc<Catalog>>,
    settings: RwLock<Arc<Settings>>,
    platform: Platform,
    roots: Roots,
    flights: Arc<LayerFlights>,
    pulls: Arc<Joined<PullKey, PullResult>>,
    /// Held by a commit, and by the removal of what is unused.
    assembly: Mutex<()>,
    /// Something may be unused.
    stale: AtomicBool,
    checks: Checks,
}

/// What the configuration says of images. A pull keeps those it began with.
#[derive(Debug)]
struct Settings {
    pinned: Vec<String>,
    config_path: PathBuf,
    patience: Patience,
    max_concurrent_layers: usize,
    limits: Limits,
}

impl Settings {
    fn of(config: &Config) -> Settings {
        let name = |name: &String| match Reference::parse(name) {
            Ok(reference) => reference.to_string(),
            Err(_) => name.clone(),
        };
        Settings {
            pinned: config.image.pinned.iter().map(name).collect(),
            config_path: config.registry.config_path.clone(),
            patience: Patience {
                stall: Duration::from_secs(config.registry.stall_timeout.max(1)),
                ..Patience::default()
            },
            max_concurrent_layers: config.image.max_concurrent_layers.max(1),
            limits: Limits {
                bytes: config.image.max_layer_bytes,
                entries: config.image.max_layer_entries,
                ..Limits::default()
            },
        }
    }
}

type PullKey = (Reference, AuthConfig);
type PullResult = Result<Pull, Arc<Error>>;

impl Images {
    /// Opens the images under `root`; what an earlier process left half-made is
    /// removed beside, by a thread.
    pub fn open(root: &Path, store: Arc<Store>, config: &Config) -> Result<Images, Error> {
        Images::open_with(root, store, Settings::of(config))
    }

    fn open_with(root: &Path, store: Arc<Store>, settings: Settings) -> Result<Images, Error> {
        let blobs = Blobs::open(root)?;
        let numbers = store.read("list layers", records::layer_numbers)?;
        let layers = Layers::open(&root.join("layers"), numbers.last().copied().unwrap_or(0))?;
        let inner = Arc::new(Inner {
            root: root.to_owned(),
            blobs,
            layers: Arc::new(layers),
            catalog: RwLock::default(),
            settings: RwLock::new(Arc::new(settings)),
            platform: Platform::host(),
            roots: Roots::default(),
            flights: Arc::default(),
            pulls: Arc::default(),
            assembly: Mutex::default(),
            stale: AtomicBool::new(false),
            checks: Checks::default(),
            store,
        });
        inner.refresh()?;
        // Beside the start: to remove a large half-made layer takes a while.
        let sweeper = Arc::clone(&inner);
        std::thread::Builder::new()
            .name("image-sweep".into())
            .spawn(move || sweeper.sweep())
            .map_err(content::io_error("start the sweep of", root))?;
        Ok(Images { inner })
    }

    /// Takes over what a new configuration says of images, for the pulls that begin
    /// from now on.
    pub fn configure(&self, config: &Config) -> Result<(), Error> {
        let settings = Arc::new(Settings::of(config));
        *self
            .inner
            .settings
            .write()
            .unwrap_or_else(PoisonError::into_inner) = settings;
        self.inner.refresh()
    }

    /// Pulls an image. The work goes on when the caller
    /// goes away, and whoever asks for the same with the same credentials
    /// meanwhile joins it.
    pub async fn pull(&self, reference: &str, auth: Option<AuthConfig>) -> Result<Pull, Error> {
        let parsed = Reference::parse(reference).map_err(|message| Error::Reference {
            reference: reference.to_owned(),
            message,
        })?;
        let auth = auth.unwrap_or_default();
        let work = {
            let (inner, parsed, auth) = (Arc::clone(&self.inner), parsed.clone(), auth.clone());
            move || async move { pull::run(inner, parsed, auth).await.map_err(Arc::new) }
        };
        let result = self.inner.pulls.run((parsed, auth), work).await;
        let stopped = || Error::Stopped {
            image: reference.to_owned(),
        };
        Ok(result.ok_or_else(stopped)??)
    }

    /// All images, by id.
    pub fn list(&self) -> Result<Vec<Arc<Image>>, Error> {
        Ok(self.inner.catalog().images.clone())
    }

    /// The image of an id (with or without `sha256:`, or its first 8 digits or
    /// more), tag or digest; short names mean docker.io's. One that nobody has looked at
    /// since an unclean stop of the machine is looked at first.
    pub async fn find(&self, name: &str) -> Result<Option<Arc<Image>>, Error> {
        self.inner.look_at(name).await?;
        self.inner.catalog().find(name)
    }

    /// After an unclean stop of the machine: an image is said to be there again when its
    /// layers have been read and found whole. Returns at once; `over` is called when all
    /// were. To be called before anybody is served.
    pub fn check(&self, over: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        self.inner.check_all(over)
    }

    /// Waits until no layer waits to be looked at, for at most so long.
    pub async fn until_checked(&self, most: Duration) {
        let looked = async {
            while !self.is_checked() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(most, looked).await;
    }

    /// No layer waits to be looked at.
    pub fn is_checked(&self) -> bool {
        self.inner.checks.is_over()
    }

    /// Lets go of broken images that nobody has pulled again for an hour. Ends then.
    pub async fn forget_broken(&self) -> Result<(), Error> {
        loop {
            tokio::time::sleep(check::KEPT).await;
            if self.is_checked() {
                let inner = Arc::clone(&self.inner);
                return blocking(&"(those that are broken)", move || inner.forget_broken()).await;
            }
        }
    }

    /// The config blob of an image, as it was pulled: JSON.
    pub fn config_json(&self, image: &Image) -> Result<String, Error> {
        let body = match image.id.parse::<Digest>() {
            Ok(digest) => self.inner.blobs.read(&digest, MAX_CONFIG)?,
            Err(_) => None,
        };
        body.and_then(|body| String::from_utf8(body).ok())
            .ok_or_else(|| Error::Manifest {
                object: format!("config {}", image.id),
                message: "is damaged on disk; pull the image again".into(),
            })
    }

    /// Removes the image that `name` means with all its names, of every repository,
    /// as the CRI says. One that is not there is removed already. Layers that
    /// containers stand on stay until these are gone.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let catalog = self.inner.catalog();
        let found = catalog.find(name)?;
        let Some(image) = found.map_or_else(|| catalog.find_hidden(name), |found| Ok(Some(found)))? else {
            return Ok(());
        };
        let names: Vec<String> = image
            .repo_tags
            .iter()
            .chain(&image.repo_digests)
            .cloned()
            .collect();
        self.inner.store.durable("remove an image", |t| {
            records::delete_references(t, &names)?;
            records::delete_unnamed(t, &image.id)
        })?;
        self.inner.refresh()?;
        tracing::info!(id = image.id, ?names, "image removed");
        self.inner.collect();
        Ok(())
    }

    /// What layers and blobs take now; containers are not in it.
    pub fn fs_info(&self) -> Result<FsUsage, Error> {
        let (layer_bytes, layer_inodes) = self.inner.store.read("sum up layers", records::usage)?;
        let (blob_bytes, blob_inodes) = self.inner.blobs.usage()?;
        Ok(FsUsage {
            mountpoint: self.inner.root.clone(),
            used_bytes: layer_bytes + blob_bytes,
            inodes_used: layer_inodes + blob_inodes,
        })
    }

    /// Folders of an image's layers for overlay, top first, recorded as in use by
    /// the container. A layer that comes twice stands where it is uppermost (all
    /// it does further down it does again there, and overlay refuses a folder
    /// given twice).
    pub fn use_layers(&self, image_id: &str, container_id: &str) -> Result<Vec<PathBuf>, Error> {
        let numbers = self.inner.store.write("use layers", |t| {
            let mut numbers: Vec<u64> = Vec::new();
            for (number, opaque) in records::layer_stack(t, image_id)? {
                if !numbers.contains(&number) {
                    numbers.push(number);
                    records::insert_use(t, container_id, number)?;
                }
                if opaque {
                    break;
                }
            }
            let present = !numbers.is_empty() || records::is_image(t, image_id)?;
            Ok(present.then_some(numbers))
        })?;
        let numbers = numbers.ok_or_else(|| Error::NotFound {
            name: image_id.to_owned(),
        })?;
        Ok(numbers
            .into_iter()
            .map(|number| self.inner.layers.path(number))
            .collect())
    }

    /// The container no longer stands on layers; those that nobody else needs go.
    pub fn release_layers(&self, container_id: &str) -> Result<(), Error> {
        let release = |t: &Transaction<'_>| records::delete_uses(t, container_id);
        let unused = self.inner.store.write("release layers", release)?;
        if unused {
            self.inner.collect();
        }
        Ok(())
    }

    /// Copies what stands at `path` in an image (layers from
    /// [`Images::use_layers`]) into the folder `dest`: the first content of a volume.
    pub fn copy_up(&self, layers: &[PathBuf], path: &str, dest: &Path) -> Result<(), Error> {
        Ok(copy_up::copy_up(layers, path, dest)?)
    }

    /// Ids of the containers that layers are recorded for.
    pub fn users(&self) -> Result<Vec<String>, Error> {
        Ok(self.inner.store.read("list users of layers", records::users)?)
    }
}

impl Inner {
    fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the records anew, after they changed.
    fn refresh(&self) -> Result<(), Error> {
        let mut catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        let open = self.checks.open();
        let pinned = &self.settings().pinned;
        let new = Catalog::load(&self.store, &self.blobs, pinned, &open, &catalog)?;
        *catalog = Arc::new(new);
        Ok(())
    }
}

/// Runs what blocks on a thread for that; `image` is what it is about.
async fn blocking<T: Send + 'static>(
    image: &impl fmt::Display,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let stopped = |_| Error::Stopped {
        image: image.to_string(),
    };
    tokio::task::spawn_blocking(work).await.map_err(stopped)?
}
