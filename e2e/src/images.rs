//! Images made of Debian's busybox-static and pushed by the registry's HTTP API.

use std::{fs, io::Write, path::Path};

use anyhow::{Context, anyhow};
use hyper::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    Registry, Result, http,
    tar::{Entry, archive},
};

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    /// Many gzip members one after the other, as parallel compressors write them.
    GzipMembers,
    Zstd,
}

/// Which media types the manifest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Oci,
    Docker,
}

#[derive(Clone, Debug)]
struct Layer {
    tar: Vec<u8>,
    packing: Packing,
}

/// An image before it is pushed.
#[derive(Clone, Debug)]
pub struct Image {
    layers: Vec<Layer>,
    /// The part `config` of the image's configuration.
    config: Value,
    architecture: String,
    format: Format,
}

/// Where a pushed image is.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// `HOST:PORT/REPOSITORY:TAG`.
    pub tag: String,
    /// `HOST:PORT/REPOSITORY@sha256:HEX`.
    pub digest: String,
    /// Digest of the configuration: what the CRI calls the image's id.
    pub id: String,
    descriptor: Value,
}

const APPLETS: &[&str] = &[
    "sh", "cat", "chmod", "cut", "dd", "df", "echo", "env", "false", "find", "grep", "head", "hostname",
    "httpd", "id", "ip", "kill", "ln", "ls", "mkdir", "mount", "mv", "nc", "nohup", "nslookup", "od", "ping",
    "ps", "pwd", "readlink", "rm", "sed", "seq", "setsid", "sleep", "sort", "stat", "sync", "tail", "test",
    "touch", "tr", "true", "umask", "umount", "uname", "usleep", "wc", "wget", "yes",
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nweb:x:1001:1002:web:/home/web:/bin/sh\n";
const GROUP: &str =
    "root:x:0:\nwebgroup:x:1002:\nextra:x:2001:web\nmore:x:2002:web,nobody\nnogroup:x:65534:\n";

impl Image {
    /// No layers, an empty configuration, for this machine.
    pub fn empty() -> Image {
        Image {
            layers: Vec::new(),
            config: json!({}),
            architecture: architecture().into(),
            format: Format::Oci,
        }
    }

    /// busybox with its applets, users `root`, `nobody`, `web`, and groups.
    pub fn busybox() -> Image {
        let mut entries: Vec<Entry> = [
            "bin", "etc", "home", "root", "proc", "sys", "dev", "tmp", "var", "usr",
        ]
        .iter()
        .map(|path| Entry::folder(path))
        .collect();
        entries.push(Entry::folder("tmp").mode(0o1777));
        entries.push(Entry::folder("home/web").owner(1001, 1002));
        let program = fs::read("/bin/busybox").expect("busybox-static is installed");
        entries.push(Entry::file("bin/busybox", program).mode(0o755));
        entries.extend(
            APPLETS
                .iter()
                .map(|name| Entry::symlink(&format!("bin/{name}"), "busybox")),
        );
        entries.push(Entry::file("etc/passwd", PASSWD));
        entries.push(Entry::file("etc/group", GROUP));
        Image::empty()
            .layer(&entries)
            .config(json!({"Cmd": ["sh"], "Env": ["PATH=/bin", "FROM_IMAGE=yes"]}))
    }

    pub fn layer(self, entries: &[Entry]) -> Image {
        self.packed(entries, Packing::Gzip)
    }

    pub fn packed(mut self, entries: &[Entry], packing: Packing) -> Image {
        self.layers.push(Layer {
            tar: archive(entries),
            packing,
        });
        self
    }

    /// Packs every layer that is there so.
    pub fn packing(mut self, packing: Packing) -> Image {
        self.layers.iter_mut().for_each(|layer| layer.packing = packing);
        self
    }

    /// Sets the given keys of `config`: Env, Entrypoint, Cmd, User, WorkingDir, Volumes, StopSignal, Labels.
    pub fn config(mut self, keys: Value) -> Image {
        for (key, value) in keys.as_object().into_iter().flatten() {
            self.config[key] = value.clone();
        }
        self
    }

    pub fn format(self, format: Format) -> Image {
        Image { format, ..self }
    }

    pub fn architecture(self, architecture: &str) -> Image {
        Image {
            architecture: architecture.into(),
            ..self
        }
    }

    /// Pushes layers, configuration and manifest as `name`, "repository:tag".
    pub async fn push(&self, registry: &Registry, name: &str) -> Result<Pushed> {
        let (repository, tag) = name.split_once(':').context("no tag")?;
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in &self.layers {
            diff_ids.push(digest(&layer.tar));
            let bytes = pack(&layer.tar, layer.packing)?;
            let kind = layer_type(self.format, layer.packing);
            layers.push(descriptor(kind, &bytes));
            push_blob(registry, repository, bytes).await?;
        }
        let config = serde_json::to_vec(&json!({
            "architecture": self.architecture,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": diff_ids.iter().map(|_| json!({"created_by": "e2e"})).collect::<Vec<_>>(),
        }))?;
        let (manifest_type, config_type) = match self.format {
            Format::Oci => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
            ),
            Format::Docker => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
        };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": descriptor(config_type, &config),
            "layers": layers,
        }))?;
        let id = digest(&config);
        push_blob(registry, repository, config).await?;
        push_manifest(
            registry,
            repository,
            tag,
            manifest_type,
            manifest,
            id,
            &self.architecture,
        )
        .await
    }
}

