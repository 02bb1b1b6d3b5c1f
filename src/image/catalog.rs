//! The images in memory: a snapshot of the records with the parsed configs,
//! replaced whole after each change.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{
    content::Blobs,
    digest::{Digest, chain_ids},
    error::Error,
    manifest::{ConfigFile, ImageConfig, MAX_CONFIG},
    reference::Reference,
};
use crate::store::{Store, images as records};

/// Fewest digits of an id that find it.
const SHORTEST_PREFIX: usize = 8;

/// One image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Digest of the config: `sha256:...`.
    pub id: String,
    /// Full names: `docker.io/library/busybox:1.36`. Sorted.
    pub repo_tags: Vec<String>,
    /// `docker.io/library/busybox@sha256:...`. Sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of the compressed layers, the config and the manifest together, as
    /// containerd counts.
    pub size: u64,
    /// Not to be removed for space: named in `image.pinned`.
    pub pinned: bool,
    pub config: ImageConfig,
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<Digest>,
}

impl Image {
    /// What its layers are together; `None` for an image without layers.
    pub fn chain_id(&self) -> Option<Digest> {
        chain_ids(&self.diff_ids).pop()
    }

    /// Its name by digest, in the repository that `name` is of, for the same image may
    /// have come from several; the first otherwise, and its id when it has none.
    pub fn digest_name(&self, name: &str) -> &str {
        let wanted = Reference::parse(name).map(|r| r.to_string()).unwrap_or_default();
        let mut known = self.repo_digests.iter();
        let same = known.find(|known| repository(known) == repository(&wanted));
        same.or(self.repo_digests.first()).unwrap_or(&self.id)
    }

    /// The user that its processes have: a number, or a name; neither when the
    /// config says nothing. A group behind a colon is left out.
    pub fn user(&self) -> (Option<i64>, String) {
        let user = self.config.user.split(':').next().unwrap_or_default();
        match user.parse::<i64>() {
            Ok(uid) => (Some(uid), String::new()),
            Err(_) => (None, user.to_owned()),
        }
    }
}

/// All images at one moment.
#[derive(Debug, Default)]
pub struct Catalog {
    /// By id.
    pub images: Vec<Arc<Image>>,
    names: HashMap<String, Arc<Image>>,
    /// Those that are not said to be there: a layer is broken, or was not looked at since
    /// an unclean stop of the machine.
    hidden: Option<Box<Catalog>>,
}

impl Catalog {
    /// Reads the records. Configs that `old` has parsed are taken from there. An
    /// image whose config is damaged is left out and said so: a pull heals it. `open`:
    /// layers that nobody has looked at.
    pub fn load(
        store: &Store,
        blobs: &Blobs,
        pinned: &[String],
        open: &BTreeSet<u64>,
        old: &Catalog,
    ) -> Result<Catalog, Error> {
        let unsure = unsure(store, open)?;
        let mut catalog = Catalog::default();
        let mut hidden = Catalog::default();
        for row in store.read("list images", records::images)? {
            let known = old
                .by_id(&row.id)
                .or_else(|| old.hidden.as_ref().and_then(|hidden| hidden.by_id(&row.id)));
            let (config, diff_ids) = match known {
                Some(image) => (image.config.clone(), image.diff_ids.clone()),
                None => match read_config(blobs, &row.id)? {
                    Some(file) => (file.config, file.rootfs.diff_ids),
                    None => {
                        tracing::error!(
                            image = row.id,
                            "the config of this image is damaged; pull it again"
                        );
                        continue;
                    }
                },
            };
            let (repo_digests, repo_tags): (Vec<_>, Vec<_>) =
                row.names.into_iter().partition(|n| n.contains('@'));
            let named =
                |name: &String| repo_tags.contains(name) || repo_digests.contains(name) || *name == row.id;
            let image = Arc::new(Image {
                pinned: pinned.iter().any(named),
                id: row.id,
                repo_tags,
                repo_digests,
                size: row.size,
                config,
                diff_ids,
            });
            let of = match unsure.contains(&image.id) {
                true => &mut hidden,
                false => &mut catalog,
            };
            for name in image.repo_tags.iter().chain(&image.repo_digests) {
                of.names.insert(name.clone(), Arc::clone(&image));
            }
            of.images.push(image);
        }
        catalog.hidden = (!hidden.images.is_empty()).then(|| Box::new(hidden));
        Ok(catalog)
    }

    /// As [`Catalog::find`], among those that are not said to be there.
    pub fn find_hidden(&self, name: &str) -> Result<Option<Arc<Image>>, Error> {
        self.hidden.as_ref().map_or(Ok(None), |hidden| hidden.find(name))
    }

    pub fn by_id(&self, id: &str) -> Option<&Arc<Image>> {
        let at = self
            .images
            .binary_search_by(|image| image.id.as_str().cmp(id))
            .ok()?;
        self.images.get(at)
    }

