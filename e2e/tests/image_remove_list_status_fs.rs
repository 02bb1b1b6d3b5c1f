//! What is told of images, and how they go.

use std::process::Command;

use e2e::{Image, Node, Result, Story, client::spec, cri, http, kernel, tar::Entry};
use hyper::Method;
use serde_json::json;

#[tokio::test]
async fn status_tells_what_the_image_is() -> Result {
    let mut story = Story::begin().await?;
    let numeric = Image::busybox().config(json!({"User": "1003:1004"}));
    let numeric = story.image(numeric, "numeric:1").await?;
    let named = Image::busybox().config(json!({"User": "web:1004"}));
    let named = story.image(named, "named:1").await?;
    let client = &story.client;

    let found = client.image(&numeric.tag).await?.expect("there");
    assert_eq!(found.id, numeric.id);
    assert_eq!(found.uid.map(|uid| uid.value), Some(1003));
    assert_eq!(found.username, "");
    assert!(found.size > 100_000, "{}", found.size);
    let found = client.image(&named.tag).await?.expect("there");
    assert_eq!((found.uid, &*found.username), (None, "web"));

    // By id, by its start, by tag and by digest it is the same image.
    let hex = numeric.id.trim_start_matches("sha256:");
    let by_id = client.image(&numeric.id).await?;
    for name in [hex, &numeric.tag, &numeric.digest] {
        assert_eq!(client.image(name).await?, by_id, "{name}");
    }
    assert_eq!(client.image("127.0.0.1:1/none:1").await?, None);
    let request = cri::ImageStatusRequest {
        image: Some(spec(&numeric.tag)),
        verbose: true,
    };
    let info = client
        .images
        .clone()
        .image_status(request)
        .await?
        .into_inner()
        .info;
    // Its configuration, as the registry has it.
    let info: serde_json::Value = serde_json::from_str(&info["info"])?;
    assert_eq!(info["imageSpec"]["config"]["User"], "1003:1004", "{info}");
    assert_eq!(info["imageSpec"]["created"], "2026-01-01T00:00:00Z");
    // Of one layer, its own digest.
    assert_eq!(info["chainID"], info["imageSpec"]["rootfs"]["diff_ids"][0]);
    let request = cri::ImageStatusRequest {
        image: Some(spec(&numeric.tag)),
        verbose: false,
    };
    let told = client.images.clone().image_status(request).await?.into_inner();
    assert!(told.info.is_empty(), "not asked for: {told:?}");

    if story.node.is_peer() {
        return story.finish().await;
    }
    // What PullImage answers is what everything else calls the image.
    assert_eq!(client.pull(&numeric.tag).await?, numeric.id);
    let (repository, tag) = numeric.tag.rsplit_once(':').expect("a tag");
    let repository = repository.split_once('/').expect("a host").1;
    let url = format!("{}/v2/{repository}/manifests/{tag}", story.registry.url());
    let accept = [("accept", "application/vnd.oci.image.manifest.v1+json")];
    let body = http::send(Method::GET, &url, &accept, Vec::new())
        .await?
        .ok()?
        .body;
    let manifest: serde_json::Value = serde_json::from_slice(&body)?;
    let sizes = manifest["layers"].as_array().into_iter().flatten();
    let size: u64 = [&manifest["config"]]
        .into_iter()
        .chain(sizes)
        .filter_map(|part| part["size"].as_u64())
        .sum();
    let expected = cri::Image {
        id: numeric.id.clone(),
        repo_tags: vec![numeric.tag.clone()],
        repo_digests: vec![numeric.digest.clone()],
        size: size + u64::try_from(body.len())?,
        uid: Some(cri::Int64Value { value: 1003 }),
        username: String::new(),
        spec: Some(spec(&numeric.id)),
        pinned: false,
    };
    assert_eq!(by_id, Some(expected.clone()));
    let listed = client.image_list().await?;
    assert!(listed.contains(&expected) && listed.len() == 3, "{listed:?}");
    story.finish().await
}

/// Pinned images are told as such, so that the kubelet leaves them; who asks for their
/// removal by name gets it.
#[tokio::test]
async fn a_pinned_image_is_kept_from_the_kubelet() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: it changes the configuration");
        return story.finish().await;
    }
    let config = format!("[image]\npinned = [{:?}]\n", story.image.tag);
    std::fs::write(story.node.path().join("config.d/pinned.toml"), config)?;
    story.node.stop().await?;
    story.node.launch().await?;
    story.client = story.node.client().await?;
    let other = Image::busybox().layer(&[Entry::file("x", "")]);
    let other = story.image(other, "other:1").await?;
    let pinned = async |name: &str| -> Result<Option<bool>> {
        Ok(story.client.image(name).await?.map(|image| image.pinned))
    };
    assert_eq!(pinned(&story.image.id).await?, Some(true));
    assert_eq!(pinned(&other.id).await?, Some(false));
    let request = cri::RemoveImageRequest {
        image: Some(spec(&story.image.tag)),
    };
    story.client.images.clone().remove_image(request).await?;
    assert_eq!(pinned(&story.image.id).await?, None);
    story.finish().await
}