/// Pushes an index of images that were pushed to the same repository.
pub async fn push_index(
    registry: &Registry,
    name: &str,
    images: &[&Pushed],
    format: Format,
) -> Result<Pushed> {
    let (repository, tag) = name.split_once(':').context("no tag")?;
    let kind = match format {
        Format::Oci => "application/vnd.oci.image.index.v1+json",
        Format::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
    };
    let manifests: Vec<_> = images.iter().map(|image| &image.descriptor).collect();
    let body = serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}))?;
    push_manifest(registry, repository, tag, kind, body, String::new(), "").await
}

async fn push_manifest(
    registry: &Registry,
    repository: &str,
    tag: &str,
    kind: &str,
    body: Vec<u8>,
    id: String,
    architecture: &str,
) -> Result<Pushed> {
    let mut described = descriptor(kind, &body);
    described["platform"] = json!({"architecture": architecture, "os": "linux"});
    let digest = digest(&body);
    let url = format!("{}/v2/{repository}/manifests/{tag}", registry.url());
    let authorization = registry.authorization();
    let headers = [("content-type", kind), ("authorization", &*authorization)];
    http::send(Method::PUT, &url, &headers, body).await?.ok()?;
    let host = registry.host();
    Ok(Pushed {
        tag: format!("{host}/{repository}:{tag}"),
        digest: format!("{host}/{repository}@{digest}"),
        id,
        descriptor: described,
    })
}

async fn push_blob(registry: &Registry, repository: &str, bytes: Vec<u8>) -> Result<()> {
    let digest = digest(&bytes);
    let authorization = registry.authorization();
    let headers = [("authorization", &*authorization)];
    let url = format!("{}/v2/{repository}/blobs/{digest}", registry.url());
    if http::send(Method::HEAD, &url, &headers, Vec::new()).await?.status == 200 {
        return Ok(());
    }
    let url = format!("{}/v2/{repository}/blobs/uploads/", registry.url());
    let answer = http::send(Method::POST, &url, &headers, Vec::new()).await?.ok()?;
    let location = answer
        .headers
        .get("location")
        .ok_or_else(|| anyhow!("no location"))?;
    let location = location.to_str()?;
    let base = if location.starts_with('/') {
        registry.url()
    } else {
        String::new()
    };
    let sign = if location.contains('?') { '&' } else { '?' };
    let url = format!("{base}{location}{sign}digest={digest}");
    let headers = [
        ("content-type", "application/octet-stream"),
        ("authorization", &*authorization),
    ];
    http::send(Method::PUT, &url, &headers, bytes).await?.ok()?;
    Ok(())
}

/// The name that OCI has for this machine's processor.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether the fixture for images is on this machine.
pub fn busybox_is_installed() -> bool {
    Path::new("/bin/busybox").exists()
}

pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
}

fn layer_type(format: Format, packing: Packing) -> &'static str {
    match (format, packing) {
        (Format::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
        (Format::Oci, Packing::Gzip | Packing::GzipMembers) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (_, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (Format::Docker, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
        (Format::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
    }
}

fn pack(tar: &[u8], packing: Packing) -> Result<Vec<u8>> {
    let gzip = |bytes: &[u8]| -> Result<Vec<u8>> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes)?;
        Ok(encoder.finish()?)
    };
    Ok(match packing {
        Packing::Plain => tar.to_vec(),
        Packing::Gzip => gzip(tar)?,
        Packing::GzipMembers => {
            let parts: Result<Vec<_>> = tar.chunks(10_000).map(gzip).collect();
            parts?.concat()
        }
        Packing::Zstd => zstd::encode_all(tar, 1)?,
    })
}
