//! UpdatePodSandboxResources.

use e2e::{Result, Story, cri};

#[tokio::test]
async fn resources_of_a_pod_are_recorded_for_good() -> Result {
    let mut story = Story::begin().await?;
    let pod = story.client.run_pod("resources").await?;
    let memory = |bytes: i64| cri::LinuxContainerResources {
        memory_limit_in_bytes: bytes,
        cpu_shares: 512,
        ..Default::default()
    };
    let update = |id: &str| cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.into(),
        overhead: Some(memory(1 << 20)),
        resources: Some(memory(64 << 20)),
    };
    for _ in 0..2 {
        story
            .client
            .runtime
            .clone()
            .update_pod_sandbox_resources(update(&pod.id))
            .await?;
    }
    let absent = story
        .client
        .runtime
        .clone()
        .update_pod_sandbox_resources(update("absent"))
        .await;
    assert_eq!(absent.unwrap_err().code(), tonic::Code::NotFound);
    if !story.node.is_peer() {
        story.node.kill()?;
        story.node.launch().await?;
        story.client = story.node.client().await?;
    }
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: true,
    };
    let told = story
        .client
        .runtime
        .clone()
        .pod_sandbox_status(request)
        .await?
        .into_inner();
    let info: serde_json::Value = serde_json::from_str(&told.info["info"])?;
    assert_eq!(info["overhead"]["memoryLimitInBytes"], 1 << 20, "{info}");
    assert_eq!(info["resources"]["memoryLimitInBytes"], 64 << 20, "{info}");
    assert_eq!(info["resources"]["cpuShares"], 512, "{info}");
    story.finish().await
}
