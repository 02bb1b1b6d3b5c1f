//! What is recorded, found, removed and kept.

use super::*;
use serde_json::json;

#[tokio::test]
async fn a_pull_by_tag_and_one_by_digest() {
    let registry = Registry::start().await;
    let lower = tar(&[("etc/", b""), ("etc/a", b"one"), ("b", b"two")]);
    let layers = [Layer::gzip(&lower), file("etc/a", b"three")];
    let config = json!({"User": "1003:1004", "Env": ["A=1"], "Cmd": ["sh"]});
    let (id, digest) = registry.push("a/b", "v1", &layers, config);
    let node = Node::new();
    let name = registry.name("a/b");
    assert_eq!(node.pull(&format!("{name}@{digest}")).await.unwrap(), id);
    let image = node.images.find(&id).await.unwrap().unwrap();
    assert!(image.repo_tags.is_empty());
    assert_eq!(image.repo_digests, [format!("{name}@{digest}")]);

    assert_eq!(node.pull(&format!("{name}:v1")).await.unwrap(), id);
    let image = node.images.find(&format!("{name}:v1")).await.unwrap().unwrap();
    assert_eq!(image.repo_tags, [format!("{name}:v1")]);
    assert_eq!(image.repo_digests.len(), 1);
    assert_eq!(image.user(), (Some(1003), String::new()));
    let (config, manifest) = (registry.count("blobs/sha256"), registry.count("manifests"));
    assert_eq!((config, manifest), (3, 2), "nothing is fetched twice");
    assert_eq!(node.read(&id, "etc/a").unwrap(), b"three");
    assert_eq!(node.read(&id, "b").unwrap(), b"two");
    for name in [&id[..], &id[7..], &id[7..20], &format!("{name}@{digest}")] {
        assert_eq!(
            node.images.find(name).await.unwrap().as_ref(),
            Some(&image),
            "{name}"
        );
    }
    let usage = node.images.fs_info().unwrap();
    assert!(usage.used_bytes >= 12288 && usage.inodes_used >= 7, "{usage:?}");

    let node = node.restart();
    assert_eq!(node.images.find(&id).await.unwrap(), Some(image));
    assert_eq!(node.layers(), ["1", "2"]);
    node.images.remove(&id[7..]).unwrap();
    node.images.remove(&id[7..]).unwrap();
    node.assert_empty();
}

#[tokio::test]
async fn an_unmoved_tag_costs_one_head() {
    let registry = Registry::start().await;
    let (id, _) = registry.push("a", "v1", &[file("x", b"1")], json!({}));
    let node = Node::new();
    let name = registry.name("a:v1");
    node.pull(&name).await.unwrap();
    let before = registry.log().len();
    assert_eq!(node.pull(&name).await.unwrap(), id);
    let log = registry.log();
    assert_eq!(log.len() - before, 1);
    assert_eq!(log.last().unwrap().method, "HEAD");
}

#[tokio::test]
async fn a_moved_tag_leaves_the_old_image_its_digest() {
    let registry = Registry::start().await;
    let name = registry.name("a:v1");
    let (old, digest) = registry.push("a", "v1", &[file("x", b"1")], json!({}));
    let node = Node::new();
    node.pull(&name).await.unwrap();
    let (new, _) = registry.push("a", "v1", &[file("x", b"2")], json!({}));
    assert_eq!(node.pull(&name).await.unwrap(), new);
    let old = node.images.find(&old).await.unwrap().unwrap();
    assert!(old.repo_tags.is_empty());
    assert_eq!(old.repo_digests, [registry.name(&format!("a@{digest}"))]);
    assert_eq!(node.images.find(&name).await.unwrap().unwrap().id, new);
    assert_eq!(node.images.list().unwrap().len(), 2);
}

#[tokio::test]
async fn removal_by_any_name_takes_every_name_and_five_at_once_succeed() {
    let registry = Registry::start().await;
    let node = Node::new();
    let mut id = String::new();
    for tag in ["v1", "v2", "v3"] {
        registry.push("a", tag, &[file("x", b"1")], json!({}));
        id = node.pull(&registry.name(&format!("a:{tag}"))).await.unwrap();
    }
    assert_eq!(node.images.find(&id).await.unwrap().unwrap().repo_tags.len(), 3);
    let names = [
        &id,
        &id,
        &registry.name("a:v1"),
        &registry.name("a:v2"),
        &registry.name("a:v3"),
    ];
    let work: Vec<_> = names
        .map(|name| {
            let (images, name, id) = (Arc::clone(&node.images), name.clone(), id.clone());
            tokio::task::spawn_blocking(move || {
                images.remove(&name).unwrap();
                assert_eq!(
                    tokio::runtime::Handle::current()
                        .block_on(images.find(&id))
                        .unwrap(),
                    None
                );
            })
        })
        .into_iter()
        .collect();
    for work in work {
        work.await.unwrap();
    }
    node.assert_empty();
}

