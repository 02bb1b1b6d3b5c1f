//! After an unclean stop of the machine: what the disk lost is noticed, and fetched again.

use super::*;
use serde_json::json;

/// Looks at everything; returns when that is done.
async fn check(node: &Node) {
    let (sender, done) = tokio::sync::oneshot::channel();
    node.images
        .check(move || {
            let _ = sender.send(());
        })
        .unwrap();
    done.await.unwrap();
}

fn harm(node: &Node, layer: &str, file: &str) {
    let path = node.root.path().join("layers").join(layer).join(file);
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    file.set_modified(time).unwrap();
}

#[tokio::test]
async fn one_bad_layer_of_three_is_fetched_again() {
    let registry = Registry::start().await;
    let layers = [file("a", b"one"), file("b", b"two"), file("c", b"three")];
    let (id, _) = registry.push("x", "v1", &layers, json!({}));
    let (other, _) = registry.push("y", "v1", &layers[..2], json!({"User": "7"}));
    let (sound, _) = registry.push("z", "v1", &layers[..1], json!({"User": "8"}));
    let node = Node::new();
    let name = |repository: &str| registry.name(&format!("{repository}:v1"));
    for repository in ["x", "y", "z"] {
        node.pull(&name(repository)).await.unwrap();
    }
    // All is well: nothing is fetched.
    let node = node.restart();
    check(&node).await;
    assert_eq!(node.images.list().unwrap().len(), 3);
    assert!(node.images.is_checked());

    harm(&node, "2", "b");
    let node = node.restart();
    check(&node).await;
    let listed: Vec<_> = node.images.list().unwrap().iter().map(|i| i.id.clone()).collect();
    assert_eq!(
        listed,
        std::slice::from_ref(&sound),
        "only what is whole is listed"
    );
    for asked in [&id, &other, &name("x")] {
        assert_eq!(node.images.find(asked).await.unwrap(), None);
    }
    // A berthd that starts now still knows.
    let node = node.restart();
    assert_eq!(node.images.find(&id).await.unwrap(), None);

    let before = registry.count("blobs/sha256");
    assert_eq!(node.pull(&name("x")).await.unwrap(), id);
    assert_eq!(registry.count("blobs/sha256") - before, 1, "the bad layer alone");
    assert_eq!(node.read(&id, "b").unwrap(), b"two");
    assert_eq!(node.read(&id, "c").unwrap(), b"three");
    // The other image that stood on it takes the new one.
    assert_eq!(node.images.find(&other).await.unwrap(), None);
    assert_eq!(node.pull(&name("y")).await.unwrap(), other);
    assert_eq!(registry.count("blobs/sha256") - before, 1);
    assert_eq!(node.read(&other, "b").unwrap(), b"two");
    assert_eq!(node.layers(), ["1", "3", "4"], "the bad one has left the disk");
    for image in [id, other, sound] {
        node.images.remove(&image).unwrap();
    }
    node.assert_empty();
}

#[tokio::test]
async fn who_asks_first_has_it_looked_at_first() {
    let registry = Registry::start().await;
    let (good, _) = registry.push("good", "v1", &[file("a", b"one")], json!({}));
    let (bad, _) = registry.push("bad", "v1", &[file("b", b"two")], json!({}));
    let node = Node::new();
    for name in ["good:v1", "bad:v1"] {
        node.pull(&registry.name(name)).await.unwrap();
    }
    harm(&node, "2", "b");
    let node = node.restart();
    // Nobody has looked at anything, and nobody does so by himself.
    node.images.inner.open_all(&[1, 2]).unwrap();
    assert!(node.images.list().unwrap().is_empty());
    assert!(!node.images.is_checked());
    assert_eq!(node.images.find(&good).await.unwrap().unwrap().id, good);
    assert_eq!(node.images.find(&bad[..20]).await.unwrap(), None);
    assert!(node.images.is_checked());
    // A pull does not trust one either.
    node.images.inner.open_all(&[1]).unwrap();
    harm(&node, "1", "a");
    let before = registry.count("blobs/sha256");
    node.pull(&registry.name("good:v1")).await.unwrap();
    assert_eq!(registry.count("blobs/sha256") - before, 1);
    assert_eq!(node.read(&good, "a").unwrap(), b"one");
}

#[tokio::test]
async fn broken_images_can_be_removed_and_are_not_kept_for_ever() {
    let registry = Registry::start().await;
    let layers = [file("a", b"one"), file("b", b"two")];
    registry.push("x", "v1", &layers, json!({}));
    let name = registry.name("x:v1");
    let node = Node::new();
    for by_hand in [true, false] {
        node.pull(&name).await.unwrap();
        let layers = node.layers();
        std::fs::remove_dir_all(node.root.path().join("layers").join(&layers[1])).unwrap();
        check(&node).await;
        assert!(node.images.list().unwrap().is_empty());
        assert_eq!(node.layers(), layers[..1], "the whole one is kept for a pull");
        match by_hand {
            true => node.images.remove(&name).unwrap(),
            false => node.images.inner.forget_broken().unwrap(),
        }
        node.assert_empty();
    }
}

#[tokio::test]
async fn a_layer_without_a_seal_gets_one() {
    let registry = Registry::start().await;
    let (id, _) = registry.push("x", "v1", &[file("a", b"one")], json!({}));
    let node = Node::new();
    node.pull(&registry.name("x:v1")).await.unwrap();
    let strip = |t: &crate::store::Transaction<'_>| t.execute("UPDATE layers SET seal = x''", []).map(drop);
    node.images.inner.store.write("strip", strip).unwrap();
    check(&node).await;
    assert_eq!(node.images.find(&id).await.unwrap().unwrap().id, id);
    harm(&node, "1", "a");
    check(&node).await;
    assert_eq!(node.images.find(&id).await.unwrap(), None);
    node.pull(&registry.name("x:v1")).await.unwrap();
    assert_eq!(node.read(&id, "a").unwrap(), b"one");
}
