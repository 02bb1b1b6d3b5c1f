//! The systemd cgroup driver: each container is a delegated transient scope in the
//! slice that the kubelet names, keeps its limits whatever systemd is told, and
//! leaves no unit. systemd itself says what there is.

use std::{
    fs,
    time::{Duration, Instant},
};

use e2e::{Client, Result, Story, client::resources, cri, kernel, machine};

/// Generous: the machine may be slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether there is something to see; says why not.
fn has_systemd(what: &str) -> bool {
    let has = machine::has_systemd_cgroups();
    if !has {
        eprintln!("skipped: {what}: systemd makes no cgroups here (e2e/vm/stories runs it in a machine)");
    }
    has
}

fn systemctl(arguments: &[&str]) -> String {
    kernel::output("systemctl", arguments)
}

/// One property of a unit.
fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--value", &format!("--property={name}"), unit])
        .trim()
        .to_owned()
}

fn scope(id: &str) -> String {
    format!("berth-{id}.scope")
}

/// What the kernel has in a file of the scope's cgroup.
fn file(id: &str, name: &str) -> Result<String> {
    let path = format!("/sys/fs/cgroup{}/{name}", property(&scope(id), "ControlGroup"));
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "not after {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn runs(client: &Client, id: &str) -> Result<bool> {
    Ok(client.status(id).await?.state() == cri::ContainerState::ContainerRunning)
}

#[tokio::test]
async fn a_container_is_a_scope_that_keeps_its_limits() -> Result {
    if !has_systemd("scopes") {
        return Ok(());
    }
    let mut story = Story::begin().await?;
    let top = format!("e2e_scopes_{:x}", std::process::id());
    let (slice, path) = machine::cgroup_parent(&[&top, "burstable", "pod1"]);
    story.node.also_ours(&machine::cgroup_parent(&[&top]).1)?;
    let client = &story.client;
    let mut config = client.pod_config("scopes");
    config.linux.get_or_insert_default().cgroup_parent = slice.clone();
    let pod = client.run_pod_with(config).await?;
    let mut config = story.script("c", "exec sleep 1000");
    *resources(&mut config) = cri::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 1024,
        unified: [("pids.max".to_owned(), "50".to_owned())].into(),
        ..Default::default()
    };
    let id = client.run(&pod, config).await?;
    let unit = scope(&id);
    for (name, value) in [
        ("Slice", slice.as_str()),
        ("ControlGroup", &format!("{path}/{unit}")),
        ("ActiveState", "active"),
        ("Delegate", "yes"),
        ("MemoryMax", "67108864"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("CPUWeight", "100"),
        ("TasksMax", "50"),
    ] {
        assert_eq!(property(&unit, name), value, "{name}");
    }
    let tree = kernel::output("systemd-cgls", &["--no-pager", "--full", &path]);
    assert!(tree.contains(&unit) && tree.contains("sleep 1000"), "{tree}");
    // Only the container is in it: neither its shim nor who held the scope for it.
    assert_eq!(file(&id, "cgroup.procs")?.lines().count(), 1);
    assert_eq!(client.sh(&id, "cat /proc/self/cgroup").await?.lines().count(), 1);

    // An update is systemd's to know too: it would set the old limits again.
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 96 << 20,
            cpu_quota: 20_000,
            ..Default::default()
        }),
        ..Default::default()
    };
    client.runtime.clone().update_container_resources(request).await?;
    for _ in 0..2 {
        assert_eq!(property(&unit, "MemoryMax"), (96 << 20).to_string());
        assert_eq!(file(&id, "memory.max")?, (96 << 20).to_string());
        assert_eq!(file(&id, "cpu.max")?, "20000 100000");
        assert_eq!(file(&id, "pids.max")?, "50");
        systemctl(&["daemon-reload"]);
    }

    client.remove(&id).await?;
    assert_eq!(property(&unit, "LoadState"), "not-found");
    client.stop_pod(&pod.id).await?;
    client.remove_pod(&pod.id).await?;
    // The slices that nobody had made are gone with the pod; `finish` looks for all.
    assert_eq!(property(&slice, "ActiveState"), "inactive");
    story.finish().await
}

#[tokio::test]
async fn systemd_and_its_bus_may_start_anew_at_any_time() -> Result {
    if !has_systemd("daemon-reexec") {
        return Ok(());
    }
    let story = Story::begin().await?;
    let client = &story.client;
    let (pod, first) = story.sleeper("reexec").await?;
    let mut ids = vec![first.clone()];
    for (number, disturb) in [
        ["--no-block", "daemon-reexec"].as_slice(),
        &["--no-block", "restart", "dbus.service"],
        &["--no-block", "daemon-reload"],
    ]
    .into_iter()
    .enumerate()
    {
        systemctl(disturb);
        let id = client
            .run(&pod, story.script(&format!("c{number}"), "exec sleep 1000"))
            .await?;
        assert_eq!(client.sh(&first, "echo here").await?, "here");
        ids.push(id);
    }
    for id in &ids {
        assert!(runs(client, id).await?, "{id}");
        assert_eq!(property(&scope(id), "ActiveState"), "active");
    }
    systemctl(&["--no-block", "daemon-reexec"]);
    for id in &ids {
        client.remove(id).await?;
    }
    for id in &ids {
        assert_eq!(property(&scope(id), "LoadState"), "not-found");
    }
    story.finish().await
}

#[tokio::test]
async fn a_scope_that_is_stopped_is_a_container_that_ended() -> Result {
    if !has_systemd("systemctl stop") {
        return Ok(());
    }
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("stopped").await?;
    // SIGTERM is passed over, as by many programs that are process 1.
    let id = client
        .run(&pod, story.script("c", "trap '' TERM; while :; do sleep 1; done"))
        .await?;
    systemctl(&["stop", &scope(&id)]);
    let status = client.wait_exit(&id).await?;
    assert_eq!(status.exit_code, 137);
    until("the scope is gone", || {
        property(&scope(&id), "LoadState") == "not-found"
    })
    .await;
    story.finish().await
}

#[tokio::test]
async fn a_parent_that_is_no_slice_is_refused() -> Result {
    if !has_systemd("parents") {
        return Ok(());
    }
    let story = Story::begin().await?;
    let client = &story.client;
    for parent in ["/kubepods/pod1", "/other.slice/kubepods-pod1.slice", "a--b.slice"] {
        let mut config = client.pod_config("wrong");
        config.linux.get_or_insert_default().cgroup_parent = parent.into();
        let error = client.run_pod_with(config).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error:?}");
        assert!(
            error.message().contains("slice") && error.message().contains(parent),
            "{error:?}"
        );
    }
    story.finish().await
}
