//! Words that a pod's author chooses and that end up in files, arguments and names on
//! the node (CVE-2022-0811, 2024-3154, 2026-15809), and sockets that a container on the
//! node's network could reach (CVE-2020-15257, 2024-25621).

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
};

use e2e::{
    Result, Story,
    client::{pod_security, security},
    cri, machine,
};

/// Sysctls of the node that these stories try to change by a pod's.
const NODE: [&str; 3] = ["kernel/core_pattern", "kernel/modprobe", "vm/swappiness"];

fn of_node() -> Vec<String> {
    NODE.iter()
        .map(|name| fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default())
        .collect()
}

#[tokio::test]
async fn sysctls_change_nothing_but_the_pods() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let before = of_node();
    let cases = [
        ("kernel.core_pattern", "|/bin/evil"),
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/bin/evil"),
        ("kernel.shm_rmid_forced+kernel.core_pattern", "|/bin/evil"),
        ("kernel.shm_rmid_forced\nkernel.core_pattern", "1"),
        ("net/../kernel/core_pattern", "|/bin/evil"),
        ("net.ipv4.//.//.kernel.core_pattern", "|/bin/evil"),
        ("net...kernel.core_pattern", "|/bin/evil"),
        ("net.ipv4.ping_group_range\0", "0 0"),
        ("/proc/sys/kernel/core_pattern", "|/bin/evil"),
        ("fs.mqueue/../../kernel/core_pattern", "|/bin/evil"),
        ("kernel.modprobe", "/bin/evil"),
        ("vm.swappiness", "1"),
        ("", "1"),
    ];
    for (key, value) in cases {
        let mut config = client.pod_config("sysctl");
        let linux = config.linux.get_or_insert_default();
        linux.sysctls.insert(key.into(), value.into());
        let error = client.run_pod_with(config).await.unwrap_err();
        assert!(!error.message().is_empty(), "{key:?}");
        assert_eq!(of_node(), before, "{key:?}");
    }
    // A value is a value, with all that is in it: the kernel takes it for this key or not.
    let mut config = client.pod_config("lines");
    let linux = config.linux.get_or_insert_default();
    let value = "65000\nkernel.core_pattern=|/bin/evil";
    linux.sysctls.insert("kernel.shmmni".into(), value.into());
    let outcome = client.run_pod_with(config).await;
    eprintln!("a value of two lines: {:?}", outcome.map(|pod| pod.id));
    assert_eq!(of_node(), before);
    // And with one that is the pod's it works.
    let mut config = client.pod_config("good");
    let linux = config.linux.get_or_insert_default();
    linux.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let pod = client.run_pod_with(config).await?;
    let script = story.script("c", "cat /proc/sys/kernel/shm_rmid_forced");
    assert_eq!(client.run_to_end(&pod, script).await?.stdout, "1\n");
    story.finish().await
}

const LINES: &str = "first\nsecond: \"quoted\" \\ $(touch /tmp/evil)\r\n[section]\nkey=value\u{7f}\u{202e}";

#[tokio::test]
async fn texts_of_several_lines_stay_what_they_are() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut config = client.pod_config("lines");
    config.annotations.insert("note".into(), LINES.into());
    config.annotations.insert(format!("key {LINES}"), "value".into());
    config.labels.insert("label".into(), LINES.into());
    let pod = client.run_pod_with(config.clone()).await?;
    let told = client.pod_status(&pod.id).await?;
    assert_eq!(
        (&told.annotations, &told.labels),
        (&config.annotations, &config.labels)
    );

    let mut config = story.script("c", "printf %s \"$TEXT\"; printf %s \"$0\" >&2");
    config.command.push(LINES.into());
    config.envs.push(cri::KeyValue {
        key: "TEXT".into(),
        value: LINES.into(),
    });
    config.annotations.insert("note".into(), LINES.into());
    config.labels.insert("label".into(), LINES.into());
    let id = client.create(&pod, config.clone()).await?;
    let told = client.status(&id).await?;
    assert_eq!(
        (&told.annotations, &told.labels),
        (&config.annotations, &config.labels)
    );
    client.remove(&id).await?;
    let output = client.run_to_end(&pod, config).await?;
    assert_eq!(output.stdout.trim_end(), LINES, "{output:?}");
    assert_eq!(output.stderr.trim_end(), LINES, "{output:?}");

    // What would begin a line of its own in a file.
    let refused = async |change: &dyn Fn(&mut cri::PodSandboxConfig)| -> Result {
        let mut config = client.pod_config("refused");
        change(&mut config);
        let error = client.run_pod_with(config).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
        Ok(())
    };
    refused(&|c| c.hostname = "name\n127.0.0.1 evil".into()).await?;
    refused(&|c| c.dns_config.get_or_insert_default().servers = vec!["1.1.1.1\noptions evil".into()]).await?;
    refused(&|c| c.dns_config.get_or_insert_default().searches = vec!["a\r\nnameserver 6.6.6.6".into()])
        .await?;
    story.finish().await
}

