//! Manifests, indexes and configs as registries send them: typed, bounded, and
//! trusted no more than their digest says.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::{digest::Digest, error::Error, platform::Platform};

/// Largest manifest or index that is read, in bytes (as Docker's and containerd's).
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Largest image config that is read, in bytes.
pub const MAX_CONFIG: u64 = 4 << 20;
/// Most layers of an image: overlayfs mounts at most 500.
pub const MAX_LAYERS: usize = 500;

/// The `Accept` of a manifest request: what [`Document::parse`] understands.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// A pointer to content: what it is, its digest and its size.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    #[serde(rename = "mediaType", default, deserialize_with = "nullable")]
    pub media_type: String,
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Of a manifest in an index.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Places outside the registry. They are not followed: an image's author
    /// would choose what a node connects to. The registry itself is asked.
    #[serde(default, deserialize_with = "nullable")]
    pub urls: Vec<String>,
}

/// An image of one platform.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    pub config: Descriptor,
    /// Bottom first.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
}

/// What a manifest request can bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

impl Document {
    /// Reads an index or manifest; `media_type` is what the server or the index
    /// called it. `object` names it in errors.
    pub fn parse(object: &str, media_type: &str, body: &[u8]) -> Result<Document, Error> {
        #[derive(Deserialize)]
        struct Shape {
            #[serde(rename = "mediaType", default, deserialize_with = "nullable")]
            media_type: String,
            #[serde(rename = "schemaVersion", default)]
            schema: i64,
            #[serde(default)]
            manifests: Option<Vec<Descriptor>>,
            #[serde(default)]
            config: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            layers: Option<serde::de::IgnoredAny>,
        }
        let damaged = |e: serde_json::Error| Error::Manifest {
            object: object.to_owned(),
            message: format!("is not a manifest: {e}"),
        };
        let shape: Shape = serde_json::from_slice(body).map_err(damaged)?;
        // The body's own word goes before the header's, which servers get wrong.
        let kind = if shape.media_type.is_empty() {
            media_type.split(';').next().unwrap_or_default().trim()
        } else {
            shape.media_type.as_str()
        };
        if shape.schema == 1 || kind.contains("docker.distribution.manifest.v1") {
            return Err(Error::SchemaOne {
                object: object.to_owned(),
            });
        }
        // One document must not be read as an index by one and as a manifest by
        // another (CVE-2021-41190).
        let has_manifest = shape.config.is_some() || shape.layers.is_some();
        match shape.manifests {
            Some(_) if has_manifest => Err(Error::Manifest {
                object: object.to_owned(),
                message:
                    "has both \"manifests\" and \"layers\" or \"config\": it is neither index nor manifest"
                        .into(),
            }),
            Some(_) if is_manifest(kind) => Err(Error::Manifest {
                object: object.to_owned(),
                message: format!("says that it is {kind}, but has \"manifests\""),
            }),
            None if is_index(kind) => Err(Error::Manifest {
                object: object.to_owned(),
                message: format!("says that it is {kind}, but has no \"manifests\""),
            }),
            Some(manifests) => Ok(Document::Index(manifests)),
            None => serde_json::from_slice(body)
                .map(Document::Manifest)
                .map_err(damaged),
        }
    }
}

fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

fn is_manifest(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json"
    )
}

/// Whether a media type is a file system layer's, foreign (nondistributable)
/// ones included; how it is compressed is read from its first bytes.
pub fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
        || media_type.is_empty()
}

/// An image config: the part that starts containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    /// `USER[:GROUP]`, names or numbers; empty: root.
    #[serde(rename = "User", default, deserialize_with = "nullable")]
    pub user: String,
    /// `NAME=VALUE`.
    #[serde(rename = "Env", default, deserialize_with = "nullable")]
    pub env: Vec<String>,
    #[serde(rename = "Entrypoint", default, deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    #[serde(rename = "Cmd", default, deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    #[serde(rename = "WorkingDir", default, deserialize_with = "nullable")]
    pub working_dir: String,
    /// Paths in the container, sorted.
    #[serde(rename = "Volumes", default, deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// A name or number; empty: SIGTERM.
    #[serde(rename = "StopSignal", default, deserialize_with = "nullable")]
    pub stop_signal: String,
    #[serde(rename = "Labels", default, deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
}

/// The whole config blob of an image.
#[derive(Clone, Debug, Deserialize)]
pub struct ConfigFile {
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    #[serde(default, deserialize_with = "nullable")]
    pub config: ImageConfig,
    pub rootfs: RootFs,
}

/// The layers as an image config names them.
#[derive(Clone, Debug, Deserialize)]
pub struct RootFs {
    /// Digests of the uncompressed layers, bottom first.
    #[serde(default, deserialize_with = "nullable")]
    pub diff_ids: Vec<Digest>,
}

impl ConfigFile {
    /// Reads a config blob, whose digest the caller has verified.
    pub fn parse(object: &str, body: &[u8]) -> Result<ConfigFile, Error> {
        serde_json::from_slice(body).map_err(|e| Error::Manifest {
            object: object.to_owned(),
            message: format!("is not an image config (is this an image, or another artifact?): {e}"),
        })
    }
}

/// `null` where Go writes it for an empty value.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The keys of a map of empty objects.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let map = Option::<BTreeMap<String, serde::de::IgnoredAny>>::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn null_is_empty() {
        let hex = Digest::of(b"").to_string();
        let text = format!(
            r#"{{"os":"linux","architecture":"amd64","config":{{"User":null,"Env":null,"Cmd":["sh"],
               "Volumes":{{"/b":{{}},"/a":{{}}}},"Labels":null,"ExposedPorts":{{}}}},
               "rootfs":{{"type":"layers","diff_ids":["{hex}"]}},"history":[]}}"#
        );
        let file = ConfigFile::parse("x", text.as_bytes()).unwrap();
        assert_eq!(file.config.volumes, ["/a", "/b"]);
        assert_eq!(file.config.cmd, ["sh"]);
        assert!(file.config.env.is_empty());
        assert_eq!(file.rootfs.diff_ids.len(), 1);
    }

    #[test]
    fn schema_one_and_ambiguous_documents_are_refused() {
        let parse = |body: &str| Document::parse("x", "", body.as_bytes());
        assert!(matches!(
            parse(r#"{"schemaVersion":1,"fsLayers":[]}"#),
            Err(Error::SchemaOne { .. })
        ));
        assert!(matches!(
            parse(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#),
            Err(Error::Manifest { .. })
        ));
        assert!(matches!(
            parse(
                r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#
            ),
            Err(Error::Manifest { .. })
        ));
        assert_eq!(
            parse(r#"{"schemaVersion":2,"manifests":[]}"#).unwrap(),
            Document::Index(vec![])
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Document::parse("x", "", &body);
            let _ = ConfigFile::parse("x", &body);
        }
    }
}
