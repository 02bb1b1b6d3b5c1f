//! What pods and containers say of themselves: every field of the statuses and of the
//! lists, compared with the request, with the clock and with the kernel.

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::Context;
use e2e::{
    Client, Image, Pod, Result, Story,
    client::{pod_security, resources, security},
    cri, kernel,
};
use serde_json::{Value, json};

/// Nanoseconds since the epoch, by the clock that berthd has too.
fn now() -> i64 {
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
    i64::try_from(now.as_nanos()).expect("before 2262")
}

async fn pod_answer(client: &Client, id: &str, verbose: bool) -> Result<cri::PodSandboxStatusResponse> {
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: id.into(),
        verbose,
    };
    let answer = client.runtime.clone().pod_sandbox_status(request).await?;
    Ok(answer.into_inner())
}

async fn answer(client: &Client, id: &str, verbose: bool) -> Result<cri::ContainerStatusResponse> {
    let request = cri::ContainerStatusRequest {
        container_id: id.into(),
        verbose,
    };
    let answer = client.runtime.clone().container_status(request).await?;
    Ok(answer.into_inner())
}

fn info(map: &std::collections::HashMap<String, String>) -> Result<Value> {
    Ok(serde_json::from_str(map.get("info").context("info")?)?)
}

/// Text that a careless writer of JSON, TOML or logs would change.
fn odd() -> std::collections::HashMap<String, String> {
    [
        ("plain", "value"),
        ("empty", ""),
        ("lines", "a\nb\r\n\t"),
        ("quotes/\"", "{\"a\": 'b'}\\"),
        ("Ünïcode ☸", "\u{feff}\u{0}end"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

#[tokio::test]
async fn a_pod_says_all_of_itself() -> Result {
    let story = Story::begin_with("[runtimes.small]\ntype = \"berth\"\n").await?;
    if story.node.is_peer() {
        eprintln!("skipped: it needs a runtime handler of its own");
        return story.finish().await;
    }
    let client = &story.client;
    let mut config = client.pod_config("says");
    config.metadata.get_or_insert_default().attempt = 7;
    config.labels.extend(odd());
    config.annotations = odd();
    let options = pod_security(&mut config)
        .namespace_options
        .get_or_insert_default();
    options.ipc = cri::NamespaceMode::Node.into();
    let options = options.clone();
    fs::create_dir_all(&config.log_directory)?;
    let before = now();
    let request = cri::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: "small".into(),
    };
    let mut runtime = client.runtime.clone();
    let id = Box::pin(runtime.run_pod_sandbox(request))
        .await?
        .into_inner()
        .pod_sandbox_id;
    let made = now();
    let pod = Pod {
        id: id.clone(),
        config: config.clone(),
    };
    let container = client.run(&pod, story.script("c", "exec sleep 1000")).await?;

    let told = pod_answer(client, &id, false).await?;
    assert!(told.info.is_empty(), "not asked for: {:?}", told.info);
    assert_eq!(told.containers_statuses, [client.status(&container).await?]);
    assert!((made..=now()).contains(&told.timestamp), "{}", told.timestamp);
    let status = told.status.context("status")?;
    let network = status.network.clone().context("network")?;
    let inside = client.sh(&container, "ip -o addr show eth0 scope global").await?;
    for ip in [&network.ip]
        .into_iter()
        .chain(network.additional_ips.iter().map(|ip| &ip.ip))
    {
        assert!(
            !ip.is_empty() && inside.contains(&format!(" {ip}/")),
            "{ip}: {inside}"
        );
    }
    assert_eq!(
        1 + network.additional_ips.len(),
        inside.lines().count(),
        "{inside}"
    );
    assert!(
        (before..=made).contains(&status.created_at),
        "{}",
        status.created_at
    );
    let expected = cri::PodSandboxStatus {
        id: id.clone(),
        metadata: config.metadata.clone(),
        state: cri::PodSandboxState::SandboxReady.into(),
        created_at: status.created_at,
        network: status.network.clone(),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace {
                options: Some(options),
            }),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: "small".into(),
    };
    assert_eq!(status, expected);
    let item = cri::PodSandbox {
        id: id.clone(),
        metadata: config.metadata.clone(),
        state: status.state,
        created_at: status.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: "small".into(),
    };
    assert_eq!(client.pods(None).await?, [item]);

    let info = info(&pod_answer(client, &id, true).await?.info)?;
    assert_eq!(info["config"]["metadata"]["attempt"], 7, "{info}");
    assert_eq!(info["config"]["annotations"]["lines"], "a\nb\r\n\t");
    assert_eq!(info["runtimeHandler"], "small");
    assert_eq!(info["netNamespaceClosed"], false);
    assert_eq!(
        info["cniResult"]["Interfaces"]["eth0"]["IPConfigs"][0]["IP"],
        json!(network.ip)
    );
    let spaces = info["runtimeSpec"]["linux"]["namespaces"]
        .as_array()
        .context("namespaces")?;
    let of = |kind: &str| spaces.iter().find(|space| space["type"] == kind);
    let net = of("network")
        .and_then(|net| net["path"].as_str())
        .context("network")?;
    let link = client.sh(&container, "readlink /proc/self/ns/net").await?;
    assert_eq!(link, format!("net:[{}]", fs::metadata(net)?.ino()));
    assert!(of("ipc").is_none(), "the node's: {info}");

    client.stop_pod(&id).await?;
    let told = pod_answer(client, &id, true).await?;
    let stopped = told.status.context("status")?;
    let expected = cri::PodSandboxStatus {
        state: cri::PodSandboxState::SandboxNotready.into(),
        network: Some(Default::default()),
        ..status
    };
    assert_eq!(stopped, expected);
    assert_eq!(self::info(&told.info)?["netNamespaceClosed"], true);
    assert_eq!(
        client.pods(None).await?[0].state(),
        cri::PodSandboxState::SandboxNotready
    );
    story.finish().await
}

#[tokio::test]
async fn a_container_says_all_of_itself() -> Result {
    let mut story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: the words of others differ");
        return story.finish().await;
    }
    let image = Image::busybox().config(json!({"StopSignal": "SIGQUIT"}));
    let image = story.image(image, "says:1").await?;
    let client = &story.client;
    let pulled = client.pull(&image.tag).await?;
    let pod = client.run_pod("says").await?;
    let host = story.node.path().join("volume");
    fs::create_dir(&host)?;
    let mut config = client.script("c", &image.tag, "exec sleep 1000");
    config.metadata.get_or_insert_default().attempt = 3;
    config.labels.extend(odd());
    config.annotations = odd();
    config.log_path = "c/3.log".into();
    fs::create_dir(format!("{}/c", pod.config.log_directory))?;
    // As the kubelet asks: by id, with the user's own word beside it.
    let spec = config.image.get_or_insert_default();
    spec.image = image.id.clone();
    spec.user_specified_image = image.tag.clone();
    config.mounts = vec![cri::Mount {
        container_path: "/volume".into(),
        host_path: host.to_string_lossy().into_owned(),
        readonly: true,
        ..Default::default()
    }];
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    resources(&mut config).cpu_shares = 256;
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 1001 });
    security(&mut config).supplemental_groups = vec![77];

    let before = now();
    let id = client.create(&pod, config.clone()).await?;
    let made = now();
    let told = answer(client, &id, false).await?;
    assert!(told.info.is_empty(), "not asked for: {:?}", told.info);
    let created = told.status.context("status")?;
    assert!((before..=made).contains(&created.created_at));
    let user = cri::LinuxContainerUser {
        uid: 1001,
        gid: 1002,
        supplemental_groups: vec![77, 1002, 2001, 2002],
    };
    let mut expected = cri::ContainerStatus {
        id: id.clone(),
        metadata: config.metadata.clone(),
        state: cri::ContainerState::ContainerCreated.into(),
        created_at: created.created_at,
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        image: Some(cri::ImageSpec {
            image: image.tag.clone(),
            user_specified_image: image.tag.clone(),
            ..Default::default()
        }),
        image_ref: image.digest.clone(),
        reason: String::new(),
        message: String::new(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.clone(),
        log_path: format!("{}/c/3.log", pod.config.log_directory),
        resources: Some(cri::ContainerResources {
            linux: config.linux.clone().unwrap_or_default().resources,
            windows: None,
        }),
        image_id: pulled.clone(),
        user: Some(cri::ContainerUser {
            linux: Some(user.clone()),
        }),
        stop_signal: cri::Signal::Sigquit.into(),
    };
    let sorted = |mut status: cri::ContainerStatus| {
        let user = status.user.as_mut().and_then(|user| user.linux.as_mut());
        user.expect("user").supplemental_groups.sort_unstable();
        status
    };
    assert_eq!(sorted(created), expected);
    let groups = "grep Groups /proc/1/status | cut -f2";

    client.start(&id).await?;
    let running = sorted(client.status(&id).await?);
    assert!((made..=now()).contains(&running.started_at));
    expected.state = cri::ContainerState::ContainerRunning.into();
    expected.started_at = running.started_at;
    assert_eq!(running, expected);
    assert_eq!(client.sh(&id, groups).await?.trim(), "77 1002 2001 2002");
    let listed = cri::Container {
        id: id.clone(),
        pod_sandbox_id: pod.id.clone(),
        metadata: config.metadata.clone(),
        image: config.image.clone(),
        image_ref: image.id.clone(),
        state: running.state,
        created_at: running.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        image_id: pulled,
    };
    assert_eq!(client.containers(None).await?, [listed]);

    let info = info(&answer(client, &id, true).await?.info)?;
    assert_eq!(info["sandboxID"], json!(pod.id), "{info}");
    assert_eq!(info["removing"], false);
    assert_eq!(info["config"]["metadata"]["attempt"], 3);
    assert_eq!(info["config"]["mounts"][0]["container_path"], "/volume");
    assert_eq!(info["runtimeSpec"]["process"]["args"], json!(config.command));
    let pid = u32::try_from(info["pid"].as_u64().context("pid")?)?;
    assert_eq!(fs::read(format!("/proc/{pid}/cmdline"))?, b"sleep\x001000\0");
    let limit = kernel::cgroup_file(pid, &["memory.limit_in_bytes", "memory.max"])?;
    assert_eq!(limit.context("memory controller")?.trim(), (64 << 20).to_string());

    client.stop(&id, 0).await?;
    let exited = sorted(client.status(&id).await?);
    assert!((running.started_at..=now()).contains(&exited.finished_at));
    expected.state = cri::ContainerState::ContainerExited.into();
    expected.finished_at = exited.finished_at;
    expected.exit_code = 137;
    expected.reason = "Error".into();
    expected.message = exited.message.clone();
    assert_eq!(exited, expected);
    story.finish().await
}

/// Reason and message say why, in words for programs and for people.
#[tokio::test]
async fn an_end_has_its_reason() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("ends").await?;
    let mut missing = story.script("missing", "");
    missing.command = vec!["/no/such/program".into()];
    if let (Some(id), _) = client.run_broken(&pod, missing).await?
        && !story.node.is_peer()
    {
        let status = client.status(&id).await?;
        assert_eq!((status.exit_code, &*status.reason), (127, "StartError"));
        assert!(status.message.contains("/no/such/program"), "{status:?}");
        assert_eq!(status.started_at, 0);
        assert!(status.finished_at > status.created_at);
    }
    let id = client.run(&pod, story.script("good", "true")).await?;
    let status = client.wait_exit(&id).await?;
    assert_eq!((&*status.reason, &*status.message), ("Completed", ""));
    story.finish().await
}
