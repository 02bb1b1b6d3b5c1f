//! By what pods and containers are told apart: every part of their metadata, and ids.

use std::collections::BTreeSet;

use anyhow::Context;
use e2e::{Client, Result, Story, client::pod_security, cri};

/// A pod on the node's network, for it is made and removed in no time.
fn quick(client: &Client, name: &str) -> cri::PodSandboxConfig {
    let mut config = client.pod_config(name);
    let options = pod_security(&mut config)
        .namespace_options
        .get_or_insert_default();
    options.network = cri::NamespaceMode::Node.into();
    config.hostname.clear();
    config
}

#[tokio::test]
async fn every_part_of_a_pods_metadata_makes_another_pod() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let first = quick(client, "first");
    let mut configs = vec![first.clone()];
    let mut other = |change: &dyn Fn(&mut cri::PodSandboxMetadata)| {
        let mut config = first.clone();
        change(config.metadata.get_or_insert_default());
        configs.push(config);
    };
    other(&|m| m.name = "second".into());
    other(&|m| m.namespace = "another".into());
    other(&|m| m.uid.push('x'));
    other(&|m| m.attempt = 1);
    let mut ids = Vec::new();
    for config in &configs {
        ids.push(client.run_pod_with(config.clone()).await?.id);
    }
    let different: BTreeSet<_> = ids.iter().collect();
    assert_eq!(different.len(), configs.len(), "{ids:?}");
    for (id, config) in ids.iter().zip(&configs) {
        assert_eq!(client.pod_status(id).await?.metadata, config.metadata);
        if !story.node.is_peer() {
            // The same again is the same pod, not a sixth.
            assert_eq!(client.run_pod_with(config.clone()).await?.id, *id);
        }
    }

    // Stop and remove do so to the one that they name.
    let listed = async || -> Result<BTreeSet<(String, bool)>> {
        let all = client.pods(None).await?;
        let ready = |pod: &cri::PodSandbox| pod.state() == cri::PodSandboxState::SandboxReady;
        Ok(all.iter().map(|pod| (pod.id.clone(), ready(pod))).collect())
    };
    let mut expected: BTreeSet<_> = ids.iter().map(|id| (id.clone(), true)).collect();
    client.stop_pod(&ids[2]).await?;
    expected.remove(&(ids[2].clone(), true));
    expected.insert((ids[2].clone(), false));
    assert_eq!(listed().await?, expected);
    client.remove_pod(&ids[2]).await?;
    expected.remove(&(ids[2].clone(), false));
    assert_eq!(listed().await?, expected);
    story.finish().await
}

#[tokio::test]
async fn every_part_of_a_containers_metadata_makes_another_container() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod_with(quick(client, "first")).await?;
    let other = client.run_pod_with(quick(client, "second")).await?;
    let config = |name: &str, attempt: u32| {
        let mut config = story.script(name, "exec sleep 1000");
        config.metadata.get_or_insert_default().attempt = attempt;
        config
    };
    let (a, b) = (config("a", 0), config("b", 0));
    let again = config("a", 1);
    let mut ids = Vec::new();
    for (pod, config) in [(&pod, &a), (&pod, &b), (&pod, &again), (&other, &a)] {
        let id = client.create(pod, config.clone()).await?;
        let status = client.status(&id).await?;
        assert_eq!((&status.id, status.metadata), (&id, config.metadata.clone()));
        ids.push(id);
    }
    let different: BTreeSet<_> = ids.iter().collect();
    assert_eq!(different.len(), 4, "{ids:?}");
    let of = async |pod: &str| -> Result<BTreeSet<String>> {
        let filter = cri::ContainerFilter {
            pod_sandbox_id: pod.into(),
            ..Default::default()
        };
        let all = client.containers(Some(filter)).await?;
        Ok(all.into_iter().map(|container| container.id).collect())
    };
    assert_eq!(of(&pod.id).await?, ids[..3].iter().cloned().collect());
    assert_eq!(of(&other.id).await?, ids[3..].iter().cloned().collect());

    // Start, stop and remove do so to the one that they name.
    use cri::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
    let states = async || -> Result<Vec<cri::ContainerState>> {
        let mut states = Vec::new();
        for id in &ids[..3] {
            states.push(client.status(id).await?.state());
        }
        Ok(states)
    };
    client.start(&ids[1]).await?;
    client.start(&ids[2]).await?;
    assert_eq!(
        states().await?,
        [ContainerCreated, ContainerRunning, ContainerRunning]
    );
    client.stop(&ids[2], 0).await?;
    assert_eq!(
        states().await?,
        [ContainerCreated, ContainerRunning, ContainerExited]
    );
    client.remove(&ids[0]).await?;
    assert_eq!(of(&pod.id).await?, ids[1..3].iter().cloned().collect());
    story.finish().await
}

/// The kubelet gives the pod's request again with every container. It is the one that
/// the pod was made with: what counts is that.
#[tokio::test]
async fn a_pod_is_as_it_was_made_whatever_its_containers_say() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: others take the folder of the logs from there");
        return story.finish().await;
    }
    let client = &story.client;
    let pod = client.run_pod("made").await?;
    let mut told = pod.clone();
    told.config = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "else".into(),
            ..Default::default()
        }),
        hostname: "else".into(),
        log_directory: "/no/such/folder".into(),
        ..Default::default()
    };
    let container = story.script("c", "hostname; exec sleep 1000");
    let id = client.run(&told, container).await?;
    let status = client.status(&id).await?;
    assert_eq!(status.log_path, format!("{}/c.log", pod.config.log_directory));
    assert_eq!(client.sh(&id, "hostname").await?, "made");
    let still = client.pod_status(&pod.id).await?;
    assert_eq!(
        still.metadata.context("metadata")?.name,
        pod.config.metadata.context("metadata")?.name
    );
    story.finish().await
}
