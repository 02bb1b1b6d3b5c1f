//! Registries that are down, slow, truncating or lying: the right kind of
//! error, names of host, step and object in it, and nothing left behind.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::kind::{HasKind as _, Kind};
use serde_json::json;

/// A layer of some 3 MiB that does not compress.
fn large() -> Layer {
    let mut state = 1u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(400_000)
    .flatten()
    .collect();
    file("large", &bytes)
}

/// Pulls, expects an error of this kind with these words, and an empty node.
async fn refused(node: &Node, registry: &Registry, kind: Kind, words: &[&str]) {
    let error = node.pull(&registry.name("a:v1")).await.unwrap_err();
    let message = error.to_string();
    assert_eq!(error.kind(), kind, "{message}");
    for word in words {
        assert!(message.contains(word), "{word}: {message}");
    }
    node.assert_empty();
}

#[tokio::test]
async fn broken_transfers_are_resumed_where_they_broke() {
    let registry = Registry::start().await;
    let layer = large();
    let (id, _) = registry.push("a", "v1", &[layer.clone(), file("x", b"1")], json!({}));
    let (blob, tries) = (layer.blob.clone(), AtomicUsize::new(0));
    let path = format!("blobs/{}", layer.digest());
    let asked = path.clone();
    registry.on(move |request| {
        if !request.path.contains(&asked) {
            return None;
        }
        let start = request.range().unwrap_or(0);
        let rest = &blob[start..];
        let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
        let status = if start > 0 { 206 } else { 200 };
        let mut reply = Reply::new(status, rest).with("content-range", range);
        match tries.fetch_add(1, Ordering::Relaxed) {
            // A broken connection, a short body without error, a stall, a 503.
            0 => reply.cut = Some(1_000_000),
            1 => {
                reply.length = Some(None);
                reply.cut = Some(10_000);
            }
            2 => reply.hang = Some(100_000),
            3 => return Some(Reply::new(503, "busy").with("retry-after", "0")),
            _ => {}
        }
        Some(reply)
    });
    let node = Node::new();
    assert_eq!(node.pull(&registry.name("a:v1")).await.unwrap(), id);
    assert_eq!(node.read(&id, "large").unwrap().len(), 3_200_000);
    let starts: Vec<_> = registry
        .log()
        .iter()
        .filter(|request| request.path.contains(&path))
        .map(|request| request.range().unwrap_or(0))
        .collect();
    assert_eq!(starts, [0, 1_000_000, 1_010_000, 1_110_000, 1_110_000]);
}

#[tokio::test]
async fn a_server_without_ranges_sends_the_beginning_again() {
    let registry = Registry::start().await;
    registry.without_ranges();
    let layer = large();
    let (id, _) = registry.push("a", "v1", std::slice::from_ref(&layer), json!({}));
    let (blob, tries) = (layer.blob.clone(), AtomicUsize::new(0));
    registry.on(move |request| {
        let first = request.path.contains(&Layer::digest(&layer).to_string())
            && tries.fetch_add(1, Ordering::Relaxed) == 0;
        first.then(|| {
            let mut reply = Reply::new(200, &blob[..]);
            reply.cut = Some(2_000_000);
            reply
        })
    });
    let node = Node::new();
    assert_eq!(node.pull(&registry.name("a:v1")).await.unwrap(), id);
    assert_eq!(node.read(&id, "large").unwrap().len(), 3_200_000);
}

