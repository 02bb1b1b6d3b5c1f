//! Images mounted into containers.

use e2e::{Image, Result, Story, client, cri, tar::Entry};

fn volume(image: &str, target: &str, sub_path: &str) -> cri::Mount {
    cri::Mount {
        container_path: target.into(),
        readonly: true,
        image: Some(client::spec(image)),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

/// Two layers: a folder of files and links, and a change to it.
fn data() -> Image {
    Image::empty()
        .layer(&[
            Entry::folder("models"),
            Entry::file("models/a", "old"),
            Entry::file("models/gone", "x"),
            Entry::symlink("models/out", "../../../../etc"),
            Entry::symlink("current", "/models"),
            Entry::folder("etc"),
            Entry::file("etc/passwd", "of the volume"),
        ])
        .layer(&[
            Entry::file("models/a", "new"),
            Entry::whiteout("models/gone"),
            Entry::file("run", "#!/bin/sh\necho ran\n").mode(0o755),
        ])
}

#[tokio::test]
async fn an_image_is_mounted_read_only_and_executable() -> Result {
    let mut story = Story::begin().await?;
    let image = story.image(data(), "data:1").await?;
    let one_layer = Image::empty().layer(&[Entry::file("alone", "one")]);
    let one_layer = story.image(one_layer, "one:1").await?;
    let client = &story.client;
    let pod = client.run_pod("volumes").await?;
    let mut config = story.script("c", "sleep 1000");
    config.mounts = vec![
        volume(&image.tag, "/data", ""),
        volume(&image.tag, "/part", "models"),
        volume(&image.tag, "/link", "current"),
        volume(&image.id, "/file", "models/a"),
        volume(&image.tag, "/inside", "models/out"),
        volume(&one_layer.digest, "/one", ""),
    ];
    let id = client.run(&pod, config).await?;
    let seen = "cat /data/models/a /part/a /link/a /file /inside/passwd /one/alone; /data/run; ls /part";
    assert_eq!(
        client.sh(&id, seen).await?,
        "newnewnewnewof the volumeoneran\na\nout"
    );
    for target in ["/data/x", "/part/x", "/one/x", "/file"] {
        let output = client.exec(&id, &["touch", target]).await?;
        assert!(output.stderr.contains("Read-only"), "{target}: {output:?}");
    }
    let told = client.status(&id).await?.mounts;
    assert_eq!(told.len(), 6);
    let source = told[0].image.as_ref().unwrap();
    assert_eq!((&source.image, &source.image_ref), (&image.tag, &image.id));
    assert_eq!(told[1].image_sub_path, "models");
    // The layers stay as long as a container stands on them.
    client.remove_image(&image.id).await?;
    assert_eq!(client.sh(&id, "cat /data/models/a").await?, "new");
    story.finish().await
}

#[tokio::test]
async fn what_cannot_be_mounted_is_refused() -> Result {
    let mut story = Story::begin().await?;
    let image = story.image(data(), "data:1").await?;
    let client = &story.client;
    let pod = client.run_pod("refused").await?;
    let good = || volume(&image.tag, "/data", "");
    let cases = [
        (
            cri::Mount {
                readonly: false,
                ..good()
            },
            "readonly",
        ),
        (volume(&image.tag, "/data", "absent/part"), "absent/part"),
        (volume(&image.tag, "/data", "../etc"), "image_sub_path"),
        (volume("absent.test/image:1", "/data", ""), "absent.test/image:1"),
        (volume("", "/data", ""), "image"),
        (
            cri::Mount {
                host_path: "/tmp".into(),
                ..good()
            },
            "host_path",
        ),
        (volume(&image.tag, "/proc/data", ""), "/proc"),
        (
            cri::Mount {
                propagation: cri::MountPropagation::PropagationHostToContainer.into(),
                ..good()
            },
            "propagation",
        ),
    ];
    for (mount, reason) in cases {
        let mut config = story.script("c", "true");
        config.mounts = vec![mount];
        let error = client.create(&pod, config).await.unwrap_err();
        assert!(error.message().contains(reason), "{reason}: {error}");
    }
    story.finish().await
}
