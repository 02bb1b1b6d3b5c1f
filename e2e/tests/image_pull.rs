//! Images of every kind that registries hold, pulled and looked at from inside
//! a running container.

use e2e::{
    Image, Registry, Result, Story,
    images::{Format, Packing, push_index},
    proxy::{Fault, Proxy},
    tar::Entry,
};
use serde_json::json;

#[tokio::test]
async fn by_tag_by_digest_and_in_every_packing() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    for (number, (format, packing)) in [
        (Format::Oci, Packing::Gzip),
        (Format::Oci, Packing::GzipMembers),
        (Format::Oci, Packing::Zstd),
        (Format::Oci, Packing::Plain),
        (Format::Docker, Packing::Gzip),
    ]
    .into_iter()
    .enumerate()
    {
        let word = format!("{format:?} {packing:?}");
        let image = Image::busybox()
            .layer(&[Entry::file("word", word.clone())])
            .packing(packing)
            .format(format);
        let pushed = image.push(&story.registry, &format!("packed{number}:1")).await?;
        assert_eq!(client.pull(&pushed.tag).await?, pushed.id, "{word}");
        let pod = client.run_pod("packed").await?;
        let output = client
            .run_to_end(&pod, client.script("c", &pushed.tag, "cat /word"))
            .await?;
        assert_eq!(output.stdout.trim_end(), word);

        let found = client.image(&pushed.tag).await?.expect("there");
        assert_eq!(found.repo_tags.join(" "), pushed.tag);
        assert_eq!(found.repo_digests.join(" "), pushed.digest);
        client.remove_pod(&pod.id).await?;
        client.remove_image(&pushed.id).await?;
        assert_eq!(client.pull(&pushed.digest).await?, pushed.id);
        let found = client.image(&pushed.digest).await?.expect("there");
        assert!(found.repo_tags.is_empty(), "{found:?}");
        client.remove_image(&pushed.digest).await?;
    }
    story.finish().await
}

#[tokio::test]
async fn the_platform_of_this_machine_is_chosen_from_an_index() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    for (format, name) in [(Format::Oci, "index-oci"), (Format::Docker, "index-docker")] {
        let foreign = Image::busybox()
            .format(format)
            .architecture("s390x")
            .config(json!({"Cmd": ["x"]}));
        let foreign = foreign.push(&story.registry, &format!("{name}:foreign")).await?;
        let own = Image::busybox()
            .format(format)
            .config(json!({"Labels": {"of": name}}))
            .push(&story.registry, &format!("{name}:own"))
            .await?;
        let index = push_index(&story.registry, &format!("{name}:1"), &[&foreign, &own], format).await?;
        assert_eq!(client.pull(&index.tag).await?, own.id);
        let found = client.image(&index.tag).await?.expect("there");
        // The digest is that of the index, by which it can be pulled again.
        assert_eq!(found.repo_digests.join(" "), index.digest);
        let only = push_index(&story.registry, &format!("{name}:none"), &[&foreign], format).await?;
        let error = client.pull(&only.tag).await.unwrap_err();
        assert!(
            error.message().contains("s390x") || error.message().contains("platform"),
            "{error}"
        );
    }
    story.finish().await
}

#[tokio::test]
async fn a_hundred_layers_stack_in_their_order() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut image = Image::busybox();
    for number in 1..100 {
        image = image.layer(&[
            Entry::file("last", number.to_string()),
            Entry::file(&format!("each/{number}"), "x"),
        ]);
    }
    let pushed = image.push(&story.registry, "hundred:1").await?;
    client.pull(&pushed.tag).await?;
    let pod = client.run_pod("hundred").await?;
    let output = client
        .run_to_end(
            &pod,
            client.script("c", &pushed.tag, "cat /last; ls /each | wc -l"),
        )
        .await?;
    assert_eq!(output.stdout, "9999\n", "the last layer and 99 files");
    story.finish().await
}

#[tokio::test]
async fn layers_remove_and_hide_what_is_below() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let image = Image::busybox()
        .layer(&[
            Entry::folder("d"),
            Entry::file("d/gone", "1"),
            Entry::file("d/stays", "1"),
            Entry::folder("hidden"),
            Entry::file("hidden/old", "1"),
            Entry::folder("swapped"),
            Entry::file("swapped/x", "1"),
        ])
        .layer(&[
            Entry::whiteout("d/gone"),
            Entry::folder("hidden").mode(0o700),
            Entry::opaque("hidden"),
            Entry::file("hidden/new", "2"),
            Entry::file("swapped", "now a file"),
        ]);
    let pushed = image.push(&story.registry, "whiteouts:1").await?;
    client.pull(&pushed.tag).await?;
    let pod = client.run_pod("whiteouts").await?;
    let script = "ls -A /d /hidden; cat /swapped; find / -xdev -name '.wh*'";
    let output = client
        .run_to_end(&pod, client.script("c", &pushed.tag, script))
        .await?;
    assert_eq!(
        output.stdout, "/d:\nstays\n\n/hidden:\nnew\nnow a file",
        "{output:?}"
    );
    story.finish().await
}

