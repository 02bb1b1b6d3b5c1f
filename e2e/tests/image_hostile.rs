//! Images that mean harm: what they ask for is refused by name, or is harmless; the
//! node goes on, and nothing is left.

use e2e::{Image, Result, Story, images::Pushed, tar::Entry};
use serde_json::{Value, json};
use tonic::Code;

/// An image whose users file is something else; its user is looked up in it.
fn users(entries: &[Entry]) -> Image {
    Image::busybox().layer(entries).config(json!({"User": "web"}))
}

fn config(keys: Value) -> Image {
    Image::busybox().config(keys)
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name() -> Result {
    let mut story = Story::begin().await?;
    let pod = story.client.run_pod("pod").await?;
    let odd = "web:x:4294967296:0::/:/bin/sh\nhuge:x:99999999999999999999:0::/:\n";
    let many: String = (0..70_000).map(|gid| format!("g{gid}:x:{gid}:web\n")).collect();
    let cases: Vec<(&str, Image, &str)> = vec![
        // A gigabyte is a megabyte in gzip; so is what is here, in less memory.
        (
            "large",
            users(&[Entry::file("etc/passwd", vec![b'\n'; 32 << 20])]),
            "/etc/passwd",
        ),
        ("fifo", users(&[Entry::fifo("etc/passwd")]), "/etc/passwd"),
        ("group", users(&[Entry::fifo("etc/group")]), "/etc/group"),
        (
            "zero",
            users(&[Entry::char_device("etc/passwd", 1, 5)]),
            "/etc/passwd",
        ),
        (
            "folder",
            users(&[Entry::whiteout("etc/passwd"), Entry::folder("etc/passwd")]),
            "/etc/passwd",
        ),
        (
            "loop",
            users(&[Entry::symlink("etc/passwd", "passwd")]),
            "/etc/passwd",
        ),
        // The node has a user of that name in its own file, or none: it is not asked.
        (
            "host",
            users(&[Entry::symlink(
                "etc/passwd",
                "../../../../../../../proc/1/root/etc/passwd",
            )]),
            "web",
        ),
        // CVE-2024-40635.
        ("overflow", users(&[Entry::file("etc/passwd", odd)]), "web"),
        ("groups", users(&[Entry::file("etc/group", many)]), "65536 groups"),
        ("uid", config(json!({"User": "4294967296"})), "4294967296"),
        ("negative", config(json!({"User": "-1"})), "-1"),
        ("gid", config(json!({"User": "0:4294967297"})), "4294967297"),
        // The class of CVE-2026-15809: a line break that becomes a line of a file.
        (
            "lines",
            config(json!({"User": "web\nroot:x:0:0::/:/bin/sh"})),
            "more than one colon",
        ),
        ("line", config(json!({"User": "web\nroot"})), "web\\nroot"),
        ("nul", config(json!({"Entrypoint": ["sh", "a\u{0}b"]})), "NUL"),
        (
            "env-nul",
            config(json!({"Env": ["A=b\u{0}c"]})),
            "environment entry",
        ),
        ("env-key", config(json!({"Env": ["=value"]})), "environment entry"),
        ("folder-nul", config(json!({"WorkingDir": "/a\u{0}"})), "NUL"),
    ];
    for (name, image, words) in cases {
        let pushed = story.image(image, &format!("{name}:1")).await?;
        let config = story.client.plain(name, &pushed.tag);
        let error = story.client.create(&pod, config).await.expect_err(name);
        if !story.node.is_peer() {
            let fault = [Code::InvalidArgument, Code::FailedPrecondition, Code::Internal];
            assert!(fault.contains(&error.code()), "{name}: {error}");
            assert!(error.message().contains(words), "{name}: {error}");
        }
        assert!(
            story.client.containers(None).await?.is_empty(),
            "{name} left a container"
        );
    }
    story.finish().await
}

#[tokio::test]
async fn what_is_odd_stays_in_the_container() -> Result {
    let mut story = Story::begin().await?;
    let hosts = std::fs::read("/etc/passwd")?;
    let run = async |story: &Story, name: &str, image: &Pushed, script: &str| -> Result<String> {
        let pod = story.client.run_pod(name).await?;
        let output = story
            .client
            .run_to_end(&pod, story.client.script(name, &image.tag, script))
            .await?;
        Ok(output.stdout)
    };
    // A home of two lines is one variable; a name without "=" takes one away.
    let image = config(json!({"Env": ["PATH=/bin", "HOME=/a\nroot:x:0:0", "PATH2", "E="], "User": "nobody"}));
    let image = story.image(image, "home:1").await?;
    let said = run(
        &story,
        "home",
        &image,
        "echo \"[$HOME]\"; env | grep -c PATH2; id -u",
    )
    .await?;
    assert_eq!(said, "[/a\nroot:x:0:0]\n0\n65534\n");
    // Names, links and whiteouts that lead out end at the root of the layer.
    let layer = [
        Entry::symlink("out", "../../../../../../../../etc"),
        Entry::file("out/berth-e2e-escaped", "x"),
        Entry::file("../../../../../../../etc/berth-e2e-escaped2", "y"),
        Entry::hard_link("linked", "/etc/berth-e2e-escaped2"),
        Entry::file("out/.wh.passwd", ""),
    ];
    let image = story.image(Image::busybox().layer(&layer), "layer:1").await?;
    let said = run(
        &story,
        "layer",
        &image,
        "cat /etc/berth-e2e-escaped /linked; test -e /etc/passwd || echo gone",
    )
    .await?;
    assert_eq!(said, "xygone\n");
    for name in ["berth-e2e-escaped", "berth-e2e-escaped2"] {
        assert!(
            !std::path::Path::new("/etc").join(name).exists(),
            "{name} is on the node"
        );
    }
    assert_eq!(std::fs::read("/etc/passwd")?, hosts);
    // A folder that climbs ends at the root too.
    let image = story
        .image(config(json!({"WorkingDir": "../../../../home"})), "folder:1")
        .await?;
    assert_eq!(run(&story, "folder", &image, "pwd").await?, "/home\n");
    story.finish().await
}
