//! The streamed lists: every item once, the same ones as in the lists, then the end.

use std::collections::BTreeSet;

use e2e::{
    Image, Result, Story,
    client::{OWNER, spec},
    cri,
    tar::Entry,
};
use tonic::{Status, Streaming};

/// All messages of a stream that ends.
async fn all<T>(mut stream: Streaming<T>) -> Result<Vec<T>, Status> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

fn once(ids: Vec<String>) -> BTreeSet<String> {
    let set: BTreeSet<String> = ids.iter().cloned().collect();
    assert_eq!(set.len(), ids.len(), "an item came twice: {ids:?}");
    set
}

#[tokio::test]
async fn every_item_comes_once_and_the_stream_ends() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut runtime = client.runtime.clone();
    let nothing = all(runtime
        .stream_containers(cri::StreamContainersRequest::default())
        .await?
        .into_inner())
    .await?;
    assert!(nothing.is_empty(), "{nothing:?}");

    let (mut pods, mut containers) = (BTreeSet::new(), BTreeSet::new());
    // Annotations of 200 KiB each, so that one message does not hold them all.
    let large = "x".repeat(200 << 10);
    for number in 0..8 {
        let mut config = client.pod_config(&format!("streamed-{number}"));
        config.annotations.insert("large".into(), large.clone());
        let pod = client.run_pod_with(config).await?;
        let mut config = story.script("c", "exec sleep 1000");
        config.annotations.insert("large".into(), large.clone());
        config.labels.insert("number".into(), number.to_string());
        containers.insert(client.run(&pod, config).await?);
        pods.insert(pod.id);
    }

    let messages = all(runtime
        .stream_pod_sandboxes(cri::StreamPodSandboxesRequest::default())
        .await?
        .into_inner())
    .await?;
    assert!(messages.len() > 1, "one message for more than a MiB");
    assert!(messages.iter().all(|message| !message.pod_sandboxes.is_empty()));
    let ids = messages
        .into_iter()
        .flat_map(|m| m.pod_sandboxes)
        .map(|pod| pod.id)
        .collect();
    assert_eq!(once(ids), pods);

    let messages = all(runtime
        .stream_containers(cri::StreamContainersRequest::default())
        .await?
        .into_inner())
    .await?;
    let ids = messages
        .into_iter()
        .flat_map(|m| m.containers)
        .map(|c| c.id)
        .collect();
    assert_eq!(once(ids), containers);
    let filter = cri::ContainerFilter {
        label_selector: [("number".to_owned(), "3".to_owned())].into(),
        ..Default::default()
    };
    let request = cri::StreamContainersRequest { filter: Some(filter) };
    let messages = all(runtime.stream_containers(request).await?.into_inner()).await?;
    assert_eq!(messages.into_iter().flat_map(|m| m.containers).count(), 1);

    let messages = all(runtime
        .stream_container_stats(cri::StreamContainerStatsRequest::default())
        .await?
        .into_inner())
    .await?;
    let stats = messages.into_iter().flat_map(|m| m.container_stats);
    let ids = stats.map(|s| s.attributes.expect("attributes").id).collect();
    assert_eq!(once(ids), containers);

    let messages = all(runtime
        .stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest::default())
        .await?
        .into_inner())
    .await?;
    let stats = messages.into_iter().flat_map(|m| m.pod_sandbox_stats);
    let ids = stats.map(|s| s.attributes.expect("attributes").id).collect();
    assert_eq!(once(ids), pods);

    let messages = all(runtime
        .stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest::default())
        .await?
        .into_inner())
    .await?;
    let metrics = messages.into_iter().flat_map(|m| m.pod_sandbox_metrics);
    assert_eq!(once(metrics.map(|m| m.pod_sandbox_id).collect()), pods);

    let stream = client
        .images
        .clone()
        .stream_images(cri::StreamImagesRequest::default())
        .await?;
    let messages = all(stream.into_inner()).await?;
    let ids = once(
        messages
            .into_iter()
            .flat_map(|m| m.images)
            .map(|image| image.id)
            .collect(),
    );
    let listed = client
        .image_list()
        .await?
        .into_iter()
        .map(|image| image.id)
        .collect();
    assert_eq!(ids, listed);

    // The owner's label is on all of it.
    assert!(
        client
            .pods(None)
            .await?
            .iter()
            .all(|pod| pod.labels.contains_key(OWNER))
    );
    story.finish().await
}

/// The filters of the streams are those of the lists.
#[tokio::test]
async fn filters_choose_what_is_streamed() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: peers do not filter all of these");
        return story.finish().await;
    }
    let other = story
        .image(Image::busybox().layer(&[Entry::file("x", "")]), "other:1")
        .await?;
    let client = &story.client;
    let mut runtime = client.runtime.clone();
    let (first, one) = story.sleeper("first").await?;
    let (second, two) = story.sleeper("second").await?;
    client.stop(&two, 0).await?;
    client.stop_pod(&second.id).await?;

    let filter = Some(cri::PodSandboxFilter {
        state: Some(cri::PodSandboxStateValue {
            state: cri::PodSandboxState::SandboxNotready.into(),
        }),
        ..Default::default()
    });
    let request = cri::StreamPodSandboxesRequest { filter };
    let messages = all(runtime.stream_pod_sandboxes(request).await?.into_inner()).await?;
    let pods = messages.into_iter().flat_map(|m| m.pod_sandboxes);
    assert_eq!(
        pods.map(|pod| pod.id).collect::<Vec<_>>(),
        std::slice::from_ref(&second.id)
    );

    let filter = Some(cri::ContainerFilter {
        pod_sandbox_id: first.id.clone(),
        ..Default::default()
    });
    let request = cri::StreamContainersRequest { filter };
    let messages = all(runtime.stream_containers(request).await?.into_inner()).await?;
    let containers = messages.into_iter().flat_map(|m| m.containers);
    assert_eq!(
        containers.map(|c| c.id).collect::<Vec<_>>(),
        std::slice::from_ref(&one)
    );

    let filter = Some(cri::ContainerStatsFilter {
        id: two.clone(),
        ..Default::default()
    });
    let request = cri::StreamContainerStatsRequest { filter };
    let messages = all(runtime.stream_container_stats(request).await?.into_inner()).await?;
    let stats = messages.into_iter().flat_map(|m| m.container_stats);
    let ids: Vec<_> = stats.filter_map(|s| Some(s.attributes?.id)).collect();
    assert_eq!(ids, [two]);

    for (id, count) in [(&first.id, 1), (&second.id, 0)] {
        let filter = Some(cri::PodSandboxStatsFilter {
            id: id.clone(),
            ..Default::default()
        });
        let request = cri::StreamPodSandboxStatsRequest { filter };
        let messages = all(runtime.stream_pod_sandbox_stats(request).await?.into_inner()).await?;
        let stats = messages.into_iter().flat_map(|m| m.pod_sandbox_stats);
        assert_eq!(stats.count(), count, "only pods that are ready");
    }

    let filter = Some(cri::ImageFilter {
        image: Some(spec(&other.tag)),
    });
    let request = cri::StreamImagesRequest { filter };
    let stream = client.images.clone().stream_images(request).await?;
    let images = all(stream.into_inner()).await?.into_iter().flat_map(|m| m.images);
    assert_eq!(images.map(|image| image.id).collect::<Vec<_>>(), [other.id]);
    story.finish().await
}
