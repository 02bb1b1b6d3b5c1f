//! Paths that a container controls, resolved by whoever starts it: links in the image
//! and folders that a sibling swaps meanwhile (CVE-2019-19921, 2021-30465, 2022-23648,
//! 2023-27561, 2025-31133, 2025-52565, 2025-52881, 2026-41579).

use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::Path};

use e2e::{Client, Image, Pod, Result, Story, cri, handler, hostile, images::Pushed, tar::Entry};
use serde_json::json;

/// A symlink of an image: its path, and where it leads.
type Link = (&'static str, &'static str);

fn mount(host: &Path, container: &str) -> cri::Mount {
    cri::Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: container.into(),
        ..Default::default()
    }
}

/// What a kubelet asks for with every container that is not privileged.
fn hide(config: &mut cri::ContainerConfig) {
    let security = e2e::client::security(config);
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    security.masked_paths = owned(&[
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
    ]);
    security.readonly_paths = owned(&[
        "/proc/asound",
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ]);
}

/// AppArmor would hide what is open: the masks are to hold by themselves.
fn unconfined(config: &mut cri::ContainerConfig) {
    e2e::client::security(config).apparmor = Some(cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::Unconfined.into(),
        ..Default::default()
    });
}

/// What of the kernel can be written to, at each place where procfs may have come to
/// be. Nothing is written: to open is enough.
const WRITABLE: &str = "for p in /proc / /a /b /sys /dev /vol; do for f in sys/kernel/core_pattern sysrq-trigger; do \
    [ -e $p/$f ] && echo found $p && (: >> $p/$f) 2>/dev/null && echo writable $p/$f; done; \
    [ -s $p/keys ] && echo readable $p/keys; done; true";

/// Runs a container of this image and says what can be written in it, and in an exec
/// of it. None: it was refused.
async fn writable(
    client: &Client,
    pod: &Pod,
    image: &Pushed,
    mounts: Vec<cri::Mount>,
) -> Result<Option<String>> {
    let mut config = client.script(
        "links",
        &image.tag,
        &format!("({WRITABLE}); echo up; exec sleep 1000"),
    );
    config.mounts = mounts;
    hide(&mut config);
    unconfined(&mut config);
    let id = match client.create(pod, config).await {
        Ok(id) => id,
        Err(error) => {
            eprintln!("refused: {}", error.message());
            return Ok(None);
        }
    };
    if let Err(error) = client.start(&id).await {
        eprintln!("not started: {}", error.message());
        client.remove(&id).await?;
        return Ok(None);
    }
    let of_exec = client.exec(&id, &["sh", "-c", WRITABLE]).await;
    let of_exec = of_exec.map_or_else(|error| error.message().to_owned(), |output| output.stdout);
    // Where it is to be found when the root is something else.
    let below = client.exec(
        &id,
        &["/1/root/bin/sh", "-c", "echo reached the init by procfs as root"],
    );
    let below = below.await.map_or_else(|_| String::new(), |output| output.stdout);
    let status = client.status(&id).await?;
    let log = fs::read_to_string(status.log_path)?;
    client.stop(&id, 0).await?;
    client.remove(&id).await?;
    Ok(Some(format!("{log}{of_exec}{below}")))
}

