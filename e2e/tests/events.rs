//! GetContainerEvents: order, contents, clients that are slow or go away, and a
//! berthd that stops and comes back.

use std::{fs, time::Duration};

use anyhow::{Context, ensure};
use e2e::{Client, Result, Story, client::pod_security, cri, cri::ContainerEventType as Kind};
use tonic::{Code, Status, Streaming};

type Events = Streaming<cri::ContainerEventResponse>;

async fn listen(client: &Client) -> Result<Events> {
    let request = cri::GetEventsRequest::default();
    Ok(client
        .runtime
        .clone()
        .get_container_events(request)
        .await?
        .into_inner())
}

async fn next(events: &mut Events) -> Result<cri::ContainerEventResponse> {
    let event = tokio::time::timeout(Duration::from_secs(20), events.message());
    event.await.context("no event came")??.context("the stream ended")
}

/// The next `count` events: whose they are, and of which kind.
async fn kinds(events: &mut Events, count: usize) -> Result<Vec<(String, Kind)>> {
    let mut all = Vec::new();
    for _ in 0..count {
        let event = next(events).await?;
        all.push((event.container_id.clone(), event.container_event_type()));
    }
    Ok(all)
}

const CREATED: Kind = Kind::ContainerCreatedEvent;
const STARTED: Kind = Kind::ContainerStartedEvent;
const STOPPED: Kind = Kind::ContainerStoppedEvent;
const DELETED: Kind = Kind::ContainerDeletedEvent;

#[tokio::test]
async fn a_life_is_told_in_order_with_everything() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut events = listen(client).await?;
    let pod = client.run_pod("told").await?;
    for kind in [CREATED, STARTED] {
        let event = next(&mut events).await?;
        assert_eq!(
            (&event.container_id, event.container_event_type()),
            (&pod.id, kind)
        );
        let status = event.pod_sandbox_status.context("pod status")?;
        assert_eq!(status.state(), cri::PodSandboxState::SandboxReady);
        assert!(!status.network.context("network")?.ip.is_empty());
    }

    let id = client.create(&pod, story.script("c", "exit 3")).await?;
    let event = next(&mut events).await?;
    assert_eq!(
        (&event.container_id, event.container_event_type()),
        (&id, CREATED)
    );
    // What is told is recorded: asking gives the same.
    let told = event.containers_statuses.first().context("container status")?;
    assert_eq!(*told, client.status(&id).await?);
    let status = client.pod_status(&pod.id).await?;
    assert_eq!(event.pod_sandbox_status, Some(status));
    assert!(event.created_at > told.created_at);

    client.start(&id).await?;
    let started = next(&mut events).await?;
    assert_eq!(
        (&started.container_id, started.container_event_type()),
        (&id, STARTED)
    );
    let stopped = next(&mut events).await?;
    assert_eq!(
        (&stopped.container_id, stopped.container_event_type()),
        (&id, STOPPED)
    );
    let told = stopped.containers_statuses.first().context("container status")?;
    assert_eq!((told.exit_code, &*told.reason), (3, "Error"));
    assert_eq!(told.state(), cri::ContainerState::ContainerExited);
    assert!(stopped.created_at >= started.created_at);

    // One that is removed unstarted, one that never came to be, one that cannot start.
    let unstarted = client.create(&pod, story.script("d", "true")).await?;
    client.remove(&unstarted).await?;
    // Its init waited, and was killed.
    let told = kinds(&mut events, 3).await?;
    assert_eq!(
        told,
        [CREATED, STOPPED, DELETED].map(|kind| (unstarted.clone(), kind))
    );
    assert!(
        client
            .create(&pod, client.script("e", "no.such/image:1", "true"))
            .await
            .is_err()
    );
    let mut broken = story.script("f", "");
    broken.command = vec!["/no/such/program".into()];
    let (broken, _) = client.run_broken(&pod, broken).await?;
    if let Some(broken) = &broken {
        assert_eq!(
            kinds(&mut events, 2).await?,
            [(broken.clone(), CREATED), (broken.clone(), STOPPED)]
        );
    }

    client.remove(&id).await?;
    let event = next(&mut events).await?;
    assert_eq!(
        (&event.container_id, event.container_event_type()),
        (&id, DELETED)
    );
    assert!(event.containers_statuses.iter().all(|status| status.id != id));
    assert!(event.pod_sandbox_status.is_some());

    client.stop_pod(&pod.id).await?;
    client.remove_pod(&pod.id).await?;
    let mut expected = vec![(pod.id.clone(), STOPPED)];
    expected.extend(broken.map(|broken| (broken, DELETED)));
    expected.push((pod.id.clone(), DELETED));
    assert_eq!(kinds(&mut events, expected.len()).await?, expected);
    story.finish().await
}

