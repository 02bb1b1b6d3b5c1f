//! The walk of a pull: hosts, manifest, platform, config, layers, commit.
//!
//! It runs in its own task (see [`super::Images::pull`]), so that a client that
//! goes away breaks nothing.

use std::sync::Arc;

use super::{
    Inner,
    assemble::{self, Pulled},
    auth::AuthConfig,
    blocking,
    digest::Digest,
    error::Error,
    fetch,
    manifest::{ConfigFile, Descriptor, Document, MAX_CONFIG, MAX_LAYERS, Manifest, is_layer},
    platform::{self, Platform},
    reference::{Reference, Version},
    registry::{Fetched, Session},
};
use crate::{store::images as records, telemetry::metrics::metrics};

/// Deepest nesting of indexes.
const MAX_DEPTH: usize = 4;

/// What a pull did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pull {
    /// The image's.
    pub id: String,
    /// Bytes of layers that came from registries; what other pulls brought is theirs.
    pub bytes: u64,
    /// Layers that this pull fetched.
    pub layers: u64,
}

/// Pulls `reference`.
pub async fn run(inner: Arc<Inner>, reference: Reference, auth: AuthConfig) -> Result<Pull, Error> {
    let result = walk(&inner, &reference, auth).await;
    match &result {
        Ok((_, changed)) => metrics().pulled(if *changed { "fetched" } else { "unchanged" }),
        Err(_) => metrics().pulled("failed"),
    }
    // A layer that nobody wants any more, a blob of a commit that failed.
    let _ = blocking(&reference, move || {
        inner.collect();
        Ok(())
    })
    .await;
    result.map(|(pull, _)| pull)
}

/// What was done, and whether anything had to be.
async fn walk(inner: &Arc<Inner>, reference: &Reference, auth: AuthConfig) -> Result<(Pull, bool), Error> {
    let session = {
        let (inner, reference) = (Arc::clone(inner), reference.clone());
        blocking(&reference.clone(), move || {
            let settings = inner.settings();
            Session::open(
                reference,
                Some(auth),
                &settings.config_path,
                &inner.roots,
                settings.patience,
            )
        })
        .await?
    };
    inner.look_at(&reference.to_string()).await?;
    if let Some(id) = unchanged(inner, &session).await? {
        tracing::debug!(image = %reference, id, "the tag has not moved");
        let (bytes, layers) = (0, 0);
        return Ok((Pull { id, bytes, layers }, false));
    }

    let top = session.manifest(&reference.version, None).await?;
    let target = top.digest;
    let (fetched, manifest) = choose(inner, &session, top).await?;
    let object = format!("image {reference}");
    check_manifest(&object, &manifest)?;

    let config = read_config(inner, &session, &manifest.config).await?;
    let file = ConfigFile::parse(&object, &config)?;
    check_config(&inner.platform, reference, &manifest, &file)?;

    let diff_ids = file.rootfs.diff_ids;
    let hold = {
        let (inner, diff_ids) = (Arc::clone(inner), diff_ids.clone());
        blocking(reference, move || Ok(inner.flights.hold(&diff_ids))).await?
    };
    let size = manifest
        .layers
        .iter()
        .map(|layer| layer.size)
        .fold(0, u64::saturating_add);
    // The same layer twice in an image is fetched once.
    let mut wanted: Vec<(Descriptor, Digest)> = Vec::new();
    for (layer, diff_id) in manifest.layers.into_iter().zip(&diff_ids) {
        if wanted.iter().all(|(_, known)| known != diff_id) {
            wanted.push((layer, *diff_id));
        }
    }
    let count = wanted.len() as u64;
    let fresh = fetch::layers(inner, &session, wanted).await?;
    let (bytes, layers) = session.taken.so_far();
    metrics().layers_fetched.inc_by(layers);
    metrics().layers_shared.inc_by(count.saturating_sub(layers));

    let pulled = Pulled {
        reference: reference.clone(),
        target,
        id: manifest.config.digest,
        size: size
            .saturating_add(manifest.config.size)
            .saturating_add(fetched.body.len() as u64),
        manifest: fetched,
        config,
        diff_ids,
        fresh,
    };
    let inner = Arc::clone(inner);
    let id = blocking(reference, move || {
        let id = assemble::assemble(&inner, pulled);
        drop(hold);
        id
    })
    .await?;
    Ok((Pull { id, bytes, layers }, true))
}