#[tokio::test]
async fn links_in_the_place_of_proc_sys_and_dev() -> Result {
    let mut story = Story::begin().await?;
    // Without masks this very look finds what is open: it would see it.
    let pod = story.client.run_pod("links").await?;
    let mut plain = story.script("plain", WRITABLE);
    unconfined(&mut plain);
    let seen = story.client.run_to_end(&pod, plain).await?.stdout;
    assert!(seen.contains("writable /proc/sys/kernel/core_pattern"), "{seen}");

    let volume = tempfile::tempdir()?;
    let covering = || vec![mount(volume.path(), "/a")];
    let cases: [(&str, &[Link], bool); 7] = [
        ("proc-root", &[("proc", "/")], false),
        ("proc-folder", &[("proc", "/b")], false),
        // A link whose way is covered by what is mounted later leads elsewhere for
        // whoever looks then.
        ("proc-covered", &[("proc", "/a/link"), ("a/link", "/b")], true),
        (
            "proc-by-sys",
            &[("proc", "/a/link"), ("a/link", "/b"), ("sys", "/a")],
            false,
        ),
        ("sys-is-proc", &[("sys", "/proc")], false),
        ("sys-root", &[("sys", "/")], false),
        ("dev-is-proc", &[("dev", "/proc/sys/kernel")], false),
    ];
    for (name, links, covered) in cases {
        let mut image = Image::busybox();
        let gone: Vec<_> = links
            .iter()
            .filter(|(path, _)| !path.contains('/'))
            .map(|(path, _)| Entry::whiteout(path))
            .collect();
        let mut entries = vec![Entry::folder("a"), Entry::folder("b")];
        entries.extend(links.iter().map(|(path, to)| Entry::symlink(path, to)));
        image = image.layer(&gone).layer(&entries);
        let image = story.image(image, &format!("{name}:1")).await?;
        let mounts = if covered { covering() } else { Vec::new() };
        let seen = writable(&story.client, &pod, &image, mounts).await?;
        eprintln!("{name}: {seen:?}");
        let seen = seen.unwrap_or_default();
        for wrong in ["writable", "readable", "reached"] {
            assert!(!seen.contains(wrong), "{name}: {seen}");
        }
    }
    assert_eq!(fs::read_dir(volume.path())?.count(), 0);
    story.finish().await
}

/// Destinations of volumes that lead out of the image by its links, or to where nothing
/// may be mounted.
#[tokio::test]
async fn volumes_at_links_that_lead_out() -> Result {
    let mut story = Story::begin().await?;
    let host = tempfile::tempdir()?;
    let (volume, target) = (host.path().join("volume"), host.path().join("target"));
    fs::create_dir(&volume)?;
    fs::create_dir(&target)?;
    fs::write(volume.join("mark"), "of the volume")?;
    let outside = target.to_string_lossy().into_owned();
    let links = [
        ("absolute", outside.clone()),
        ("above", format!("../../../../..{outside}")),
        ("magic", format!("/proc/self/root{outside}")),
        ("init", format!("/proc/1/root{outside}")),
        ("folder", "/proc/self/cwd".to_owned()),
        ("root", "/".to_owned()),
        ("dot", "..".to_owned()),
        ("proc", "/proc".to_owned()),
        ("sys", "/proc/sys/kernel".to_owned()),
        ("self", "/proc/self".to_owned()),
        ("attr", "/proc/self/attr".to_owned()),
        ("shm", "/dev/shm".to_owned()),
    ];
    let entries: Vec<_> = links
        .iter()
        .map(|(name, to)| Entry::symlink(&format!("to/{name}"), to))
        .collect();
    let image = story
        .image(Image::busybox().layer(&entries), "destinations:1")
        .await?;
    let client = &story.client;
    let pod = client.run_pod("destinations").await?;
    let table = mounts_of(&host)?;
    for (name, to) in &links {
        let mut config = client.script(name, &image.tag, "exec sleep 1000");
        config.mounts = vec![mount(&volume, &format!("/to/{name}"))];
        hide(&mut config);
        let started = match client.create(&pod, config).await {
            Ok(id) => client.start(&id).await.map(|()| id),
            Err(error) => Err(error),
        };
        let closed = ["root", "dot", "proc", "sys", "self", "attr"].contains(name);
        match started {
            Err(error) => eprintln!("{name}: {}", error.message()),
            Ok(id) => {
                assert!(!closed || handler().is_some(), "a volume was mounted at {to}");
                // It is somewhere in the container, which is whole.
                match client.sh(&id, "cat /bin/../etc/passwd | head -c 4").await {
                    Ok(text) => {
                        assert_eq!(text, "root");
                        let seen = client.exec(&id, &["sh", "-c", WRITABLE]).await?.stdout;
                        assert!(!seen.contains("writable"), "{name}: {seen}");
                    }
                    // crun mounts over its own /proc/self, and then executes nothing there.
                    Err(error) if handler().is_some() => eprintln!("{name}: {error:#}"),
                    Err(error) => return Err(error),
                }
                client.stop(&id, 0).await?;
            }
        }
        // Nothing came to be on the node.
        assert_eq!(fs::read_dir(&target)?.count(), 0, "{name}");
        assert!(!Path::new("/mark").exists(), "{name}");
    }
    assert_eq!(mounts_of(&host)?, table, "the node's mount table has changed");
    story.finish().await
}