#[tokio::test]
async fn quick_programs_keep_their_order() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("quick").await?;
    let mut events = listen(client).await?;
    let mut ids = Vec::new();
    for number in 0..15 {
        ids.push(
            client
                .run(&pod, story.script(&format!("c{number}"), "true"))
                .await?,
        );
    }
    let told = kinds(&mut events, ids.len() * 3).await?;
    for id in ids {
        let own: Vec<_> = told
            .iter()
            .filter(|(whose, _)| *whose == id)
            .map(|(_, kind)| *kind)
            .collect();
        assert_eq!(own, [CREATED, STARTED, STOPPED]);
    }
    story.finish().await
}

#[tokio::test]
async fn a_slow_client_hurts_nobody_and_is_told_to_list() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    // Its own connection: the window of a shared one is shared.
    let lazy = story.node.client().await?;
    let mut slow = listen(&lazy).await?;
    let mut quick = listen(client).await?;
    // Pods on the node's network are made and removed in no time. With 64 KiB in each
    // event, what the connection buffers is full soon.
    let rounds = 300;
    for _ in 0..rounds {
        let mut config = client.pod_config("slow");
        config.annotations.insert("large".into(), "x".repeat(64 << 10));
        let node = cri::NamespaceOption {
            network: cri::NamespaceMode::Node.into(),
            ..Default::default()
        };
        pod_security(&mut config).namespace_options = Some(node);
        let pod = client.run_pod_with(config).await?;
        client.stop_pod(&pod.id).await?;
        client.remove_pod(&pod.id).await?;
        let told = kinds(&mut quick, 4).await?;
        let life = [CREATED, STARTED, STOPPED, DELETED];
        assert_eq!(told, life.map(|kind| (pod.id.clone(), kind)));
    }
    let mut read = 0;
    let end: Status = loop {
        match slow.message().await {
            Ok(Some(_)) => read += 1,
            Ok(None) => anyhow::bail!("it ended without a reason after {read} events"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::ResourceExhausted, "{end:?}");
    assert!(end.message().contains("list"), "{end:?}");
    assert!(read < rounds * 4, "{read}");
    // It comes again.
    let mut slow = listen(&lazy).await?;
    let pod = client.run_pod("after").await?;
    assert_eq!(kinds(&mut slow, 1).await?, [(pod.id, CREATED)]);
    story.finish().await
}

#[tokio::test]
async fn clients_that_go_away_leave_nothing() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        return story.finish().await;
    }
    let pid = story.node.pid().context("berthd runs")?;
    let open = || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count()) };
    let before = open()?;
    let mut clients = Vec::new();
    for _ in 0..30 {
        let client = story.node.client().await?;
        clients.push((listen(&client).await?, client));
    }
    ensure!(open()? >= before + 25, "{} then {}", before, open()?);
    drop(clients);
    // No event happens meanwhile.
    for _ in 0..200 {
        if open()? <= before + 2 {
            return story.finish().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("{before} descriptors, and {} after the clients went", open()?)
}

#[tokio::test]
async fn berthd_stops_at_once_and_tells_after_it_is_back() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        return story.finish().await;
    }
    let (pod, id) = story.sleeper("again").await?;
    let mut events = listen(&story.client).await?;
    let begun = std::time::Instant::now();
    story.node.stop().await?;
    ensure!(
        begun.elapsed() < Duration::from_secs(5),
        "a listener held berthd up"
    );
    let end = events.message().await;
    ensure!(!matches!(end, Ok(Some(_))), "{end:?}");

    story.node.launch().await?;
    story.client = story.node.client().await?;
    let mut events = listen(&story.client).await?;
    story.client.stop(&id, 0).await?;
    assert_eq!(kinds(&mut events, 1).await?, [(id.clone(), STOPPED)]);
    story.node.kill()?;
    story.node.launch().await?;
    story.client = story.node.client().await?;
    let mut events = listen(&story.client).await?;
    story.client.stop_pod(&pod.id).await?;
    story.client.remove_pod(&pod.id).await?;
    let told = kinds(&mut events, 3).await?;
    assert_eq!(
        told,
        [(pod.id.clone(), STOPPED), (id, DELETED), (pod.id, DELETED)]
    );
    story.finish().await
}
