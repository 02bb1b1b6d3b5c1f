//! What is told of images, and how they go.

use e2e::{Image, Result, Story, client::spec, cri, tar::Entry};
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
    assert!(info.values().any(|value| value.contains("1003:1004")), "{info:?}");
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
async fn a_tag_goes_alone_and_an_id_takes_all() -> Result {
    let mut story = Story::begin().await?;
    let one = story
        .image(Image::busybox().layer(&[Entry::file("x", "")]), "one:1")
        .await?;
    let two = story
        .image(Image::busybox().layer(&[Entry::file("x", "")]), "two:1")
        .await?;
    assert_eq!(one.id, two.id);
    let client = &story.client;
    if !story.node.is_peer() {
        client.remove_image(&one.tag).await?;
        assert!(client.image(&one.tag).await?.is_none());
        assert!(client.image(&two.tag).await?.is_some());
        client.pull(&one.tag).await?;
    }
    client.remove_image(&one.id).await?;
    for name in [&one.tag, &two.tag, &one.id, &one.digest] {
        assert!(client.image(name).await?.is_none(), "{name}");
        client.remove_image(name).await?;
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
