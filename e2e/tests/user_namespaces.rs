//! Pods with a user namespace of their own.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use e2e::{Image, Result, Story, client, cri, tar::Entry};

/// As the kubelet gives them on a big node: above 2^31.
const HOST: u32 = 3_516_268_544;
const LENGTH: u32 = 65536;

fn mapping(host_id: u32) -> Vec<cri::IdMapping> {
    vec![cri::IdMapping {
        host_id,
        container_id: 0,
        length: LENGTH,
    }]
}

fn user(host_id: u32) -> cri::UserNamespace {
    cri::UserNamespace {
        mode: cri::NamespaceMode::Pod.into(),
        uids: mapping(host_id),
        gids: mapping(host_id),
    }
}

fn pod(story: &Story, name: &str, host_id: u32) -> cri::PodSandboxConfig {
    let mut config = story.client.pod_config(name);
    let options = client::pod_security(&mut config)
        .namespace_options
        .get_or_insert_with(client::namespaces);
    options.userns_options = Some(user(host_id));
    config
}

fn volume(path: &str, host: &std::path::Path, host_id: u32) -> cri::Mount {
    cri::Mount {
        container_path: path.into(),
        host_path: host.display().to_string(),
        uid_mappings: mapping(host_id),
        gid_mappings: mapping(host_id),
        ..Default::default()
    }
}

/// The owner of a process, as the node sees it.
fn owner(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:\t"));
    Ok(line
        .unwrap_or_default()
        .split('\t')
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// The processes whose command line has this word.
fn pid_of(word: &str) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|part| part == word.as_bytes())
        })
}

