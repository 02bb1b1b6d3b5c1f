//! Twice, at once, and again after a lost answer: the result is the same.

use std::time::Duration;

use e2e::{Result, Story, client::resources, cri};

#[tokio::test]
async fn stop_and_remove_may_be_said_twice() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (pod, id) = story.sleeper("twice").await?;
    for _ in 0..2 {
        client.stop(&id, 0).await?;
    }
    for _ in 0..2 {
        client.remove(&id).await?;
    }
    for _ in 0..2 {
        client.stop_pod(&pod.id).await?;
    }
    for _ in 0..2 {
        client.remove_pod(&pod.id).await?;
    }
    for _ in 0..2 {
        client.remove_image(&story.image.tag).await?;
    }
    story.finish().await
}

#[tokio::test]
async fn a_repeated_run_joins_the_first() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: others say that the name is reserved");
        return story.finish().await;
    }
    let client = &story.client;
    let config = client.pod_config("joined");
    let runs: Vec<_> = (0..5)
        .map(|_| {
            let (client, config) = (client.clone(), config.clone());
            tokio::spawn(async move { client.run_pod_with(config).await })
        })
        .collect();
    let mut ids = Vec::new();
    for run in runs {
        ids.push(run.await??.id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    // And later, too.
    let pod = client.run_pod_with(config).await?;
    assert_eq!(pod.id, ids[0]);
    let request = story.script("c", "sleep 1000");
    let first = client.create(&pod, request.clone()).await?;
    assert_eq!(client.create(&pod, request).await?, first);
    client.start(&first).await?;
    assert_eq!(client.pods(None).await?.len(), 1);
    story.finish().await
}

#[tokio::test]
async fn a_lost_answer_loses_nothing() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: others say that the name is reserved");
        return story.finish().await;
    }
    let client = &story.client;
    for microseconds in [100, 500, 1_000, 2_000, 5_000, 10_000] {
        let config = client.pod_config(&format!("lost-{microseconds}"));
        let mut request = tonic::Request::new(cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        });
        request.set_timeout(Duration::from_micros(microseconds));
        let _ = client.runtime.clone().run_pod_sandbox(request).await;
        let pod = client.run_pod_with(config).await?;
        assert_eq!(
            client.pod_status(&pod.id).await?.state(),
            cri::PodSandboxState::SandboxReady
        );
    }
    assert_eq!(client.pods(None).await?.len(), 6);
    story.finish().await
}

#[tokio::test]
async fn removals_at_the_same_time() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (pod, id) = story.sleeper("rush").await?;
    let calls: Vec<_> = (0..6)
        .map(|number| {
            let (client, pod, id) = (client.clone(), pod.id.clone(), id.clone());
            tokio::spawn(async move {
                match number % 3 {
                    0 => client.stop(&id, 0).await,
                    1 => client.stop_pod(&pod).await,
                    _ => client.remove(&id).await,
                }
            })
        })
        .collect();
    for call in calls {
        let answer = call.await?;
        assert!(answer.is_ok() || story.node.is_peer(), "{answer:?}");
    }
    let pods: Vec<_> = (0..4)
        .map(|_| {
            let (client, pod) = (client.clone(), pod.id.clone());
            tokio::spawn(async move { client.remove_pod(&pod).await })
        })
        .collect();
    for call in pods {
        call.await??;
    }
    assert!(client.pods(None).await?.is_empty());
    story.finish().await
}

#[tokio::test]
async fn an_update_does_not_make_a_retry_another_request() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: others say that the name is reserved");
        return story.finish().await;
    }
    let memory = |bytes: i64| cri::LinuxContainerResources {
        memory_limit_in_bytes: bytes,
        ..Default::default()
    };
    let mut config = story.client.pod_config("updated");
    let linux = config.linux.get_or_insert_default();
    (linux.overhead, linux.resources) = (Some(memory(1 << 20)), Some(memory(64 << 20)));
    let pod = story.client.run_pod_with(config.clone()).await?;
    let mut request = story.script("c", "exec sleep 1000");
    *resources(&mut request) = memory(64 << 20);
    let id = story.client.create(&pod, request.clone()).await?;
    let update = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        overhead: None,
        resources: Some(memory(96 << 20)),
    };
    let mut runtime = story.client.runtime.clone();
    runtime.update_pod_sandbox_resources(update).await?;
    let update = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(memory(96 << 20)),
        ..Default::default()
    };
    runtime.update_container_resources(update).await?;
    // Also with what a restarted berthd knows.
    for restart in [false, true] {
        if restart {
            story.node.kill()?;
            story.node.launch().await?;
            story.client = story.node.client().await?;
        }
        let client = &story.client;
        assert_eq!(client.run_pod_with(config.clone()).await?.id, pod.id);
        assert_eq!(client.create(&pod, request.clone()).await?, id);
        // Neither does it make another request the same one.
        let mut other = config.clone();
        other.linux.get_or_insert_default().resources = Some(memory(96 << 20));
        let error = client.run_pod_with(other).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::AlreadyExists, "{error}");
        let mut other = request.clone();
        *resources(&mut other) = memory(96 << 20);
        let error = client.create(&pod, other).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::AlreadyExists, "{error}");
        // What is told is what was updated, and of the rest what was asked for.
        let told = client.status(&id).await?.resources.and_then(|r| r.linux);
        assert_eq!(told.unwrap_or_default().memory_limit_in_bytes, 96 << 20);
        let verbose = cri::PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: true,
        };
        let told = client.runtime.clone().pod_sandbox_status(verbose).await?;
        let info: serde_json::Value = serde_json::from_str(&told.into_inner().info["info"])?;
        assert_eq!(info["overhead"]["memoryLimitInBytes"], 1 << 20, "{info}");
        assert_eq!(info["resources"]["memoryLimitInBytes"], 96 << 20, "{info}");
    }
    story.finish().await
}