/// What a registry does to blobs, and how the pull fails for it.
#[tokio::test]
async fn faults_of_blobs() {
    let layer = large();
    let whole = layer.blob.clone();
    let mut flipped = whole.clone();
    flipped[1_500_000] ^= 1;
    let other = file("large", b"another").blob;
    let cut = |at: usize| {
        let mut reply = Reply::new(200, &whole[..]);
        reply.cut = Some(at);
        reply
    };
    let mut stalls = Reply::new(200, &whole[..]);
    stalls.hang = Some(5);
    let mut endless = Reply::new(200, [&whole[..], &vec![0; 9 << 20]].concat());
    endless.length = Some(None);
    let mut short = Reply::new(200, &whole[..9]);
    short.length = Some(None);
    let cases: Vec<(Reply, Kind, &[&str])> = vec![
        (cut(0), Kind::Unavailable, &["broke"]),
        (stalls, Kind::Unavailable, &["stalled", "byte 5 of"]),
        (short, Kind::DataLoss, &["ended early"]),
        (endless, Kind::DataLoss, &["more than"]),
        (Reply::new(200, flipped), Kind::DataLoss, &["digest sha256:"]),
        (Reply::new(200, other), Kind::DataLoss, &["ended early"]),
        (Reply::new(500, "oops"), Kind::Unavailable, &["500", "oops"]),
        (
            Reply::new(429, "slow down").with("retry-after", "3600"),
            Kind::Unavailable,
            &["429", "slow down"],
        ),
        (Reply::new(404, ""), Kind::NotFound, &["404"]),
        (Reply::new(403, "<html>"), Kind::PermissionDenied, &["403"]),
        (Reply::new(307, ""), Kind::Unavailable, &["307"]),
        (
            Reply::new(206, "x").with("content-range", "bytes 5-6/9"),
            Kind::DataLoss,
            &["range"],
        ),
    ];
    for (reply, kind, words) in cases {
        let registry = Registry::start().await;
        registry.push("a", "v1", &[file("x", b"1"), layer.clone()], json!({}));
        let asked = layer.digest().to_string();
        registry.on(move |request| {
            // Every connection does the same, from where it is asked for.
            let mut reply = request.path.contains(&asked).then(|| reply.clone())?;
            if reply.status == 200
                && let Some(start) = request.range()
            {
                reply.status = 206;
                let range = format!("bytes {start}-9999999/9999999");
                reply = reply.with("content-range", range);
                reply.body = reply.body.split_off(start.min(reply.body.len()));
                reply.hang = reply.hang.map(|_| 0);
                reply.cut = reply.cut.map(|_| 0);
            }
            Some(reply)
        });
        let node = Node::new();
        let digest = layer.digest().to_string();
        let words: Vec<&str> = words
            .iter()
            .copied()
            .chain(["fetch layer", &digest, "http://127.0.0.1"])
            .collect();
        refused(&node, &registry, kind, &words).await;
    }
}

fn good(registry: &Registry) -> (String, crate::image::digest::Digest) {
    registry.push("a", "v1", &[file("x", b"1")], json!({}))
}