#[tokio::test]
async fn what_a_layer_says_of_a_file_is_kept() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let long = format!("long/{}", "n".repeat(180));
    let image = Image::busybox().layer(&[
        Entry::file("owned", "x")
            .owner(1234, 4321)
            .mode(0o640)
            .mtime(1_000_000_000),
        Entry::file("setuid", "x").mode(0o4755),
        Entry::file("big-owner", "x").owner(1_000_000, 1_000_001),
        Entry::hard_link("linked", "owned")
            .owner(1234, 4321)
            .mode(0o640)
            .mtime(1_000_000_000),
        Entry::symlink("absolute", "/owned"),
        Entry::fifo("fifo"),
        Entry::char_device("null", 1, 3).mode(0o666),
        Entry::file(&long, "deep"),
        Entry::file("attributed", "x").xattr("user.berth", b"value"),
    ]);
    let pushed = image.push(&story.registry, "metadata:1").await?;
    client.pull(&pushed.tag).await?;
    let pod = client.run_pod("metadata").await?;
    let script = "stat -c '%n %u %g %a %Y %h' /owned; stat -c '%u %g' /big-owner; stat -c %a /setuid; \
        readlink /absolute; stat -c %F /fifo; stat -c '%F %t %T' /null; cat /long/*";
    let output = client
        .run_to_end(&pod, client.script("c", &pushed.tag, script))
        .await?;
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "/owned 1234 4321 640 1000000000 2",
            "1000000 1000001",
            "4755",
            "/owned",
            "fifo",
            "character special file 1 3",
            "deep"
        ],
        "{output:?}"
    );
    story.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_at_the_same_time_fetch_each_layer_once() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let big = vec![7; 4 << 20];
    let image = Image::busybox().layer(&[Entry::file("big", big)]);
    let pushed = image.push(&story.registry, "once:1").await?;
    let other = image
        .layer(&[Entry::file("more", "x")])
        .push(&story.registry, "once:2")
        .await?;
    let proxy = Proxy::start(&story.registry, Fault::None).await?;
    let names = [&pushed.tag, &other.tag, &pushed.tag, &other.tag].map(|tag| proxy.instead(tag));
    let pulls = names.map(|name| {
        let client = client.clone();
        tokio::spawn(async move { client.pull(&name).await })
    });
    for pull in pulls {
        pull.await??;
    }
    if !story.node.is_peer() {
        assert_eq!(proxy.most_fetches_of_a_blob(), 1);
    }
    for name in [&pushed.tag, &other.tag] {
        client.remove_image(&proxy.instead(name)).await?;
    }
    story.finish().await
}

#[tokio::test]
async fn a_mirror_stands_in_and_short_names_mean_docker_io() -> Result {
    let registry = Registry::start().await?;
    let mut node = e2e::Node::prepare("")?;
    for host in ["docker.io", "registry.example"] {
        let folder = node.path().join("certs.d").join(host);
        std::fs::create_dir(&folder)?;
        let url = registry.url();
        std::fs::write(
            folder.join("hosts.toml"),
            format!("server = \"{url}\"\n[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"),
        )?;
    }
    if node.is_peer() {
        eprintln!("skipped: the mirrors of another server are not ours to set");
        return Ok(());
    }
    node.launch().await?;
    let client = node.client().await?;
    let one = Image::busybox().push(&registry, "library/short:1").await?;
    let two = Image::busybox().push(&registry, "team/app:2").await?;
    assert_eq!(client.pull("short:1").await?, one.id);
    assert_eq!(client.pull("registry.example/team/app:2").await?, two.id);
    let found = client.image(&one.id).await?.expect("there");
    let mut tags = found.repo_tags;
    tags.sort();
    assert_eq!(tags, ["docker.io/library/short:1", "registry.example/team/app:2"]);
    assert!(client.image("docker.io/library/short:1").await?.is_some());
    assert!(client.image("short:1").await?.is_some());
    client.remove_image(&one.id).await?;
    node.finish().await
}