    /// By id (with or without `sha256:`), name (short ones too), or the
    /// beginning of an id that is no name.
    pub fn find(&self, name: &str) -> Result<Option<Arc<Image>>, Error> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.len() == 64
            && let Some(image) = self.by_id(&format!("sha256:{hex}"))
        {
            return Ok(Some(Arc::clone(image)));
        }
        if let Ok(reference) = Reference::parse(name)
            && let Some(image) = self.names.get(&reference.to_string())
        {
            return Ok(Some(Arc::clone(image)));
        }
        let digits = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if hex.len() < SHORTEST_PREFIX || !hex.bytes().all(digits) {
            return Ok(None);
        }
        let prefix = format!("sha256:{hex}");
        let mut found = self.images.iter().filter(|image| image.id.starts_with(&prefix));
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(Error::Ambiguous {
                name: name.to_owned(),
            }),
            (found, _) => Ok(found.cloned()),
        }
    }
}

/// Ids of the images that cannot be said to be whole.
fn unsure(store: &Store, open: &BTreeSet<u64>) -> Result<HashSet<String>, Error> {
    let mut unsure: HashSet<String> = store
        .read("look for broken images", records::broken_images)?
        .into_iter()
        .collect();
    if !open.is_empty() {
        let all = store.read("list layers of images", records::stands_on)?;
        let of_open = all.into_iter().filter(|(_, layer)| open.contains(layer));
        unsure.extend(of_open.map(|(image, _)| image));
    }
    Ok(unsure)
}

/// "host/path" of "host/path:tag" or "host/path@digest".
fn repository(name: &str) -> &str {
    if let Some((repository, _)) = name.split_once('@') {
        return repository;
    }
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

fn read_config(blobs: &Blobs, id: &str) -> Result<Option<ConfigFile>, Error> {
    let Ok(digest) = id.parse::<Digest>() else {
        return Ok(None);
    };
    let body = blobs.read(&digest, MAX_CONFIG)?;
    Ok(body.and_then(|body| ConfigFile::parse(id, &body).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, tags: &[&str], user: &str) -> Arc<Image> {
        Arc::new(Image {
            id: format!("sha256:{id}"),
            repo_tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            repo_digests: vec![],
            size: 0,
            pinned: false,
            config: ImageConfig {
                user: user.into(),
                ..ImageConfig::default()
            },
            diff_ids: vec![],
        })
    }

    #[test]
    fn users_are_read_as_containerd_reads_them() {
        for (user, expected) in [
            ("", (None, "")),
            ("0", (Some(0), "")),
            ("1003:1004", (Some(1003), "")),
            ("www-data:1004", (None, "www-data")),
            ("www-data", (None, "www-data")),
            ("4294967296", (Some(1 << 32), "")),
        ] {
            let (uid, name) = image("0", &[], user).user();
            assert_eq!((uid, name.as_str()), expected, "{user}");
        }
    }

    #[test]
    fn the_digest_is_of_the_repository_that_was_named() {
        let mut image = (*image("0", &["r.io:5/a:1", "r.io:5/b:1"], "")).clone();
        assert_eq!(image.digest_name("r.io:5/b:1"), "sha256:0");
        let digest = format!("sha256:{}", "d".repeat(64));
        image.repo_digests = vec![format!("r.io:5/a@{digest}"), format!("r.io:5/b@{digest}")];
        for name in ["r.io:5/b:1", "r.io:5/b", &format!("r.io:5/b@{digest}")] {
            assert_eq!(image.digest_name(name), format!("r.io:5/b@{digest}"), "{name}");
        }
        for name in ["r.io:5/c:1", "sha256:0", ""] {
            assert_eq!(image.digest_name(name), format!("r.io:5/a@{digest}"), "{name}");
        }
    }

    #[test]
    fn every_name_finds_its_image() {
        let first = "a".repeat(64);
        let second = format!("{}b", "a".repeat(63));
        let mut catalog = Catalog {
            images: vec![
                image(&first, &["docker.io/library/x:latest"], ""),
                image(&second, &["docker.io/library/aaaaaaaa:latest"], ""),
            ],
            ..Catalog::default()
        };
        for image in &catalog.images {
            catalog
                .names
                .insert(image.repo_tags[0].clone(), Arc::clone(image));
        }
        let found = |name: &str| {
            catalog
                .find(name)
                .map(|found| found.map(|i| i.id[7..].to_owned()))
        };
        for (name, id) in [
            (first.as_str(), Some(&first)),
            (&format!("sha256:{second}"), Some(&second)),
            ("x", Some(&first)),
            ("docker.io/x:latest", Some(&first)),
            // A name goes before the beginning of an id.
            ("aaaaaaaa", Some(&second)),
            ("y", None),
            ("aaa", None),
            ("No:Such Thing", None),
            ("", None),
        ] {
            assert_eq!(found(name).unwrap().as_ref(), id, "{name}");
        }
        assert!(matches!(found("aaaaaaaaa"), Err(Error::Ambiguous { .. })));
    }
}
