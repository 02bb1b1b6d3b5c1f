//! Checkpoints: not there yet, and refused with the first reason there is.

use std::fs;

use e2e::{Result, Story, cri};
use tonic::{Code, Status};

const UNKNOWN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// The refusal has this code and these words.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, words: &[&str]) {
    let error = answer.expect_err("refused");
    assert_eq!(error.code(), code, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{word:?}: {error}");
    }
}

#[tokio::test]
async fn of_a_container() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: peers do checkpoint containers");
        return story.finish().await;
    }
    let (pod, id) = story.sleeper("checkpointed").await?;
    let created = story.client.create(&pod, story.script("created", "true")).await?;
    let archive = story.node.path().join("checkpoint.tar");
    let right = cri::CheckpointContainerRequest {
        container_id: id.clone(),
        location: archive.to_string_lossy().into_owned(),
        timeout: 10,
    };
    let ask = async |change: &dyn Fn(&mut cri::CheckpointContainerRequest)| {
        let mut request = right.clone();
        change(&mut request);
        story.client.runtime.clone().checkpoint_container(request).await
    };
    let unknown = ask(&|r| r.container_id = UNKNOWN.into()).await;
    refused(unknown, Code::NotFound, &[UNKNOWN]);
    let relative = ask(&|r| r.location = "checkpoint.tar".into()).await;
    refused(
        relative,
        Code::InvalidArgument,
        &["CheckpointContainer", "checkpoint.tar"],
    );
    let timeout = ask(&|r| r.timeout = -1).await;
    refused(timeout, Code::InvalidArgument, &["timeout", "-1"]);
    let still = ask(&|r| r.container_id = created.clone()).await;
    refused(still, Code::FailedPrecondition, &[&created, "is created"]);
    let whole = ask(&|_| ()).await;
    refused(
        whole,
        Code::FailedPrecondition,
        &["CheckpointContainer", "checkpoints are not there yet"],
    );
    assert!(!archive.exists());
    assert_eq!(story.client.sh(&id, "echo unharmed").await?, "unharmed");
    story.finish().await
}

#[tokio::test]
async fn of_a_pod() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: the words of others differ");
        return story.finish().await;
    }
    let client = &story.client;
    let (pod, id) = story.sleeper("checkpointed").await?;
    let created = client.create(&pod, story.script("created", "true")).await?;
    let (other, stranger) = story.sleeper("other").await?;
    let folder = story.node.path().join("checkpoint");
    let full = story.node.path().join("full");
    fs::create_dir(&folder)?;
    fs::create_dir_all(full.join("of-something"))?;
    let right = cri::CheckpointPodRequest {
        pod_sandbox_id: pod.id.clone(),
        output_path: folder.to_string_lossy().into_owned(),
        container_ids: vec![id.clone()],
        options: Default::default(),
    };
    let ask = async |change: &dyn Fn(&mut cri::CheckpointPodRequest)| {
        let mut request = right.clone();
        change(&mut request);
        client.runtime.clone().checkpoint_pod(request).await
    };
    let wrong = Code::InvalidArgument;
    refused(
        ask(&|r| r.pod_sandbox_id = UNKNOWN.into()).await,
        Code::NotFound,
        &[UNKNOWN],
    );
    refused(
        ask(&|r| r.output_path = "here".into()).await,
        wrong,
        &["output_path", "here"],
    );
    refused(
        ask(&|r| r.output_path = "/no/such/folder".into()).await,
        wrong,
        &["/no/such/folder"],
    );
    let full = full.to_string_lossy().into_owned();
    refused(
        ask(&|r| r.output_path = full.clone()).await,
        wrong,
        &[&full, "not empty"],
    );
    refused(
        ask(&|r| r.options = [("leave".into(), "yes".into())].into()).await,
        wrong,
        &["leave"],
    );
    refused(ask(&|r| r.container_ids.clear()).await, wrong, &["container_ids"]);
    refused(
        ask(&|r| r.container_ids = vec![UNKNOWN.into()]).await,
        Code::NotFound,
        &[UNKNOWN],
    );
    refused(
        ask(&|r| r.container_ids.push(id.clone())).await,
        wrong,
        &[&id, "twice"],
    );
    refused(
        ask(&|r| r.container_ids.push(stranger.clone())).await,
        wrong,
        &[&stranger, &other.id],
    );
    refused(
        ask(&|r| r.container_ids.push(created.clone())).await,
        Code::FailedPrecondition,
        &[&created],
    );
    let reason = ["CheckpointPod", "checkpoints are not there yet"];
    refused(ask(&|_| ()).await, Code::FailedPrecondition, &reason);
    assert_eq!(fs::read_dir(&folder)?.count(), 0);
    client.stop_pod(&pod.id).await?;
    refused(
        ask(&|_| ()).await,
        Code::FailedPrecondition,
        &[&pod.id, "is stopped"],
    );
    story.finish().await
}

#[tokio::test]
async fn that_a_pod_is_made_from() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: the words of others differ");
        return story.finish().await;
    }
    let client = &story.client;
    let folder = story.node.path().join("checkpoint");
    fs::create_dir(&folder)?;
    let right = cri::RestorePodRequest {
        checkpoint_path: folder.to_string_lossy().into_owned(),
        config: Some(client.pod_config("restored")),
        runtime_handler: "berth".into(),
        options: Default::default(),
        container_configs: vec![story.script("c", "true")],
    };
    let ask = async |change: &dyn Fn(&mut cri::RestorePodRequest)| {
        let mut request = right.clone();
        change(&mut request);
        let mut runtime = client.runtime.clone();
        Box::pin(runtime.restore_pod(request)).await
    };
    let wrong = Code::InvalidArgument;
    refused(
        ask(&|r| r.runtime_handler = "no-such-handler".into()).await,
        Code::NotFound,
        &["no-such-handler"],
    );
    refused(ask(&|r| r.config = None).await, wrong, &["metadata.name"]);
    refused(
        ask(&|r| r.options = [("lazy".into(), "yes".into())].into()).await,
        wrong,
        &["lazy"],
    );
    refused(
        ask(&|r| r.container_configs.clear()).await,
        wrong,
        &["container_configs"],
    );
    refused(
        ask(&|r| r.container_configs.push(story.script("c", "false"))).await,
        wrong,
        &["c is there twice"],
    );
    refused(
        ask(&|r| r.checkpoint_path = "/no/such/folder".into()).await,
        wrong,
        &["/no/such/folder"],
    );
    // So there is no answer with a pod and its containers.
    let reason = ["RestorePod", "checkpoints are not there yet"];
    refused(ask(&|_| ()).await, Code::FailedPrecondition, &reason);
    assert!(client.pods(None).await?.is_empty());
    story.finish().await
}
