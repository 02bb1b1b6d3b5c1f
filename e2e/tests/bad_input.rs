//! Requests that are wrong: the right code, the object, and nothing left behind.

use e2e::{
    Result, Story,
    client::{Pod, security, spec},
    cri, handler, machine,
};
use tonic::Code;

const FOLDER_OVER_FILE: &str = "only a folder goes over a folder";
const UNKNOWN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn unknown_ids_are_not_found_and_named() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (_, real) = story.sleeper("real").await?;
    let gone = Pod {
        id: UNKNOWN.into(),
        config: client.pod_config("gone"),
    };
    let mut errors = vec![
        client.pod_status(UNKNOWN).await.unwrap_err(),
        client.status(UNKNOWN).await.unwrap_err(),
        client.start(UNKNOWN).await.unwrap_err(),
        client.exec(UNKNOWN, &["true"]).await.unwrap_err(),
        client.create(&gone, story.script("c", "true")).await.unwrap_err(),
    ];
    let request = cri::UpdateContainerResourcesRequest {
        container_id: UNKNOWN.into(),
        linux: Some(Default::default()),
        ..Default::default()
    };
    errors.push(
        client
            .runtime
            .clone()
            .update_container_resources(request)
            .await
            .unwrap_err(),
    );
    let request = cri::ReopenContainerLogRequest {
        container_id: UNKNOWN.into(),
    };
    errors.push(
        client
            .runtime
            .clone()
            .reopen_container_log(request)
            .await
            .unwrap_err(),
    );
    if !story.node.is_peer() {
        for error in errors {
            assert_eq!(error.code(), Code::NotFound, "{error}");
            assert!(error.message().contains(UNKNOWN), "{error}");
        }
    }
    // Stop and remove of what is not there are done.
    if !story.node.is_peer() {
        client.stop(UNKNOWN, 0).await?;
    }
    client.remove(UNKNOWN).await?;
    client.stop_pod(UNKNOWN).await?;
    client.remove_pod(UNKNOWN).await?;
    assert_eq!(client.sh(&real, "echo here").await?, "here");
    story.finish().await
}

#[tokio::test]
async fn references_that_are_none() -> Result {
    let story = Story::begin().await?;
    for name in [
        "",
        "registry.example/UPPER/case",
        "a b",
        "host:5000/",
        "x@sha256:12",
        "x:tag:tag",
        "http://host/x",
        "../x",
    ] {
        let error = story.client.pull(name).await.unwrap_err();
        if !story.node.is_peer() {
            assert_eq!(error.code(), Code::InvalidArgument, "{name:?}: {error}");
            assert!(error.message().contains(name), "{name:?}: {error}");
        }
    }
    let request = cri::PullImageRequest::default();
    assert!(story.client.images.clone().pull_image(request).await.is_err());
    story.finish().await
}

#[tokio::test]
async fn pods_that_cannot_be() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: the words and codes of others differ");
        return story.finish().await;
    }
    let client = &story.client;
    let request = cri::RunPodSandboxRequest {
        config: Some(client.pod_config("handler")),
        runtime_handler: "no-such-handler".into(),
    };
    let error = client.runtime.clone().run_pod_sandbox(request).await.unwrap_err();
    assert!(
        matches!(error.code(), Code::InvalidArgument | Code::NotFound),
        "{error}"
    );
    assert!(error.message().contains("no-such-handler"), "{error}");

    let refused = async |change: &dyn Fn(&mut cri::PodSandboxConfig)| -> Result {
        let mut config = client.pod_config("refused");
        change(&mut config);
        let error = client.run_pod_with(config).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        Ok(())
    };
    refused(&|c| c.metadata = None).await?;
    refused(&|c| c.metadata.get_or_insert_default().name.clear()).await?;
    refused(&|c| c.hostname = "a/b".into()).await?;
    refused(&|c| c.hostname = "x".repeat(65)).await?;
    refused(&|c| {
        let linux = c.linux.get_or_insert_default();
        linux.sysctls.insert("net.ipv4.no_such_key".into(), "1".into());
    })
    .await?;
    let request = cri::RunPodSandboxRequest::default();
    let error = client.runtime.clone().run_pod_sandbox(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(client.pods(None).await?.is_empty());
    story.finish().await
}

