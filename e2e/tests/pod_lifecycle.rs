//! A pod lives and dies: every state a kubelet sees on the way.

use e2e::{Result, Story, client::log_lines, cri};

#[tokio::test]
async fn a_pod_lives_and_dies() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut config = client.pod_config("life");
    config.annotations.insert("a/b".into(), "c d\n".into());
    let pod = client.run_pod_with(config.clone()).await?;
    assert_eq!(pod.id.len(), 64, "{}", pod.id);

    let status = client.pod_status(&pod.id).await?;
    assert_eq!(status.state(), cri::PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, config.metadata);
    assert_eq!(
        (status.labels, status.annotations),
        (config.labels, config.annotations)
    );

    let id = client
        .create(&pod, story.script("main", "echo hello; sleep 1000"))
        .await?;
    let status = client.status(&id).await?;
    assert_eq!(status.state(), cri::ContainerState::ContainerCreated);
    assert!(status.created_at > 0 && status.started_at == 0 && status.finished_at == 0);

    client.start(&id).await?;
    let status = client.status(&id).await?;
    assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
    assert!(status.started_at >= status.created_at);
    assert_eq!(status.log_path, format!("{}/main.log", pod.config.log_directory));
    assert_eq!(client.sh(&id, "hostname").await?, "life");

    client.stop(&id, 0).await?;
    let status = client.status(&id).await?;
    assert_eq!(status.state(), cri::ContainerState::ContainerExited);
    assert_eq!((status.exit_code, &*status.reason), (137, "Error"));
    assert!(status.finished_at >= status.started_at);
    assert_eq!(log_lines(&status.log_path)?[0].content, "hello");

    client.remove(&id).await?;
    assert!(client.containers(None).await?.is_empty());
    client.stop_pod(&pod.id).await?;
    let status = client.pod_status(&pod.id).await?;
    assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
    client.remove_pod(&pod.id).await?;
    assert!(client.pods(None).await?.is_empty());
    let error = client.pod_status(&pod.id).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
    story.finish().await
}

#[tokio::test]
async fn a_pod_takes_its_containers_along() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (pod, id) = story.sleeper("along").await?;
    let created = client.create(&pod, story.script("never-started", "true")).await?;
    client.stop_pod(&pod.id).await?;
    assert_eq!(
        client.status(&id).await?.state(),
        cri::ContainerState::ContainerExited
    );
    client.remove_pod(&pod.id).await?;
    for id in [id, created] {
        assert_eq!(
            client.status(&id).await.unwrap_err().code(),
            tonic::Code::NotFound
        );
    }
    story.finish().await
}

#[tokio::test]
async fn the_node_tells_what_it_is() -> Result {
    let story = Story::begin().await?;
    let mut runtime = story.client.runtime.clone();
    let version = runtime
        .version(cri::VersionRequest::default())
        .await?
        .into_inner();
    assert_eq!(version.runtime_api_version, "v1");
    let status = runtime
        .status(cri::StatusRequest { verbose: true })
        .await?
        .into_inner();
    for condition in status.status.unwrap_or_default().conditions {
        assert!(condition.status, "{condition:?}");
    }
    assert!(!status.info.is_empty());
    story.finish().await
}
