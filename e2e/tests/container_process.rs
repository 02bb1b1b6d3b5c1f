//! What runs, as whom, with which surroundings: image and request merged.

use e2e::{Image, Result, Story, client::security, cri};
use serde_json::json;

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn entrypoint_and_command_follow_the_rules_of_images() -> Result {
    let mut story = Story::begin().await?;
    let image = Image::busybox().config(json!({"Entrypoint": ["echo", "entry"], "Cmd": ["cmd"]}));
    let image = story.image(image, "entry:1").await?;
    let client = &story.client;
    let pod = client.run_pod("entry").await?;
    let cases: [(&[&str], &[&str], &str); 4] = [
        (&[], &[], "entry cmd"),
        (&[], &["arg"], "entry arg"),
        (&["echo", "own"], &[], "own"),
        (&["echo", "own"], &["arg"], "own arg"),
    ];
    for (number, (command, args, expected)) in cases.into_iter().enumerate() {
        let mut config = client.plain(&format!("c{number}"), &image.tag);
        (config.command, config.args) = (words(command), words(args));
        let output = client.run_to_end(&pod, config).await?;
        assert_eq!(output.stdout.trim_end(), expected);
    }
    story.finish().await
}

#[tokio::test]
async fn environment_and_folder() -> Result {
    let mut story = Story::begin().await?;
    let image = Image::busybox()
        .config(json!({"Env": ["PATH=/bin", "A=image", "B=image"], "WorkingDir": "/made/here"}));
    let image = story.image(image, "env:1").await?;
    let client = &story.client;
    let pod = client.run_pod("env").await?;
    let mut config = client.script("c", &image.tag, "pwd; echo $A $B $C $HOSTNAME; stat -c '%u %a' .");
    config.envs = [("B", "own"), ("C", "x=y z")]
        .map(|(key, value)| cri::KeyValue {
            key: key.into(),
            value: value.into(),
        })
        .to_vec();
    let output = client.run_to_end(&pod, config).await?;
    assert_eq!(
        output.stdout, "/made/here\nimage own x=y z env\n0 755\n",
        "{output:?}"
    );
    let mut config = client.script("d", &image.tag, "pwd");
    config.working_dir = "/other/place".into();
    assert_eq!(client.run_to_end(&pod, config).await?.stdout, "/other/place\n");
    story.finish().await
}

#[tokio::test]
async fn users_are_looked_up_in_the_image() -> Result {
    let mut story = Story::begin().await?;
    let image = Image::busybox().config(json!({"User": "web"}));
    let image = story.image(image, "user:1").await?;
    let client = &story.client;
    let pod = client.run_pod("user").await?;
    let mut number = 0;
    let mut id = async |change: &dyn Fn(&mut cri::LinuxContainerSecurityContext)| -> Result<String> {
        number += 1;
        let mut config = client.script(
            &format!("c{number}"),
            &image.tag,
            "id -u; id -g; id -G; echo $HOME",
        );
        change(security(&mut config));
        let output = client.run_to_end(&pod, config).await?;
        Ok(output.stdout.replace('\n', "|"))
    };
    let value = |value| Some(cri::Int64Value { value });
    // The image's user, with the groups of its own file.
    if !story.node.is_peer() {
        assert_eq!(id(&|_| {}).await?, "1001|1002|1002 2001 2002|/home/web|");
    }
    assert_eq!(id(&|s| s.run_as_user = value(0)).await?, "0|0|0|/root|");
    assert_eq!(
        id(&|s| s.run_as_username = "nobody".into()).await?,
        "65534|65534|65534 2002|/|"
    );
    let both = |s: &mut cri::LinuxContainerSecurityContext| {
        s.run_as_user = value(1001);
        s.run_as_group = value(55);
    };
    assert_eq!(id(&both).await?, "1001|55|55 2001 2002|/home/web|");
    let more = |s: &mut cri::LinuxContainerSecurityContext| {
        s.run_as_user = value(7);
        s.run_as_group = value(8);
        s.supplemental_groups = vec![77, 78];
    };
    assert_eq!(id(&more).await?, "7|8|8 77 78|/|");
    if !story.node.is_peer() {
        let strict = |s: &mut cri::LinuxContainerSecurityContext| {
            s.run_as_user = value(1001);
            s.supplemental_groups = vec![77];
            s.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict.into();
        };
        assert_eq!(id(&strict).await?, "1001|1002|1002 77|/home/web|");
    }
    story.finish().await
}

#[tokio::test]
async fn the_status_tells_the_user_and_the_image() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("told").await?;
    let mut config = story.script("c", "sleep 1000");
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 1001 });
    let id = client.run(&pod, config).await?;
    let status = client.status(&id).await?;
    // The id, or a name that ends with the digest.
    let digest = story
        .image
        .digest
        .split_once('@')
        .map_or("", |(_, digest)| digest);
    let told = &status.image_ref;
    assert!(*told == story.image.id || told.ends_with(digest), "{told}");
    if !story.node.is_peer() {
        assert_eq!(status.image_id, story.image.id);
        let user = status.user.and_then(|user| user.linux).expect("told");
        assert_eq!((user.uid, user.gid), (1001, 1002));
        assert_eq!(user.supplemental_groups, [1002, 2001, 2002]);
    }
    story.finish().await
}

#[tokio::test]
async fn input_comes_when_it_is_asked_for() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("input").await?;
    // Without stdin the end of the input is there at once.
    let output = client
        .run_to_end(&pod, story.script("none", "cat; echo end"))
        .await?;
    assert_eq!(output.stdout, "end\n");
    let mut config = story.script("open", "cat; echo end");
    config.stdin = true;
    let id = client.run(&pod, config).await?;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(
        client.status(&id).await?.state(),
        cri::ContainerState::ContainerRunning
    );
    let mut config = story.script("terminal", "test -t 0 && test -t 1 && echo yes");
    config.tty = true;
    let output = client.run_to_end(&pod, config).await?;
    assert_eq!(output.stdout.trim_end(), "yes");
    story.finish().await
}