#[tokio::test]
async fn lists_are_filtered_by_name() -> Result {
    let mut story = Story::begin().await?;
    let other = story
        .image(Image::busybox().layer(&[Entry::file("x", "")]), "other:1")
        .await?;
    let request = cri::ListImagesRequest {
        filter: Some(cri::ImageFilter {
            image: Some(spec(&other.tag)),
        }),
    };
    let found = story
        .client
        .images
        .clone()
        .list_images(request)
        .await?
        .into_inner()
        .images;
    if story.node.is_peer() {
        eprintln!("skipped: containerd does not filter images");
        return story.finish().await;
    }
    assert_eq!(
        found.iter().map(|image| &image.id).collect::<Vec<_>>(),
        [&other.id]
    );
    let all = story.client.image_list().await?;
    assert!(all.iter().any(|image| image.id == story.image.id));
    story.finish().await
}

#[tokio::test]
async fn any_name_takes_the_image_with_all_its_names() -> Result {
    let mut story = Story::begin().await?;
    let image = || Image::busybox().layer(&[Entry::file("x", "")]);
    let one = story.image(image(), "one:1").await?;
    let two = story.image(image(), "two:1").await?;
    assert_eq!(one.id, two.id);
    let client = &story.client;
    let repository = two.tag.trim_end_matches(":1");
    let of_two = format!("{repository}@");
    // A container says by which repository its image was named.
    let pod = client.run_pod("names").await?;
    let id = client.create(&pod, client.plain("c", &two.tag)).await?;
    if !story.node.is_peer() {
        let status = client.status(&id).await?;
        assert!(status.image_ref.starts_with(&of_two), "{}", status.image_ref);
    }
    client.remove(&id).await?;
    for by in [&one.tag, &one.digest, &one.id] {
        client.pull(&one.tag).await?;
        client.pull(&two.tag).await?;
        client.remove_image(by).await?;
        for name in [&one.tag, &two.tag, &one.id, &one.digest, &two.digest] {
            assert!(client.image(name).await?.is_none(), "{name} by {by}");
            client.remove_image(name).await?;
        }
    }
    story.finish().await
}

#[tokio::test]
async fn layers_in_use_stay_until_the_container_goes() -> Result {
    let mut story = Story::begin().await?;
    let used = story
        .image(Image::busybox().layer(&[Entry::file("kept", "yes")]), "used:1")
        .await?;
    let client = &story.client;
    let pod = client.run_pod("used").await?;
    let id = client
        .run(&pod, client.script("c", &used.tag, "sleep 1000"))
        .await?;
    client.remove_image(&used.id).await?;
    assert!(client.image(&used.tag).await?.is_none());
    assert_eq!(client.sh(&id, "cat /kept").await?, "yes");
    assert_eq!(
        client.status(&id).await?.state(),
        cri::ContainerState::ContainerRunning
    );
    story.finish().await
}

#[tokio::test]
async fn the_file_system_tells_true_numbers() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: the numbers of another server are not its alone");
        return Ok(());
    }
    let usage = async |client: &e2e::Client| -> Result<(u64, u64)> {
        let answer = client
            .images
            .clone()
            .image_fs_info(cri::ImageFsInfoRequest {})
            .await?
            .into_inner();
        let usage = answer
            .image_filesystems
            .first()
            .cloned()
            .expect("one file system");
        assert!(usage.timestamp > 0);
        assert!(usage.fs_id.is_some_and(|id| id.mountpoint.starts_with('/')));
        let value = |value: Option<cri::UInt64Value>| value.map_or(0, |v| v.value);
        Ok((value(usage.used_bytes), value(usage.inodes_used)))
    };
    let before = usage(&story.client).await?;
    let content: Vec<u8> = (0..3u32 << 20)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let files: Vec<_> = (0..100).map(|n| Entry::file(&format!("many/{n}"), "x")).collect();
    let image = Image::empty().layer(&[Entry::file("big", content)]).layer(&files);
    let pushed = story.image(image, "big:1").await?;
    let with = usage(&story.client).await?;
    assert!(with.0 - before.0 >= 3 << 20, "{before:?} {with:?}");
    assert!(with.1 - before.1 >= 101, "{before:?} {with:?}");
    story.client.remove_image(&pushed.id).await?;
    let after = usage(&story.client).await?;
    assert!(after.0 < before.0 + (1 << 20), "{before:?} {after:?}");
    assert!(after.1 <= before.1 + 10, "{before:?} {after:?}");
    story.finish().await
}