/// CVE-2021-30465: a sibling exchanges a folder of a shared volume for a link, again and
/// again, while containers start that have a volume mounted below it.
#[tokio::test]
async fn a_volume_whose_folders_a_sibling_swaps() -> Result {
    let mut story = Story::begin().await?;
    let image = story.image(hostile::image()?, "swap:1").await?;
    let client = &story.client;
    let host = tempfile::tempdir()?;
    let (shared, volume, target) = (
        host.path().join("shared"),
        host.path().join("volume"),
        host.path().join("target"),
    );
    for folder in [&shared, &volume, &target, &shared.join("a")] {
        fs::create_dir(folder)?;
    }
    fs::write(volume.join("mark"), "of the volume")?;
    // To the same names on the node, where the way down would go on.
    symlink(&target, shared.join("link"))?;
    let pod = client.run_pod("swap").await?;
    let mut config = client.script(
        "swapper",
        &image.tag,
        "exec attack exchange /shared/a /shared/link",
    );
    config.mounts = vec![mount(&shared, "/shared")];
    let swapper = client.run(&pod, config).await?;
    let table = mounts_of(&host)?;
    let (mut kinds, mut created, mut refused) = (BTreeSet::new(), 0, 0);
    e2e::streams::until("the folder is a link and is none, in turns", || {
        kinds.extend(fs::symlink_metadata(shared.join("a")).map(|found| found.is_symlink()));
        kinds.len() == 2
    })
    .await?;
    for number in 0..25 {
        let mut config = client.script(
            &format!("victim{number}"),
            &image.tag,
            "find / -xdev -name mark; cat /proc/mounts",
        );
        config.mounts = vec![mount(&shared, "/shared"), mount(&volume, "/shared/a/b/c")];
        let id = match client.create(&pod, config).await {
            Ok(id) => id,
            Err(error) => {
                refused += 1;
                eprintln!("refused: {}", error.message());
                continue;
            }
        };
        created += 1;
        if client.start(&id).await.is_ok() {
            client.wait_exit(&id).await?;
        }
        client.remove(&id).await?;
        if handler().is_some() && fs::read_dir(&target)?.count() != 0 {
            eprintln!(
                "skipped: this runtime makes mount points outside (CVE-2024-45310, in runc before 1.1.14)"
            );
            break;
        }
        assert_eq!(
            fs::read_dir(&target)?.count(),
            0,
            "something was made in {}",
            target.display()
        );
    }
    eprintln!("{created} created, {refused} refused");
    assert!(created > 0);
    assert_eq!(mounts_of(&host)?, table, "something was mounted on the node");
    client.stop(&swapper, 0).await?;
    story.finish().await
}

/// Lines of the node's mount table that are about this folder.
fn mounts_of(folder: &tempfile::TempDir) -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let shown = folder.path().to_string_lossy();
    Ok(table
        .lines()
        .filter(|line| line.contains(&*shown))
        .map(str::to_owned)
        .collect())
}

/// CVE-2022-23648: what the image says where its volumes are is not a path of the node.
#[tokio::test]
async fn volumes_of_the_image_that_lead_out() -> Result {
    let mut story = Story::begin().await?;
    let host = tempfile::tempdir()?;
    fs::write(host.path().join("secret"), "of the node")?;
    let outside = host.path().to_string_lossy().into_owned();
    let images = [
        ("up", format!("/../../../../../..{outside}"), None),
        ("link", "/vol".to_owned(), Some(outside.clone())),
        ("below", format!("/vol{outside}"), Some("/".to_owned())),
        (
            "above",
            "/vol".to_owned(),
            Some(format!("../../../../../../..{outside}")),
        ),
        ("root", "/vol/sub".to_owned(), Some("/proc/1/root".to_owned())),
        ("proc", "/proc/../proc".to_owned(), None),
        ("slash", "/a/..".to_owned(), None),
        ("relative", format!("../../../../..{outside}"), None),
    ];
    for (name, volume, link) in images {
        let mut entries = vec![Entry::folder("etc/own")];
        entries.extend(link.map(|to| Entry::symlink("vol", &to)));
        let image = Image::busybox()
            .layer(&entries)
            .config(json!({"Volumes": {volume.clone(): {}}}));
        let image = story.image(image, &format!("volumes-{name}:1")).await?;
        let client = &story.client;
        let pod = client.run_pod(name).await?;
        // What it was copied to is in one of these places, if it was.
        let script = format!(
            "cat {outside}/secret /vol/secret /vol{outside}/secret; touch {outside}/new /vol/new; true"
        );
        match client.create(&pod, client.script("c", &image.tag, &script)).await {
            Err(error) => eprintln!("{name}: {}", error.message()),
            Ok(id) => {
                if client.start(&id).await.is_ok() {
                    let log = fs::read_to_string(client.wait_exit(&id).await?.log_path)?;
                    assert!(!log.contains("of the node"), "{name}: {log}");
                }
            }
        }
        let names: Vec<_> = fs::read_dir(host.path())?
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(names, ["secret"], "{name}");
        client.stop_pod(&pod.id).await?;
        client.remove_pod(&pod.id).await?;
    }
    story.finish().await
}

