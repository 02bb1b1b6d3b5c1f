//! A pod whose containers share one PID namespace, with an init that reaps.

use e2e::{
    Result, Story,
    client::{pod_security, security},
    cri,
};

#[tokio::test]
async fn containers_see_each_other_and_orphans_are_reaped() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut config = client.pod_config("shared");
    let mode = cri::NamespaceMode::Pod.into();
    pod_security(&mut config)
        .namespace_options
        .get_or_insert_default()
        .pid = mode;
    let pod = client.run_pod_with(config).await?;
    let container = |name: &str, script: &str| {
        let mut config = story.script(name, script);
        security(&mut config)
            .namespace_options
            .get_or_insert_default()
            .pid = mode;
        config
    };
    let one = client.run(&pod, container("one", "sleep 1111")).await?;
    let two = client.run(&pod, container("two", "sleep 2222")).await?;
    for id in [&one, &two] {
        let listed = client.sh(id, "ps -o pid,args").await?;
        assert!(
            listed.contains("sleep 1111") && listed.contains("sleep 2222"),
            "{listed}"
        );
    }
    // The script of a container is not the first process.
    assert_ne!(client.sh(&one, "cat /proc/1/comm").await?, "sleep");
    // An orphan goes to the pod's init, which reaps it.
    client
        .sh(&one, "setsid sh -c 'sleep 0.1 & exit 0' & sleep 0.4")
        .await?;
    let zombies = client
        .sh(
            &two,
            "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l",
        )
        .await?;
    assert_eq!(zombies, "0");

    // A container's end is its own.
    client.stop(&one, 0).await?;
    let listed = client.sh(&two, "ps -o args").await?;
    assert!(
        !listed.contains("sleep 1111") && listed.contains("sleep 2222"),
        "{listed}"
    );
    story.finish().await
}

#[tokio::test]
async fn a_container_may_look_at_another_one() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (pod, target) = story.sleeper("target").await?;
    let mut config = story.script("debug", "sleep 3333");
    let options = security(&mut config).namespace_options.get_or_insert_default();
    options.pid = cri::NamespaceMode::Target.into();
    options.target_id = target.clone();
    let id = client.run(&pod, config).await?;
    let listed = client.sh(&id, "ps -o args").await?;
    assert!(
        listed.contains("sleep 1000") && listed.contains("sleep 3333"),
        "{listed}"
    );
    // Its own end does not touch the target.
    client.stop(&id, 0).await?;
    assert_eq!(
        client.status(&target).await?.state(),
        cri::ContainerState::ContainerRunning
    );
    story.finish().await
}

#[tokio::test]
async fn the_nodes_processes_are_seen_when_asked_for() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut config = client.pod_config("node-pid");
    let mode = cri::NamespaceMode::Node.into();
    pod_security(&mut config)
        .namespace_options
        .get_or_insert_default()
        .pid = mode;
    let pod = client.run_pod_with(config).await?;
    let mut config = story.script("c", "sleep 1000");
    security(&mut config)
        .namespace_options
        .get_or_insert_default()
        .pid = mode;
    let id = client.run(&pod, config).await?;
    let own = std::fs::read_link("/proc/self/ns/pid")?;
    assert_eq!(
        client.sh(&id, "readlink /proc/self/ns/pid").await?,
        own.to_string_lossy()
    );
    // All of the container dies with it, though no namespace does it.
    client.sh(&id, "setsid sleep 4444 >/dev/null 2>&1 &").await?;
    client.stop(&id, 0).await?;
    let listed = e2e::kernel::output("ps", &["-eo", "args"]);
    assert!(!listed.contains("sleep 4444"), "{listed}");
    story.finish().await
}
