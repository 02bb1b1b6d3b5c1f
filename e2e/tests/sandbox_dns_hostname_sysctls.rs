//! What the containers of a pod find out about their pod.

use e2e::{Result, Story, client::pod_security, cri};

#[tokio::test]
async fn dns_is_what_the_pod_asks_for() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut config = client.pod_config("dns");
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.1.2.3".into(), "fd00::53".into()],
        searches: vec!["a.example".into(), "b.example".into()],
        options: vec!["ndots:5".into(), "timeout:1".into()],
    });
    let pod = client.run_pod_with(config).await?;
    let id = client.run(&pod, story.script("c", "sleep 1000")).await?;
    let text = client.sh(&id, "cat /etc/resolv.conf").await?;
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "nameserver 10.1.2.3",
            "nameserver fd00::53",
            "options ndots:5 timeout:1",
            "search a.example b.example"
        ]
    );
    // Without a wish it is the node's.
    let (_, id) = story.sleeper("plain").await?;
    assert_eq!(
        client.sh(&id, "cat /etc/resolv.conf").await?,
        std::fs::read_to_string("/etc/resolv.conf")?.trim_end()
    );
    assert_eq!(client.sh(&id, "cat /etc/hostname").await?, "plain");
    story.finish().await
}

#[tokio::test]
async fn containers_of_a_pod_share_name_network_and_ipc() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (pod, one) = story.sleeper("shared").await?;
    let two = client.run(&pod, story.script("two", "sleep 1000")).await?;
    let spaces = "for n in net ipc uts; do readlink /proc/self/ns/$n; done";
    assert_eq!(client.sh(&one, spaces).await?, client.sh(&two, spaces).await?);
    let own = "for n in mnt pid; do readlink /proc/self/ns/$n; done";
    assert_ne!(client.sh(&one, own).await?, client.sh(&two, own).await?);
    client.sh(&one, "echo word > /dev/shm/file").await?;
    assert_eq!(client.sh(&two, "cat /dev/shm/file").await?, "word");
    story.finish().await
}

#[tokio::test]
async fn sysctls_of_the_namespaces_are_set_and_others_refused() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut config = client.pod_config("sysctls");
    let sysctls = [
        ("net.ipv4.ip_unprivileged_port_start", "777"),
        ("kernel.shm_rmid_forced", "1"),
        ("fs.mqueue.msg_max", "77"),
    ];
    config.linux.get_or_insert_default().sysctls = sysctls
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect();
    let pod = client.run_pod_with(config).await?;
    let id = client.run(&pod, story.script("c", "sleep 1000")).await?;
    for (key, value) in sysctls {
        let path = key.replace('.', "/");
        assert_eq!(
            client.sh(&id, &format!("cat /proc/sys/{path}")).await?,
            value,
            "{key}"
        );
    }
    let refused = async |key: &str, host_network: bool| -> Result<tonic::Status> {
        let mut config = client.pod_config("refused");
        config
            .linux
            .get_or_insert_default()
            .sysctls
            .insert(key.into(), "1".into());
        if host_network {
            let options = pod_security(&mut config)
                .namespace_options
                .get_or_insert_default();
            options.network = cri::NamespaceMode::Node.into();
        }
        Ok(client.run_pod_with(config).await.unwrap_err())
    };
    if !story.node.is_peer() {
        for (key, host) in [
            ("kernel.pid_max", false),
            ("vm.swappiness", false),
            ("net.ipv4.ip_forward", true),
        ] {
            let error = refused(key, host).await?;
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
            assert!(error.message().contains(key), "{error}");
        }
    }
    story.finish().await
}