/// The image of a tag that is here and has not moved: a HEAD is enough to know,
/// which registries don't count against a rate limit.
async fn unchanged(inner: &Inner, session: &Session) -> Result<Option<String>, Error> {
    let name = session.reference.to_string();
    let known = inner
        .store
        .read("look for a reference", |c| records::reference(c, &name))?;
    let Some((id, target)) = known else {
        return Ok(None);
    };
    // One whose config is damaged is not in the catalog, and is pulled anew.
    let present = |id: &String| inner.catalog().by_id(id).is_some();
    let same = match &session.reference.version {
        Version::Digest(digest) => digest.to_string() == target,
        Version::Tag(_) => session.head().await.is_some_and(|now| now.to_string() == target),
    };
    Ok(Some(id).filter(|id| same && present(id)))
}

/// Goes down from what the reference names to the manifest of this platform.
async fn choose(inner: &Inner, session: &Session, top: Fetched) -> Result<(Fetched, Manifest), Error> {
    let mut fetched = top;
    for _ in 0..MAX_DEPTH {
        let object = format!("manifest {} of {}", fetched.digest, session.reference);
        let index = match Document::parse(&object, &fetched.media_type, &fetched.body)? {
            Document::Manifest(manifest) => return Ok((fetched, manifest)),
            Document::Index(index) => index,
        };
        let entry = platform::choose(&inner.platform, &index).map_err(|present| Error::Platform {
            image: session.reference.to_string(),
            wanted: inner.platform.to_string(),
            present,
        })?;
        fetched = session
            .manifest(&Version::Digest(entry.digest), Some(entry.size))
            .await?;
        if fetched.body.len() as u64 != entry.size {
            return Err(Error::Manifest {
                object: format!("manifest {} of {}", entry.digest, session.reference),
                message: format!("has {} bytes, its index says {}", fetched.body.len(), entry.size),
            });
        }
        fetched.media_type.clone_from(&entry.media_type);
    }
    Err(Error::Unsupported {
        object: format!("image {}", session.reference),
        message: format!("has more than {MAX_DEPTH} indexes in one another"),
    })
}

fn check_manifest(object: &str, manifest: &Manifest) -> Result<(), Error> {
    if manifest.layers.len() > MAX_LAYERS {
        return Err(Error::Unsupported {
            object: object.to_owned(),
            message: format!(
                "has {} layers; overlayfs takes {MAX_LAYERS}",
                manifest.layers.len()
            ),
        });
    }
    match manifest.layers.iter().find(|layer| !is_layer(&layer.media_type)) {
        None => Ok(()),
        Some(layer) => Err(Error::Unsupported {
            object: object.to_owned(),
            message: format!(
                "has a layer of type {:?}, which is no file system layer (is this an image, or another artifact?)",
                layer.media_type
            ),
        }),
    }
}

/// The config blob, from the disk if it is there whole.
async fn read_config(inner: &Inner, session: &Session, config: &Descriptor) -> Result<Vec<u8>, Error> {
    match inner.blobs.read(&config.digest, config.size.min(MAX_CONFIG))? {
        Some(body) => Ok(body),
        None => session.config(config).await,
    }
}

fn check_config(
    host: &Platform,
    reference: &Reference,
    manifest: &Manifest,
    file: &ConfigFile,
) -> Result<(), Error> {
    let own = Platform {
        os: file.os.clone(),
        architecture: file.architecture.clone(),
        variant: String::new(),
    };
    if !host.runs(&own) {
        return Err(Error::Platform {
            image: reference.to_string(),
            wanted: host.to_string(),
            present: own.to_string(),
        });
    }
    let (layers, diff_ids) = (manifest.layers.len(), file.rootfs.diff_ids.len());
    if layers != diff_ids {
        return Err(Error::Manifest {
            object: format!("image {reference}"),
            message: format!("has {layers} layers, its config names {diff_ids}"),
        });
    }
    Ok(())
}
