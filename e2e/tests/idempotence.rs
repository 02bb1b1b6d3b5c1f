//! Twice, at once, and again after a lost answer: the result is the same.

use std::time::Duration;

use e2e::{Result, Story, cri};

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
