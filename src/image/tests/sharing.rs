//! Two who pull the same thing at the same time.

use super::*;
use crate::kind::{HasKind as _, Kind};
use serde_json::json;

/// Blobs come slowly, so that pulls meet.
fn slow(registry: &Registry) {
    let inner = registry.clone();
    registry.on(move |request| {
        let mut reply = inner.answer(request);
        reply.delay = Duration::from_millis(if request.path.contains("/blobs/") { 60 } else { 5 });
        Some(reply)
    });
}

#[tokio::test]
async fn pulls_of_one_reference_join() {
    let registry = Registry::start().await;
    let (id, _) = registry.push("a", "v1", &[file("x", b"1")], json!({}));
    slow(&registry);
    let node = Node::new();
    let name = registry.name("a:v1");
    let (a, b, c) = tokio::join!(node.pull(&name), node.pull(&name), node.pull(&name));
    assert_eq!((a.unwrap(), b.unwrap(), c.unwrap()), (id.clone(), id.clone(), id));
    assert_eq!(registry.count("manifests"), 1);
    assert_eq!(registry.count("blobs"), 2);

    let lost = registry.name("b:v1");
    let (a, b) = tokio::join!(node.pull(&lost), node.pull(&lost));
    let (a, b) = (a.unwrap_err(), b.unwrap_err());
    assert_eq!(a.to_string(), b.to_string());
    assert_eq!(a.kind(), Kind::NotFound);
}

#[tokio::test]
async fn images_that_share_a_layer_fetch_it_once() {
    let registry = Registry::start().await;
    let shared = file("shared", b"0");
    let (one, _) = registry.push("a", "v1", &[shared.clone(), file("x", b"1")], json!({}));
    let (two, _) = registry.push("b", "v1", &[shared.clone(), file("y", b"2")], json!({}));
    slow(&registry);
    let node = Node::new();
    let (names_a, names_b) = (registry.name("a:v1"), registry.name("b:v1"));
    let (a, b) = tokio::join!(node.pull(&names_a), node.pull(&names_b));
    assert_eq!((a.unwrap(), b.unwrap()), (one.clone(), two.clone()));
    assert_eq!(registry.count(&shared.digest().to_string()), 1);
    assert_eq!(node.layers().len(), 3);
    node.images.remove(&one).unwrap();
    assert_eq!(node.layers().len(), 2);
    assert_eq!(node.read(&two, "shared").unwrap(), b"0");
}

#[tokio::test]
async fn one_that_fails_does_not_take_the_other_with_it() {
    let registry = Registry::start().await;
    let (shared, bad) = (file("shared", b"0"), file("x", b"1"));
    registry.push("a", "v1", &[shared.clone(), bad.clone()], json!({}));
    let (two, _) = registry.push("b", "v1", std::slice::from_ref(&shared), json!({}));
    slow(&registry);
    let asked = bad.digest().to_string();
    registry.on(move |r| r.path.contains(&asked).then(|| Reply::new(404, "")));
    let node = Node::new();
    let (names_a, names_b) = (registry.name("a:v1"), registry.name("b:v1"));
    let (a, b) = tokio::join!(node.pull(&names_a), node.pull(&names_b));
    assert_eq!(a.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(b.unwrap(), two);
    assert_eq!(node.layers().len(), 1);
    assert_eq!(node.read(&two, "shared").unwrap(), b"0");
}

#[tokio::test]
async fn a_pull_outlives_its_caller() {
    let registry = Registry::start().await;
    let (id, _) = registry.push("a", "v1", &[file("x", b"1")], json!({}));
    slow(&registry);
    let node = Node::new();
    let name = registry.name("a:v1");
    let gone = tokio::time::timeout(Duration::from_millis(20), node.pull(&name)).await;
    assert!(gone.is_err());
    assert_eq!(node.pull(&name).await.unwrap(), id);
    assert_eq!(registry.count("manifests"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn removals_and_pulls_of_images_that_share_everything() {
    let registry = Registry::start().await;
    let (low, high) = (file("x", b"1"), file("y", b"2"));
    let (one, _) = registry.push("a", "v1", &[low.clone(), high.clone()], json!({}));
    let (two, _) = registry.push("b", "v1", &[low, high], json!({"User": "u"}));
    let node = Node::new();
    let (names_a, names_b) = (registry.name("a:v1"), registry.name("b:v1"));
    for _ in 0..10 {
        let remover = {
            let (images, one, two) = (Arc::clone(&node.images), one.clone(), two.clone());
            tokio::task::spawn_blocking(move || {
                images.remove(&one).unwrap();
                images.remove(&two).unwrap();
            })
        };
        let (a, b) = tokio::join!(node.pull(&names_a), node.pull(&names_b));
        a.unwrap();
        b.unwrap();
        remover.await.unwrap();
        for image in node.images.list().unwrap() {
            assert_eq!(node.read(&image.id, "x").unwrap(), b"1");
            assert_eq!(node.read(&image.id, "y").unwrap(), b"2");
        }
    }
    node.images.remove(&one).unwrap();
    node.images.remove(&two).unwrap();
    node.assert_empty();
}