/// Names are no paths, whatever they look like.
#[tokio::test]
async fn names_lead_nowhere() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let outside = story.node.path().join("outside");
    for (number, name) in [
        "../../outside",
        "/outside",
        "a/../../../outside",
        ".",
        "..",
        "a\nb",
        "-x",
        "%n",
        "a b",
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = client.pod_config("names");
        let metadata = config.metadata.get_or_insert_default();
        metadata.name = name.into();
        metadata.namespace = name.into();
        metadata.uid = format!("{name}{number}");
        let pod = client.run_pod_with(config).await?;
        let mut container = story.script("c", "echo ran");
        container.metadata.get_or_insert_default().name = name.into();
        assert_eq!(
            client.run_to_end(&pod, container).await?.stdout,
            "ran\n",
            "{name:?}"
        );
        client.stop_pod(&pod.id).await?;
        client.remove_pod(&pod.id).await?;
        assert!(!outside.exists(), "{name:?}");
    }
    // A path it is, and one that leads out.
    let of_driver: &[&str] = match machine::has_systemd_cgroups() {
        true => &["-a.slice", "a--b.slice", "/a.slice/../../b.slice", "a/b.slice"],
        false => &["..slice"],
    };
    let leads_out = ["../outside", "/../../outside", "/a/../../b", "a\n"];
    for parent in leads_out.iter().chain(of_driver) {
        let mut config = client.pod_config("parent");
        config.linux.get_or_insert_default().cgroup_parent = (*parent).into();
        let error = client.run_pod_with(config).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{parent:?}: {error}");
    }
    story.finish().await
}

fn sockets(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => sockets(&entry.path(), found),
            Ok(kind) if kind.is_socket() => found.push(entry.path()),
            _ => {}
        }
    }
}

#[tokio::test]
async fn sockets_are_out_of_reach_from_the_nodes_network() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    // What a container could see, if it were there.
    let mark = format!("e2e-{}", std::process::id());
    let own = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&mark)?)?;
    let mut config = client.pod_config("network");
    let options = pod_security(&mut config)
        .namespace_options
        .get_or_insert_default();
    options.network = cri::NamespaceMode::Node.into();
    options.pid = cri::NamespaceMode::Node.into();
    let pod = client.run_pod_with(config).await?;
    let mut config = story.script("c", "exec sleep 1000");
    let options = security(&mut config).namespace_options.get_or_insert_default();
    options.network = cri::NamespaceMode::Node.into();
    options.pid = cri::NamespaceMode::Node.into();
    let id = client.run(&pod, config).await?;
    let seen = client.sh(&id, "cat /proc/net/unix").await?;
    let names: Vec<_> = seen
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .collect();
    assert!(names.contains(&&*format!("@{mark}")), "{seen}");
    let folder = story
        .node
        .path()
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    for name in names.iter().filter(|name| name.starts_with('@')) {
        let ours =
            name.contains("berth") || name.contains(&*folder) || name.contains(&id) || name.contains(&pod.id);
        assert!(!ours, "an abstract socket of ours: {name}");
    }
    // Those with a path are not in its root, and the node's root is closed to it, though
    // it sees the processes.
    let berthd = story.node.pid().unwrap_or_default();
    let script = format!(
        "cat /proc/{berthd}/comm; for l in root cwd exe fd/0; do readlink /proc/{berthd}/$l && echo open $l; done; \
         ls /proc/{berthd}/root/ && echo open root; ls {} && echo open path; true",
        story.node.state().display()
    );
    let output = client.exec(&id, &["sh", "-c", &script]).await?;
    assert!(output.stdout.starts_with("berthd\n"), "{output:?}");
    assert!(!output.stdout.contains("open"), "{output:?}");
    drop(own);

    let mut found = Vec::new();
    sockets(&story.node.state(), &mut found);
    assert!(found.len() >= 2, "berthd's and a shim's: {found:?}");
    for socket in found {
        let mode = fs::metadata(&socket)?.permissions().mode();
        assert_eq!(mode & 0o177, 0, "{}: {mode:o}", socket.display());
    }
    for folder in [story.node.state(), story.node.root()] {
        let mode = fs::metadata(&folder)?.permissions().mode();
        assert_eq!(mode & 0o066, 0, "{}: {mode:o}", folder.display());
    }
    story.finish().await
}