#[tokio::test]
async fn containers_that_cannot_be() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: the words and codes of others differ");
        return story.finish().await;
    }
    let client = &story.client;
    let pod = client.run_pod("refusing").await?;
    let refused = async |word: &str, change: &dyn Fn(&mut cri::ContainerConfig)| -> Result<Code> {
        let mut config = story.script("refused", "true");
        change(&mut config);
        let error = client.create(&pod, config).await.unwrap_err();
        if word == FOLDER_OVER_FILE
            && let Some(runtime) = handler()
        {
            eprintln!("the words of {runtime} for it: {error}");
            return Ok(Code::InvalidArgument);
        }
        assert!(error.message().contains(word), "{word}: {error}");
        Ok(error.code())
    };
    let mount = |container: &str, host: &str| cri::Mount {
        container_path: container.into(),
        host_path: host.into(),
        ..Default::default()
    };
    let wrong = Code::InvalidArgument;
    let image = async || refused("nothing:1", &|c| c.image = Some(spec("127.0.0.1:1/nothing:1"))).await;
    assert_eq!(image().await?, Code::NotFound);
    assert_eq!(
        refused("relative/host", &|c| c.mounts =
            vec![mount("/m", "relative/host")])
        .await?,
        wrong
    );
    let file_below = |c: &mut cri::ContainerConfig| c.mounts = vec![mount("/m", "/etc/passwd/below")];
    refused("/etc/passwd/below", &file_below).await?;
    let group_alone = |c: &mut cri::ContainerConfig| {
        security(c).run_as_group = Some(cri::Int64Value { value: 5 });
    };
    assert_eq!(refused("group", &group_alone).await?, wrong);
    refused("no-such-user", &|c| {
        security(c).run_as_username = "no-such-user".into()
    })
    .await?;
    let capability = |c: &mut cri::ContainerConfig| {
        security(c).capabilities.get_or_insert_default().add_capabilities = vec!["NO_SUCH_CAP".into()];
    };
    assert_eq!(refused("NO_SUCH_CAP", &capability).await?, wrong);
    let profile = |c: &mut cri::ContainerConfig| {
        security(c).seccomp = Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::Localhost.into(),
            localhost_ref: "/no/such/profile.json".into(),
        });
    };
    refused("/no/such/profile.json", &profile).await?;
    assert_eq!(refused("metadata", &|c| c.metadata = None).await?, wrong);
    // What only the kernel can refuse.
    let folder = |c: &mut cri::ContainerConfig| c.mounts = vec![mount("/etc/passwd", "/etc")];
    assert_eq!(refused(FOLDER_OVER_FILE, &folder).await?, wrong);
    let cpus = |c: &mut cri::ContainerConfig| {
        let linux = c.linux.get_or_insert_default();
        linux.resources.get_or_insert_default().cpuset_cpus = "4000".into();
    };
    let code = if machine::has_controller("cpuset") {
        wrong
    } else {
        Code::FailedPrecondition
    };
    assert_eq!(refused("cpuset.cpus", &cpus).await?, code);
    assert!(client.containers(None).await?.is_empty());
    story.finish().await
}

#[tokio::test]
async fn a_command_that_is_not_there() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("missing").await?;
    for (name, program, code) in [
        ("missing", "/no/such/program", 127),
        ("denied", "/etc/passwd", 126),
    ] {
        let mut config = story.script(name, "");
        config.command = vec![program.into()];
        let (id, error) = client.run_broken(&pod, config).await?;
        assert!(error.message().contains(program), "{error}");
        let Some(id) = id else {
            assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
            continue;
        };
        let status = client.status(&id).await?;
        assert_eq!(status.state(), cri::ContainerState::ContainerExited);
        if !story.node.is_peer() {
            assert!(status.exit_code == code || status.exit_code == 128, "{status:?}");
            assert_eq!(status.reason, "StartError");
            assert!(status.message.contains(program), "{status:?}");
        }
        client.remove(&id).await?;
    }
    story.finish().await
}
