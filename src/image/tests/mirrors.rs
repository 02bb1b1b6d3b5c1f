//! `hosts.toml`: who is asked, in which order, and who is left.

use super::*;
use crate::kind::{HasKind as _, Kind};
use serde_json::json;

#[tokio::test]
async fn mirrors_are_asked_in_order_and_fallen_through() {
    let (down, good) = (Registry::start().await, Registry::start().await);
    down.on(|_| Some(Reply::new(500, "broken")));
    let (id, digest) = good.push("a", "v1", &[file("x", b"1")], json!({}));
    let node = Node::new();
    let text = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"{}\"]\n[host.\"{}\"]\n[host.\"{0}\".header]\nx-key = \"k\"",
        down.url(),
        good.url()
    );
    node.mirror("r.example_5000_", &text);
    assert_eq!(node.pull("r.example:5000/a:v1").await.unwrap(), id);
    let log = good.log();
    assert!(
        log.iter().all(|r| r.path.ends_with("?ns=r.example%3A5000")),
        "{log:?}"
    );
    assert!(log.iter().all(|r| r.header("x-key").is_empty()));
    assert!(down.log().iter().all(|r| r.header("x-key") == "k"));
    let image = node.images.find("r.example:5000/a:v1").await.unwrap().unwrap();
    assert_eq!(image.repo_digests, [format!("r.example:5000/a@{digest}")]);
}

#[tokio::test]
async fn the_error_says_what_each_host_said() {
    let (one, two) = (Registry::start().await, Registry::start().await);
    one.on(|_| Some(Reply::new(500, "first is broken")));
    let node = Node::new();
    node.mirror(
        "_default",
        &format!("server = \"{}\"\n[host.\"{}\"]\n", two.url(), one.url()),
    );
    let error = node.pull("r.example/a:v1").await.unwrap_err();
    let message = error.to_string();
    assert_eq!(error.kind(), Kind::NotFound);
    for word in [&one.url(), &two.url(), "first is broken", "404", "r.example/a:v1"] {
        assert!(message.contains(word), "{word}: {message}");
    }
}

#[tokio::test]
async fn a_mirror_that_lies_about_a_layer_is_left_for_the_next_host() {
    let (liar, good) = (Registry::start().await, Registry::start().await);
    let layer = file("x", b"1");
    let (id, _) = good.push("a", "v1", &[layer.clone(), file("y", b"2")], json!({}));
    liar.push("a", "v1", &[layer.clone(), file("y", b"2")], json!({}));
    let mut wrong = layer.blob.clone();
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    liar.put(&format!("/v2/a/blobs/{}", layer.digest()), "", &wrong);
    let node = Node::new();
    let hosts = format!(
        "server = \"{}\"\n[host.\"{}\"]\ncapabilities = [\"pull\"]\n",
        good.url(),
        liar.url()
    );
    node.mirror("r.example", &hosts);
    assert_eq!(node.pull("r.example/a:v1").await.unwrap(), id);
    assert_eq!(node.read(&id, "x").unwrap(), b"1");
    assert_eq!(good.count("/blobs/"), 1);
    assert!(
        liar.log().iter().all(|r| !r.path.contains("manifests/v1")),
        "it may not resolve"
    );
    assert_eq!(node.layers().len(), 2);
}

#[tokio::test]
async fn a_transfer_goes_on_at_the_next_host_where_the_first_broke_for_good() {
    let (weak, good) = (Registry::start().await, Registry::start().await);
    let bytes: Vec<u8> = (0..200_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let layer = file("x", &bytes);
    let (id, _) = good.push("a", "v1", std::slice::from_ref(&layer), json!({}));
    weak.push("a", "v1", std::slice::from_ref(&layer), json!({}));
    let (blob, asked) = (layer.blob.clone(), layer.digest().to_string());
    weak.on(move |r| {
        let first = r.path.contains(&asked).then(|| r.range().is_none())?;
        let mut reply = Reply::new(200, &blob[..]);
        reply.cut = Some(100_000);
        Some(if first { reply } else { Reply::new(502, "gone") })
    });
    let node = Node::new();
    node.mirror(
        "r.example",
        &format!("server = \"{}\"\n[host.\"{}\"]\n", good.url(), weak.url()),
    );
    assert_eq!(node.pull("r.example/a:v1").await.unwrap(), id);
    let ranges: Vec<_> = good.log().iter().filter_map(|r| r.range()).collect();
    assert_eq!(ranges, [100_000]);
    assert_eq!(node.read(&id, "x").unwrap(), bytes);
}

#[tokio::test]
async fn nobody_to_ask_is_said() {
    let node = Node::new();
    node.mirror(
        "r.example",
        "server = \"http://127.0.0.1:1\"\ncapabilities = [\"push\"]\n",
    );
    let error = node.pull("r.example/a").await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    node.mirror("r.example", "server = [");
    let error = node.pull("r.example/a").await.unwrap_err();
    assert!(error.to_string().contains("r.example/hosts.toml"), "{error}");
}