/// Root inside, nobody outside; layers, volumes and the pod's files have the owners that
/// they have in the image and on the disk; everything the pod shares is its own.
#[tokio::test]
async fn root_of_a_pod_is_nobody_on_the_node() -> Result {
    let mut story = Story::begin().await?;
    if let Some(runtime) = e2e::handler() {
        eprintln!("skipped: {runtime} runs no pods in user namespaces, and refuses them (see handlers.rs)");
        return story.finish().await;
    }
    let image = Image::busybox().layer(&[
        Entry::folder("srv").owner(33, 33),
        Entry::file("srv/file", "of the image").owner(33, 34),
    ]);
    let image = story
        .image(
            image.config(serde_json::json!({"Volumes": {"/srv": {}}})),
            "owners:1",
        )
        .await?;
    let client = &story.client;
    let mut config = pod(&story, "user", HOST);
    let linux = config.linux.get_or_insert_default();
    // Of the ipc namespace, which belongs to the user namespace too.
    linux.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    linux.sysctls.insert("net.core.somaxconn".into(), "777".into());
    let pod = client.run_pod_with(config).await?;

    let told = client.pod_status(&pod.id).await?;
    let options = told.linux.and_then(|l| l.namespaces).and_then(|n| n.options);
    assert_eq!(options.and_then(|o| o.userns_options), Some(user(HOST)));

    let folder = story.node.path().join("volume");
    fs::create_dir(&folder)?;
    fs::write(folder.join("file"), "")?;
    std::os::unix::fs::chown(folder.join("file"), Some(1000), Some(1001))?;
    let mark = format!("{}", 900_000 + std::process::id());
    let mut asked = client.script("c", &image.tag, &format!("sleep {mark}"));
    asked.mounts = vec![volume("/data", &folder, HOST)];
    let options = client::security(&mut asked)
        .namespace_options
        .get_or_insert_with(client::namespaces);
    options.userns_options = Some(user(HOST));
    let id = client.run(&pod, asked).await?;

    // Until the shell has executed it.
    let until = Instant::now() + Duration::from_secs(60);
    let pid = loop {
        match pid_of(&mark) {
            Some(pid) => break pid,
            None => assert!(Instant::now() < until, "the container's process does not come"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(owner(pid)?, HOST.to_string());
    let map = client.sh(&id, "cat /proc/self/uid_map").await?;
    let map: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(map, ["0", &HOST.to_string(), &LENGTH.to_string()]);
    let files =
        "/ /bin/busybox /srv /srv/file /data /data/file /etc/hosts /etc/resolv.conf /dev /dev/null /dev/shm";
    let owners = client.sh(&id, &format!("stat -c %u:%g {files}")).await?;
    assert_eq!(
        owners.lines().collect::<Vec<_>>(),
        [
            "0:0",
            "0:0",
            "33:33",
            "33:34",
            "0:0",
            "1000:1001",
            "0:0",
            "0:0",
            "0:0",
            "0:0",
            "0:0"
        ]
    );
    let script = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/core/somaxconn; \
                  echo x > /data/new; echo x > /new; echo x > /dev/shm/new; hostname";
    assert_eq!(client.sh(&id, script).await?.lines().next(), Some("1"));
    let made = fs::metadata(folder.join("new"))?;
    assert_eq!((made.uid(), made.gid()), (0, 0), "on the disk it is root's");
    // Rights end where the namespace does.
    for forbidden in [
        "mknod /node c 1 3",
        "mkdir -p /m; mount -t tmpfs x /m",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo 1 > /proc/sysrq-trigger",
    ] {
        let output = client.exec(&id, &["sh", "-c", forbidden]).await?;
        assert_ne!(output.code, 0, "{forbidden}: {output:?}");
    }
    assert!(
        client
            .sh(&id, "ping -c 1 127.0.0.1 >/dev/null && echo reached")
            .await?
            .contains("reached")
    );
    let told = client.status(&id).await?.mounts;
    assert_eq!(
        (&told[0].uid_mappings, &told[0].gid_mappings),
        (&mapping(HOST), &mapping(HOST))
    );
    story.finish().await
}

/// Pods share ranges or have different ones; each sees its own ids; stdin, logs, privileged
/// containers, the shared PID namespace and image volumes are as everywhere.
#[tokio::test]
async fn pods_with_one_range_and_with_others() -> Result {
    let mut story = Story::begin().await?;
    if let Some(runtime) = e2e::handler() {
        eprintln!("skipped: {runtime} runs no pods in user namespaces, and refuses them (see handlers.rs)");
        return story.finish().await;
    }
    let data = Image::empty().layer(&[Entry::file("file", "data").owner(7, 8)]);
    let data = story.image(data, "data:1").await?;
    let client = &story.client;
    for (name, host) in [("a", 100_000), ("b", 100_000), ("c", 4_294_901_759)] {
        let mut config = pod(&story, name, host);
        let security = client::pod_security(&mut config);
        security.privileged = true;
        let options = security.namespace_options.get_or_insert_default();
        options.pid = cri::NamespaceMode::Pod.into();
        let shared = options.clone();
        let pod = client.run_pod_with(config).await?;
        let mut asked = story.script("c", "echo ready; exec sleep 1000");
        asked.mounts = vec![cri::Mount {
            container_path: "/image".into(),
            readonly: true,
            image: Some(client::spec(&data.tag)),
            ..Default::default()
        }];
        let security = client::security(&mut asked);
        security.namespace_options = Some(shared);
        security.privileged = true;
        let id = client.run(&pod, asked).await?;
        let seen = client
            .sh(
                &id,
                "cat /proc/self/uid_map; stat -c %u:%g /image/file; cat /proc/1/comm",
            )
            .await?;
        let words: Vec<&str> = seen.split_whitespace().collect();
        assert_eq!(words, ["0", &host.to_string(), "65536", "7:8", "berth-sandbox"]);
        // Privileged: all rights, within.
        let done = client
            .sh(
                &id,
                "mkdir /m && mount -t tmpfs x /m && ip link set lo down && ip link set lo up && echo done",
            )
            .await?;
        assert_eq!(done.trim(), "done");
        let reserved = client
            .exec(&id, &["sh", "-c", "ls /dev/mem 2>&1 && cat /dev/mem"])
            .await?;
        assert_ne!(reserved.code, 0, "{reserved:?}");
    }
    story.finish().await
}

/// KEP-127 with the node's network: the range is the pod's, the links are the node's.
#[tokio::test]
async fn the_nodes_network_with_users_of_ones_own() -> Result {
    let story = Story::begin().await?;
    if let Some(runtime) = e2e::handler() {
        eprintln!("skipped: {runtime} runs no pods in user namespaces, and refuses them (see handlers.rs)");
        return story.finish().await;
    }
    let client = &story.client;
    let mut config = pod(&story, "host", HOST);
    let options = client::pod_security(&mut config)
        .namespace_options
        .get_or_insert_default();
    options.network = cri::NamespaceMode::Node.into();
    let options = options.clone();
    let pod = client.run_pod_with(config).await?;
    let mut asked = story.script("c", "exec sleep 1000");
    client::security(&mut asked).namespace_options = Some(options);
    let id = client.run(&pod, asked).await?;
    let seen = client
        .sh(&id, "readlink /proc/self/ns/net; ls /sys/class/net | head -n 100; ip link set lo down || echo refused")
        .await?;
    let own = fs::read_link("/proc/self/ns/net")?;
    assert_eq!(seen.lines().next(), own.to_str());
    assert!(seen.ends_with("refused") && seen.contains("\nlo\n"), "{seen}");
    story.finish().await
}

#[tokio::test]
async fn what_is_refused_and_why() -> Result {
    let story = Story::begin().await?;
    if let Some(runtime) = e2e::handler() {
        eprintln!("skipped: {runtime} runs no pods in user namespaces, and refuses them (see handlers.rs)");
        return story.finish().await;
    }
    let client = &story.client;
    type Change = fn(&mut cri::NamespaceOption);
    let cases: [(&str, Change); 6] = [
        ("exactly one", |o| {
            o.userns_options.as_mut().unwrap().uids.extend(mapping(1))
        }),
        ("must begin at 0", |o| {
            o.userns_options.as_mut().unwrap().gids[0].container_id = 1
        }),
        ("none above 4294967294", |o| {
            o.userns_options.as_mut().unwrap().uids[0].host_id = u32::MAX - 3
        }),
        ("CONTAINER", |o| {
            o.userns_options.as_mut().unwrap().mode = cri::NamespaceMode::Container.into();
        }),
        (".pid", |o| o.pid = cri::NamespaceMode::Node.into()),
        (".ipc", |o| o.ipc = cri::NamespaceMode::Node.into()),
    ];
    for (reason, change) in cases {
        let mut config = pod(&story, "refused", HOST);
        change(
            client::pod_security(&mut config)
                .namespace_options
                .as_mut()
                .unwrap(),
        );
        let error = client.run_pod_with(config).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
        assert!(error.message().contains(reason), "{reason}: {error}");
    }
    let pod = client.run_pod_with(pod(&story, "good", HOST)).await?;
    let mut asked = story.script("user", "true");
    client::security(&mut asked).run_as_user = Some(cri::Int64Value { value: 70000 });
    let error = client.create(&pod, asked).await.unwrap_err();
    assert!(error.message().contains("70000"), "{error}");
    let mut asked = story.script("other", "true");
    let options = client::security(&mut asked)
        .namespace_options
        .get_or_insert_with(client::namespaces);
    options.userns_options = Some(user(5));
    let error = client.create(&pod, asked).await.unwrap_err();
    assert!(error.message().contains(&pod.id), "{error}");
    // A file system that cannot show other owners is named.
    let mut asked = story.script("volume", "true");
    asked.mounts = vec![volume("/data", "/proc/sys".as_ref(), HOST)];
    let error = client.create(&pod, asked).await.unwrap_err();
    assert!(
        error.message().contains("/data") && error.message().contains("cannot show other owners"),
        "{error}"
    );
    let status = client
        .runtime
        .clone()
        .status(cri::StatusRequest { verbose: false })
        .await?
        .into_inner();
    for handler in &status.runtime_handlers {
        let features = handler.features.as_ref().unwrap();
        assert!(features.user_namespaces, "{handler:?}");
    }
    assert!(status.features.unwrap().user_namespaces_host_network);
    story.finish().await
}