#[tokio::test]
async fn layers_in_use_stay_until_they_are_released() {
    let registry = Registry::start().await;
    registry.push(
        "a",
        "v1",
        &[file("x", b"1"), file("y", b"2"), file("x", b"1")],
        json!({}),
    );
    let node = Node::new();
    let id = node.pull(&registry.name("a:v1")).await.unwrap();
    let layers = node.images.use_layers(&id, "c1").unwrap();
    assert_eq!(layers.len(), 2, "a layer that comes twice is given once");
    assert!(exists(&layers[0].join("x")) && exists(&layers[1].join("y")));
    node.images.remove(&id).unwrap();
    assert!(layers.iter().all(|layer| exists(layer)));
    let node = node.restart();
    assert!(layers.iter().all(|layer| exists(layer)));
    assert_eq!(node.images.users().unwrap(), ["c1"]);
    assert!(matches!(
        node.images.use_layers(&id, "c2"),
        Err(Error::NotFound { .. })
    ));
    node.images.release_layers("c1").unwrap();
    node.images.release_layers("c1").unwrap();
    node.assert_empty();
}

#[tokio::test]
async fn a_restart_removes_what_is_half_made_and_a_pull_heals_a_damaged_config() {
    let registry = Registry::start().await;
    registry.push("a", "v1", &[file("x", b"1")], json!({"User": "u"}));
    let node = Node::new();
    let name = registry.name("a:v1");
    let id = node.pull(&name).await.unwrap();
    let root = node.root.path();
    std::fs::create_dir_all(root.join("layers/tmp-9/deep/er")).unwrap();
    std::fs::create_dir_all(root.join("layers/7/deep")).unwrap();
    std::fs::write(root.join("blobs/sha256/00.part"), "x").unwrap();
    std::fs::write(root.join("blobs/sha256").join(&id[7..]), "damaged").unwrap();
    let node = node.restart();
    for _ in 0..100 {
        if node.layers().len() == 1 && node.names("blobs/sha256").len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(node.layers(), ["1"]);
    assert_eq!(node.names("blobs/sha256").len(), 2);
    assert!(node.images.list().unwrap().is_empty());
    assert_eq!(node.pull(&name).await.unwrap(), id);
    assert_eq!(node.images.find(&id).await.unwrap().unwrap().config.user, "u");
    assert_eq!(node.layers(), ["1"]);
}

#[tokio::test]
async fn pinned_images_are_marked() {
    let registry = Registry::start().await;
    registry.push("a", "latest", &[file("x", b"1")], json!({}));
    let mut node = Node::new();
    node.config.image.pinned = vec![registry.name("a")];
    let node = node.restart();
    let id = node.pull(&registry.name("a:latest")).await.unwrap();
    assert!(node.images.find(&id).await.unwrap().unwrap().pinned);
}

#[tokio::test]
async fn implied_folders_follow_the_layers_below() {
    let registry = Registry::start().await;
    let upper = file("d/x", b"1");
    let private = {
        let mut bytes = tar(&[("d/", b"")]);
        bytes[100..108].copy_from_slice(b"0000700\0");
        bytes[148..156].copy_from_slice(b"        ");
        let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Layer::gzip(&bytes)
    };
    let (one, _) = registry.push("a", "one", &[private, upper.clone()], json!({}));
    let (two, _) = registry.push("a", "two", std::slice::from_ref(&upper), json!({}));
    let node = Node::new();
    let mode = |id: &str| {
        use std::os::unix::fs::MetadataExt as _;
        let top = &node.images.use_layers(id, id).unwrap()[0];
        top.join("d").metadata().unwrap().mode() & 0o777
    };
    node.pull(&registry.name("a:one")).await.unwrap();
    node.pull(&registry.name("a:two")).await.unwrap();
    assert_eq!((mode(&one), mode(&two)), (0o700, 0o755));
    assert_eq!(
        registry.count(&upper.digest().to_string()),
        1,
        "one fetch, two variants"
    );
}