#[tokio::test]
async fn faults_of_manifests_and_configs() {
    let manifest = |body: serde_json::Value| {
        move |registry: &Registry| {
            registry.put_manifest("a", "v1", &serde_json::to_vec(&body).unwrap());
        }
    };
    type Case = (Box<dyn Fn(&Registry)>, Kind, &'static [&'static str]);
    let rule = |part: &'static str, reply: Reply| -> Box<dyn Fn(&Registry)> {
        Box::new(move |registry| {
            good(registry);
            let reply = reply.clone();
            registry.on(move |request| request.path.contains(part).then(|| reply.clone()));
        })
    };
    let mut hangs = Reply::new(200, "{}");
    hangs.hang = Some(0);
    let zero = format!("sha256:{}", "0".repeat(64));
    let cases: Vec<Case> = vec![
        (
            Box::new(|_| {}),
            Kind::NotFound,
            &["resolve", "404", "not here", "check the name"],
        ),
        (
            rule("manifests", Reply::new(200, "{")),
            Kind::DataLoss,
            &["is not a manifest"],
        ),
        (
            rule("manifests", Reply::new(200, vec![b' '; 5 << 20])),
            Kind::DataLoss,
            &["larger than"],
        ),
        (
            rule(
                "manifests",
                Reply::new(200, "{}").with("docker-content-digest", zero),
            ),
            Kind::DataLoss,
            &["its header says"],
        ),
        (rule("manifests", hangs), Kind::Unavailable, &["stalled"]),
        (
            rule("manifests", Reply::new(401, "")),
            Kind::Unauthenticated,
            &["401"],
        ),
        (
            rule("/blobs/", Reply::new(200, "{}")),
            Kind::DataLoss,
            &["config"],
        ),
        (
            Box::new(manifest(json!({"schemaVersion": 1, "fsLayers": []}))),
            Kind::Unimplemented,
            &["schema 1"],
        ),
        (
            Box::new(|registry| {
                let (_, digest) = good(registry);
                let body = json!({"schemaVersion": 2, "manifests": [
                    {"digest": digest.to_string(), "size": 1, "platform": {"os": "linux", "architecture": "s390x"}},
                    {"digest": digest.to_string(), "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}}]});
                registry.put_manifest("a", "v1", &serde_json::to_vec(&body).unwrap());
            }),
            Kind::NotFound,
            &["it has: linux/s390x"],
        ),
        (
            Box::new(|registry| {
                let mut wrong = file("x", b"1");
                wrong.diff_id = crate::image::digest::Digest::of(b"?");
                registry.push("a", "v1", &[wrong], json!({}));
            }),
            Kind::DataLoss,
            &["unpacks to diff id"],
        ),
        (
            Box::new(|registry| {
                let tar = tar(&[("x", b"1")]);
                let mut layer = Layer::gzip(&tar);
                layer.blob.truncate(layer.blob.len() - 6);
                registry.push("a", "v1", &[layer], json!({}));
            }),
            Kind::DataLoss,
            &["cannot be decompressed"],
        ),
    ];
    for (prepare, kind, words) in cases {
        let registry = Registry::start().await;
        prepare(&registry);
        refused(&Node::new(), &registry, kind, words).await;
    }
}

#[tokio::test]
async fn a_registry_that_is_down() {
    let registry = Registry::start().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let node = Node::new();
    let error = node.pull(&format!("{free}/a:v1")).await.unwrap_err();
    let message = error.to_string();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(
        message.contains(&free.to_string()) && message.contains("refused"),
        "{message}"
    );
    drop(registry);
    // Not HTTP at all, and TLS neither.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-OpenSSH\r\n").await;
        }
    });
    let error = node.pull(&format!("{addr}/a:v1")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    node.assert_empty();
}

#[tokio::test]
async fn malformed_references_are_the_callers_fault() {
    let node = Node::new();
    for name in ["", "A", "a:b:c", "a@sha256:1"] {
        let error = node.pull(name).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    }
}

#[tokio::test]
async fn index_with_foreign_entries_first_and_all_compressions() {
    let registry = Registry::start().await;
    let tars = [
        tar(&[("a", b"1")]),
        tar(&[("b", b"2")]),
        tar(&[("c", b"3")]),
        tar(&[("d", b"4")]),
    ];
    let diff_id = |n: usize| crate::image::digest::Digest::of(&tars[n]);
    let (half, rest) = tars[1].split_at(700);
    let blobs = [
        tars[0].clone(),
        [gzip(half), gzip(rest), vec![0; 100]].concat(),
        zstd::encode_all(&tars[2][..], 3).unwrap(),
        gzip(&tars[3]),
    ];
    let layers: Vec<Layer> = blobs
        .into_iter()
        .enumerate()
        .map(|(n, blob)| Layer {
            blob,
            diff_id: diff_id(n),
        })
        .collect();
    let (id, digest) = registry.push("a", "amd", &layers, json!({}));
    let arch = crate::image::platform::Platform::host().architecture;
    let size = registry.size(&format!("/v2/a/manifests/{digest}"));
    let body = json!({"schemaVersion": 2, "manifests": [
        {"digest": format!("sha256:{}", "1".repeat(64)), "size": 7, "platform": {"os": "linux", "architecture": "s390x"}},
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": size,
         "platform": {"os": "linux", "architecture": arch}}]});
    let top = registry.put_manifest("a", "v1", &serde_json::to_vec(&body).unwrap());
    let node = Node::new();
    assert_eq!(node.pull(&registry.name("a:v1")).await.unwrap(), id);
    for (name, content) in [("a", b"1"), ("b", b"2"), ("c", b"3"), ("d", b"4")] {
        assert_eq!(node.read(&id, name).unwrap(), content);
    }
    let image = node.images.find(&id).await.unwrap().unwrap();
    assert_eq!(image.repo_digests, [registry.name(&format!("a@{top}"))]);
}