/// CVE-2025-31133, 2025-52565: /dev is a volume in which somebody has put links in the
/// place of what the runtime mounts from, or onto.
#[tokio::test]
async fn a_volume_with_links_for_devices() -> Result {
    let mut story = Story::begin().await?;
    let image = Image::busybox().layer(&[Entry::symlink("link", "/dev")]);
    let image = story.image(image, "dev:1").await?;
    let client = &story.client;
    let pod = client.run_pod("dev").await?;
    for (number, (destination, name, to)) in [
        ("/dev", "null", "/proc/sys/kernel/core_pattern"),
        ("/link", "null", "/proc/sys/kernel/core_pattern"),
        ("/dev", "console", "/proc/sys/kernel/core_pattern"),
        ("/link", "console", "/proc/sys/kernel/core_pattern"),
        ("/dev", "pts", "/proc/sys/kernel"),
        ("/link", "pts", "/proc/sys/kernel"),
        ("/link", "shm", "/proc/sys"),
    ]
    .into_iter()
    .enumerate()
    {
        let volume = tempfile::tempdir()?;
        symlink(to, volume.path().join(name))?;
        let mut config = client.script(
            &format!("c{number}"),
            &image.tag,
            &format!("{WRITABLE}; echo up; exec sleep 1000"),
        );
        config.mounts = vec![mount(volume.path(), destination)];
        config.tty = true;
        hide(&mut config);
        let started = match client.create(&pod, config).await {
            Ok(id) => client.start(&id).await.map(|()| id),
            Err(error) => Err(error),
        };
        match started {
            Err(error) => eprintln!("{destination}/{name}: {}", error.message()),
            Ok(id) => {
                let seen = client
                    .exec(&id, &["sh", "-c", &format!("{WRITABLE}; cat /proc/mounts")])
                    .await?
                    .stdout;
                assert!(
                    !seen.contains("writable") && !seen.contains("readable"),
                    "{destination}/{name}: {seen}"
                );
                let log = fs::read_to_string(client.status(&id).await?.log_path)?;
                assert!(
                    !log.contains("writable") && !log.contains("readable"),
                    "{destination}/{name}: {log}"
                );
                client.stop(&id, 0).await?;
            }
        }
    }
    story.finish().await
}

/// A tree that no path leads through and no set of descriptors holds: it is measured and
/// removed like any other.
#[tokio::test]
async fn folders_without_end() -> Result {
    let mut story = Story::begin().await?;
    let image = story.image(hostile::image()?, "deep:1").await?;
    let client = &story.client;
    let pod = client.run_pod("deep").await?;
    let id = client
        .run(
            &pod,
            client.script("c", &image.tag, "cd /tmp; attack deep 3000; exec sleep 1000"),
        )
        .await?;
    let log = client.status(&id).await?.log_path;
    while !fs::read_to_string(&log)?.contains("deep enough") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let request = cri::ContainerStatsRequest {
        container_id: id.clone(),
    };
    let stats = client
        .runtime
        .clone()
        .container_stats(request)
        .await?
        .into_inner()
        .stats;
    let layer = stats.and_then(|stats| stats.writable_layer).unwrap_or_default();
    let inodes = layer.inodes_used.map_or(0, |value| value.value);
    assert!(inodes >= 3_300, "{layer:?}");
    client.stop(&id, 0).await?;
    client.remove(&id).await?;
    story.finish().await
}
