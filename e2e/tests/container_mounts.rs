//! Mounts of the request and those that every container has.

use std::fs;

use e2e::{Image, Result, Story, cri, kernel};
use serde_json::json;

fn mount(host: &std::path::Path, container: &str) -> cri::Mount {
    cri::Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: container.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn folders_and_files_of_the_host() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let host = tempfile::tempdir()?;
    fs::write(host.path().join("file"), "content")?;
    let made = host.path().join("made/by/mount");
    let pod = client.run_pod("mounts").await?;
    let mut config = story.script("c", "sleep 1000");
    config.mounts = vec![
        mount(host.path(), "/data"),
        cri::Mount {
            readonly: true,
            ..mount(host.path(), "/read/only")
        },
        mount(&host.path().join("file"), "/one/file"),
        mount(&made, "/made"),
    ];
    let id = client.run(&pod, config.clone()).await?;
    assert_eq!(
        client.sh(&id, "cat /data/file /one/file").await?,
        "contentcontent"
    );
    client.sh(&id, "echo new > /data/new; echo x > /made/x").await?;
    assert_eq!(fs::read_to_string(host.path().join("new"))?, "new\n");
    assert_eq!(fs::read_to_string(made.join("x"))?, "x\n");
    let output = client.exec(&id, &["touch", "/read/only/no"]).await?;
    assert!(
        output.code != 0 && output.stderr.contains("Read-only"),
        "{output:?}"
    );
    let told = client.status(&id).await?.mounts;
    assert_eq!(told.len(), 4, "the requested ones only: {told:?}");
    assert!(
        config
            .mounts
            .iter()
            .all(|m| told.iter().any(|t| t.container_path == m.container_path))
    );
    story.finish().await
}

#[tokio::test]
async fn propagation_is_what_was_asked_for() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    // A shared mount of our own, on which mounts are made from both sides.
    let host = tempfile::tempdir()?;
    let path = host.path().to_string_lossy().into_owned();
    kernel::output("mount", &["-t", "tmpfs", "e2e", &path]);
    kernel::output("mount", &["--make-shared", &path]);
    let result = propagate(client, &story, host.path()).await;
    for name in ["from-host", "from-container"] {
        kernel::output("umount", &["-l", &format!("{path}/{name}")]);
    }
    kernel::output("umount", &["-l", &path]);
    result?;
    story.finish().await
}

async fn propagate(client: &e2e::Client, story: &Story, host: &std::path::Path) -> Result {
    for name in ["from-host", "from-container"] {
        fs::create_dir(host.join(name))?;
    }
    let mut config = client.pod_config("propagation");
    e2e::client::pod_security(&mut config).privileged = true;
    let pod = client.run_pod_with(config).await?;
    let mut ids = Vec::new();
    for (name, propagation) in [
        ("private", cri::MountPropagation::PropagationPrivate),
        ("slave", cri::MountPropagation::PropagationHostToContainer),
        ("shared", cri::MountPropagation::PropagationBidirectional),
    ] {
        let mut config = story.script(name, "sleep 1000");
        config.mounts = vec![cri::Mount {
            propagation: propagation.into(),
            ..mount(host, "/m")
        }];
        e2e::client::security(&mut config).privileged =
            propagation == cri::MountPropagation::PropagationBidirectional;
        ids.push(client.run(&pod, config).await?);
    }
    let path = host.join("from-host").to_string_lossy().into_owned();
    kernel::output("mount", &["-t", "tmpfs", "e2e", &path]);
    fs::write(host.join("from-host/seen"), "")?;
    let seen = async |id: &str, file: &str| -> Result<bool> {
        Ok(client
            .exec(id, &["test", "-e", &format!("/m/{file}")])
            .await?
            .code
            == 0)
    };
    for (id, expected) in ids.iter().zip([false, true, true]) {
        assert_eq!(seen(id, "from-host/seen").await?, expected, "{id}");
    }
    client
        .sh(
            &ids[2],
            "mount -t tmpfs e2e /m/from-container && touch /m/from-container/seen",
        )
        .await?;
    assert!(host.join("from-container/seen").exists());
    Ok(())
}

#[tokio::test]
async fn every_container_has_its_own_proc_sys_and_dev() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (_, id) = story.sleeper("defaults").await?;
    let table = client.sh(&id, "cut -d' ' -f2,3,4 /proc/mounts").await?;
    let line = |point: &str| {
        table
            .lines()
            .find(|l| l.starts_with(&format!("{point} ")))
            .unwrap_or_default()
    };
    assert!(
        line("/proc").starts_with("/proc proc rw,nosuid,nodev,noexec"),
        "{table}"
    );
    assert!(line("/dev").starts_with("/dev tmpfs rw,nosuid"), "{table}");
    assert!(
        line("/dev/pts").contains("devpts") && line("/dev/mqueue").contains("mqueue"),
        "{table}"
    );
    assert!(
        line("/dev/shm").contains("tmpfs rw,nosuid,nodev,noexec"),
        "{table}"
    );
    assert!(
        line("/sys").starts_with("/sys sysfs ro,nosuid,nodev,noexec"),
        "{table}"
    );
    assert!(line("/").starts_with("/ overlay rw"), "{table}");
    assert!(!line("/").contains("nosuid"), "{table}");
    let devices = "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
        for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done";
    let links = client.sh(&id, devices).await?;
    assert_eq!(
        links,
        "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx"
    );
    assert_eq!(
        client
            .sh(&id, "echo x > /dev/null; head -c 3 /dev/zero | wc -c")
            .await?,
        "3"
    );
    // The host's mount table does not grow with containers.
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    if !story.node.is_peer() {
        let state = story.node.state().to_string_lossy().into_owned();
        assert!(
            !table
                .lines()
                .any(|line| line.contains(&state) && line.contains(" - overlay ")),
            "{table}"
        );
    }
    story.finish().await
}

#[tokio::test]
async fn volumes_of_the_image_and_symlinks_as_targets() -> Result {
    let mut story = Story::begin().await?;
    let image = Image::busybox()
        .layer(&[
            e2e::tar::Entry::folder("vol").owner(7, 8).mode(0o750),
            e2e::tar::Entry::file("vol/seed", "from the image"),
            e2e::tar::Entry::symlink("link", "/etc/target"),
            e2e::tar::Entry::symlink("out", "../../../../tmp"),
        ])
        .config(json!({"Volumes": {"/vol": {}}}));
    let image = story.image(image, "volumes:1").await?;
    let client = &story.client;
    let host = tempfile::tempdir()?;
    fs::write(host.path().join("f"), "mounted")?;
    let pod = client.run_pod("volumes").await?;
    let mut config = client.script("c", &image.tag, "sleep 1000");
    config.mounts = vec![mount(host.path(), "/link"), mount(host.path(), "/out/inside")];
    if e2e::handler().as_deref() == Some("crun") {
        eprintln!("skipped: crun 1.8 mounts over no link that leads nowhere");
        return story.finish().await;
    }
    let id = client.run(&pod, config).await?;
    assert_eq!(
        client.sh(&id, "cat /vol/seed; stat -c ' %u %g %a' /vol").await?,
        "from the image 7 8 750"
    );
    assert_eq!(
        client
            .sh(&id, "grep -c ' /vol ' /proc/mounts; touch /vol/new")
            .await?,
        "1"
    );
    // A symlink in the image leads within the image.
    assert_eq!(
        client.sh(&id, "cat /etc/target/f /tmp/inside/f").await?,
        "mountedmounted"
    );
    assert!(!std::path::Path::new("/tmp/inside").exists());
    story.finish().await
}
