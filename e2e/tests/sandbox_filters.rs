//! Lists of pods and containers, with every filter.

use std::collections::BTreeSet;

use e2e::{Result, Story, cri};

fn ids<T>(items: &[T], id: impl Fn(&T) -> &String) -> BTreeSet<String> {
    items.iter().map(|item| id(item).clone()).collect()
}

fn set(items: &[&String]) -> BTreeSet<String> {
    items.iter().map(|item| (*item).clone()).collect()
}

#[tokio::test]
async fn pods() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut red = client.pod_config("red");
    red.labels
        .extend([("color".into(), "red".into()), ("size".into(), "big".into())]);
    let mut blue = client.pod_config("blue");
    blue.labels
        .extend([("color".into(), "blue".into()), ("size".into(), "big".into())]);
    let red = client.run_pod_with(red).await?.id;
    let blue = client.run_pod_with(blue).await?.id;
    client.stop_pod(&blue).await?;
    let list = async |filter: cri::PodSandboxFilter| -> Result<BTreeSet<String>> {
        Ok(ids(&client.pods(Some(filter)).await?, |pod| &pod.id))
    };
    let labels = |pairs: &[(&str, &str)]| cri::PodSandboxFilter {
        label_selector: pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        ..Default::default()
    };
    let state = |state: cri::PodSandboxState| cri::PodSandboxFilter {
        state: Some(cri::PodSandboxStateValue { state: state.into() }),
        ..Default::default()
    };
    let id = |id: &str| cri::PodSandboxFilter {
        id: id.into(),
        ..Default::default()
    };
    assert_eq!(list(Default::default()).await?, set(&[&red, &blue]));
    assert_eq!(list(labels(&[("size", "big")])).await?, set(&[&red, &blue]));
    assert_eq!(
        list(labels(&[("size", "big"), ("color", "red")])).await?,
        set(&[&red])
    );
    assert_eq!(list(labels(&[("color", "green")])).await?, set(&[]));
    assert_eq!(
        list(state(cri::PodSandboxState::SandboxReady)).await?,
        set(&[&red])
    );
    assert_eq!(
        list(state(cri::PodSandboxState::SandboxNotready)).await?,
        set(&[&blue])
    );
    assert_eq!(list(id(&blue)).await?, set(&[&blue]));
    assert_eq!(list(id(&blue[..12])).await?, set(&[&blue]), "the start of an id");
    assert_eq!(list(id("0123456789ab")).await?, set(&[]));
    // All that a filter names must hold.
    let both = |id: &str| cri::PodSandboxFilter {
        id: id.into(),
        ..state(cri::PodSandboxState::SandboxReady)
    };
    assert_eq!(list(both(&red)).await?, set(&[&red]));
    assert_eq!(list(both(&blue)).await?, set(&[]));
    story.finish().await
}

#[tokio::test]
async fn containers() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (first, running) = story.sleeper("first").await?;
    let mut config = story.script("created", "true");
    config.labels.insert("color".into(), "red".into());
    config.annotations.insert("note".into(), "kept".into());
    let created = client.create(&first, config).await?;
    let second = client.run_pod("second").await?;
    let exited = client.run(&second, story.script("exited", "exit 3")).await?;
    client.wait_exit(&exited).await?;
    let list = async |filter: cri::ContainerFilter| -> Result<BTreeSet<String>> {
        Ok(ids(&client.containers(Some(filter)).await?, |c| &c.id))
    };
    let state = |state: cri::ContainerState| cri::ContainerFilter {
        state: Some(cri::ContainerStateValue { state: state.into() }),
        ..Default::default()
    };
    assert_eq!(
        list(Default::default()).await?,
        set(&[&running, &created, &exited])
    );
    assert_eq!(
        list(state(cri::ContainerState::ContainerRunning)).await?,
        set(&[&running])
    );
    assert_eq!(
        list(state(cri::ContainerState::ContainerCreated)).await?,
        set(&[&created])
    );
    assert_eq!(
        list(state(cri::ContainerState::ContainerExited)).await?,
        set(&[&exited])
    );
    let of_pod = cri::ContainerFilter {
        pod_sandbox_id: first.id.clone(),
        ..Default::default()
    };
    assert_eq!(list(of_pod).await?, set(&[&running, &created]));
    let of_label = cri::ContainerFilter {
        label_selector: [("color".into(), "red".into())].into(),
        ..Default::default()
    };
    assert_eq!(list(of_label.clone()).await?, set(&[&created]));
    // All that a filter names must hold.
    let elsewhere = cri::ContainerFilter {
        pod_sandbox_id: second.id.clone(),
        ..of_label
    };
    assert_eq!(list(elsewhere).await?, set(&[]));
    let of_id = cri::ContainerFilter {
        id: exited.clone(),
        ..Default::default()
    };
    let found = client.containers(Some(of_id)).await?;
    assert_eq!((found.len(), &found[0].pod_sandbox_id), (1, &second.id));
    let all = client.containers(None).await?;
    let found = all.iter().find(|c| c.id == created).expect("listed");
    assert_eq!(found.annotations.get("note").map(String::as_str), Some("kept"));
    assert_eq!(found.image_ref, story.image.id);
    story.finish().await
}
