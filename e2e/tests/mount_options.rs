//! `Mount.mount_options`, and the feature that announces them.

use std::fs;

use e2e::{Result, Story, cri};

#[tokio::test]
async fn options_are_applied_and_wrong_ones_refused() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let told = client
        .runtime
        .clone()
        .status(cri::StatusRequest::default())
        .await?
        .into_inner();
    assert!(told.features.is_some_and(|features| features.mount_options));
    let host = tempfile::tempdir()?;
    fs::copy("/bin/busybox", host.path().join("busybox"))?;
    let mount = |target: &str, options: &[&str]| cri::Mount {
        host_path: host.path().to_string_lossy().into_owned(),
        container_path: target.into(),
        mount_options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    };
    let pod = client.run_pod("options").await?;
    let all = [
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
        "nodiratime",
        "nosymfollow",
    ];
    let mut config = story.script("c", "sleep 1000");
    config.mounts = vec![
        mount("/plain", &[]),
        mount("/noexec", &["noexec"]),
        mount("/all", &all),
        mount("/strict", &["strictatime"]),
        mount("/relative", &["relatime"]),
    ];
    let id = match client.run(&pod, config).await {
        Err(error) if e2e::handler().as_deref() == Some("crun") => {
            eprintln!("skipped: an option that crun 1.8 would pass over is refused: {error}");
            assert_eq!(error.code(), tonic::Code::FailedPrecondition);
            return story.finish().await;
        }
        made => made?,
    };
    client.sh(&id, "/plain/busybox true").await?;
    let output = client.exec(&id, &["sh", "-c", "/noexec/busybox true"]).await?;
    assert_eq!(output.code, 126, "{output:?}");
    let table = client.sh(&id, "cat /proc/self/mounts").await?;
    let options = |target: &str| -> Vec<String> {
        let line = table
            .lines()
            .find(|line| line.split(' ').nth(1) == Some(target))
            .unwrap();
        line.split(' ')
            .nth(3)
            .unwrap()
            .split(',')
            .map(str::to_owned)
            .collect()
    };
    for option in all {
        assert!(options("/all").contains(&option.to_owned()), "{option}: {table}");
    }
    assert!(options("/relative").contains(&"relatime".to_owned()), "{table}");
    let strict = options("/strict");
    assert!(
        !strict.iter().any(|o| o == "relatime" || o == "noatime"),
        "{table}"
    );
    for (options, reason) in [
        (&["exec"][..], "\"exec\" is none of"),
        (&["rw"], "\"rw\" is none of"),
        (&["noatime", "strictatime"], "contradicts"),
        (&[""], "is none of"),
    ] {
        let mut config = story.script("refused", "true");
        config.mounts = vec![mount("/m", options)];
        let error = client.create(&pod, config).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(error.message().contains(reason), "{error}");
    }
    story.finish().await
}