/// What containers have written, and where: bytes and inodes are those of du.
#[tokio::test]
async fn the_file_system_of_the_containers_is_told_too() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: the numbers of another server are not its alone");
        return story.finish().await;
    }
    let client = &story.client;
    let ask = async || -> Result<cri::ImageFsInfoResponse> {
        let request = cri::ImageFsInfoRequest {};
        Ok(client.images.clone().image_fs_info(request).await?.into_inner())
    };
    let empty = ask().await?;
    let [usage] = &empty.container_filesystems[..] else {
        anyhow::bail!("not one file system: {empty:?}")
    };
    let nothing = Some(cri::UInt64Value { value: 0 });
    assert_eq!((usage.used_bytes, usage.inodes_used), (nothing, nothing));

    let (pod, one) = story.sleeper("one").await?;
    let write =
        "mkdir /tmp/d; for n in 1 2 3; do echo x > /tmp/d/$n; done; dd if=/dev/zero of=/big bs=1M count=3";
    let ended = client.run(&pod, story.script("two", write)).await?;
    client.wait_exit(&ended).await?;
    client
        .sh(&one, "head -c 100000 /dev/zero > /home/file; sync")
        .await?;
    // The two are measured as du does it; what was measured a moment ago is told again.
    let (mut bytes, mut inodes) = (0, 0);
    for id in [&one, &ended] {
        let upper = story.node.root().join("containers").join(id).join("upper");
        let upper = upper.to_string_lossy();
        let sum = |options: &[&str]| -> Result<u64> {
            let text = kernel::output("du", &[options, &[&*upper]].concat());
            Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
        };
        bytes += sum(&["-s", "--block-size=1"])?;
        inodes += sum(&["-s", "--inodes"])?;
    }
    assert!(bytes > (3 << 20) + 100_000, "{bytes}");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let told = ask().await?;
        let usage = &told.container_filesystems[0];
        let (image, container) = (&told.image_filesystems[0], usage.fs_id.clone());
        let mountpoint = container.clone().unwrap_or_default().mountpoint;
        assert_eq!(mountpoint, story.node.root().to_string_lossy());
        assert_eq!(image.fs_id, container, "one file system for both");
        assert!(usage.timestamp > 0);
        let value = |number: Option<cri::UInt64Value>| number.map(|number| number.value);
        if (value(usage.used_bytes), value(usage.inodes_used)) == (Some(bytes), Some(inodes)) {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{usage:?}, not {bytes} and {inodes}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    story.finish().await
}

/// A disk that is mounted for the containers is a file system of its own (KEP-4191).
#[tokio::test]
async fn a_disk_for_the_containers_alone_is_told_apart() -> Result {
    let mut node = Node::prepare("")?;
    if node.is_peer() {
        eprintln!("skipped: it mounts a disk below the root folder");
        return node.finish().await;
    }
    let containers = node.root().join("containers");
    std::fs::create_dir_all(&containers)?;
    let mountpoint = containers.to_string_lossy().into_owned();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "disk", &mountpoint])
        .status()?;
    anyhow::ensure!(mounted.success(), "mount: {mounted}");
    node.launch().await?;
    let story = Story::begin_on(node).await?;
    let client = &story.client;
    let (_, id) = story.sleeper("split").await?;
    client.sh(&id, "head -c 1000000 /dev/zero > /file").await?;
    let request = cri::ImageFsInfoRequest {};
    let told = client.images.clone().image_fs_info(request).await?.into_inner();
    let of = |usage: &cri::FilesystemUsage| usage.fs_id.clone().unwrap_or_default().mountpoint;
    assert_eq!(
        of(&told.image_filesystems[0]),
        story.node.root().to_string_lossy()
    );
    assert_eq!(of(&told.container_filesystems[0]), mountpoint);
    let request = cri::ContainerStatsRequest { container_id: id };
    let stats = client
        .runtime
        .clone()
        .container_stats(request)
        .await?
        .into_inner();
    let layer = stats.stats.and_then(|stats| stats.writable_layer).expect("layer");
    assert_eq!(of(&layer), mountpoint);

    client.remove_everything().await?;
    client.remove_image(&story.image.id).await?;
    let mut node = story.node;
    node.stop().await?;
    assert_eq!(std::fs::read_dir(&containers)?.count(), 0);
    kernel::output("umount", &[&mountpoint]);
    node.finish().await
}
