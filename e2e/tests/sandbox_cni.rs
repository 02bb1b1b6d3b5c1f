//! A CNI configuration: Debian's bridge, host-local and portmap plugins, and a plugin
//! of the story's own that writes down what it is asked.

use std::{
    fs,
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Client, Node, Result, Story, cri, machine, registry::free_port};

#[tokio::test]
async fn a_conflist_is_used_when_there_is_one() -> Result {
    let mut node = Node::prepare("[network]\ncni_bin_dirs = [\"/usr/lib/cni\"]\n")?;
    if node.is_peer() {
        eprintln!("skipped: the network of another server is not ours to set");
        return Ok(());
    }
    if !std::path::Path::new("/usr/lib/cni/bridge").exists() {
        eprintln!("skipped: the package containernetworking-plugins is not installed");
        return Ok(());
    }
    if !machine::has_nftables() {
        eprintln!("skipped: this kernel has no nf_tables, which portmap needs");
        return Ok(());
    }
    let bridge = format!("cni{:x}", std::process::id());
    node.also_ours(&bridge)?;
    let ipam = node.path().join("ipam");
    let third = std::process::id() % 250;
    let conflist = format!(
        r#"{{"cniVersion": "1.0.0", "name": "story", "plugins": [
            {{"type": "bridge", "bridge": "{bridge}", "isGateway": true, "ipMasq": false,
              "ipam": {{"type": "host-local", "dataDir": "{}",
                        "ranges": [[{{"subnet": "10.217.{third}.0/24"}}]],
                        "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#,
        ipam.display()
    );
    fs::write(node.path().join("cni/10-story.conflist"), conflist)?;
    node.launch().await?;
    let story = Story::begin_on(node).await?;
    let client = &story.client;
    let port = free_port()?;
    let mut config = client.pod_config("cni");
    config.port_mappings = vec![cri::PortMapping {
        protocol: cri::Protocol::Tcp.into(),
        container_port: 80,
        host_port: port.into(),
        host_ip: String::new(),
    }];
    let pod = client.run_pod_with(config).await?;
    let addresses = client.addresses(&pod).await?;
    assert_eq!(addresses.len(), 1);
    assert!(
        addresses[0].starts_with(&format!("10.217.{third}.")),
        "{addresses:?}"
    );
    let id = client
        .run(
            &pod,
            story.script("c", "nc -ll -p 80 -e echo served & sleep 1000"),
        )
        .await?;
    let inside = client.sh(&id, "ip addr").await?;
    assert!(
        inside.contains(&addresses[0]) && inside.contains("LOOPBACK,UP"),
        "{inside}"
    );
    tokio::time::sleep(Duration::from_millis(100)).await;
    TcpStream::connect(format!("{}:80", addresses[0]))?;
    TcpStream::connect(format!("127.0.0.1:{port}"))?;

    // The plugins' own records are given back with the pod.
    let leases = || {
        fs::read_dir(ipam.join("story")).map_or(0, |dir| {
            dir.flatten()
                .filter(|e| e.file_name().to_string_lossy().starts_with("10."))
                .count()
        })
    };
    assert_eq!(leases(), 1);
    client.stop_pod(&pod.id).await?;
    assert_eq!(leases(), 0);
    client.remove_pod(&pod.id).await?;
    // The bridge is the plugin's: nobody removes it but we.
    e2e::kernel::output("ip", &["link", "delete", &bridge]);
    story.finish().await
}

/// Gives an address and makes nothing; fails a verb while there is a file of its name.
const RECORDER: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
{ echo "$CNI_COMMAND $CNI_CONTAINERID"; cat; echo; } >>log
[ -e "$CNI_COMMAND" ] && { echo '{"cniVersion":"1.1.0","code":50,"msg":"the daemon is away"}'; exit 1; }
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.7/24"}]}'
exit 0
"#;

/// What the recorder wrote, once it has written what is awaited and the configuration
/// that follows it.
async fn written(folder: &Path, awaited: &str) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
        let is_whole = |rest: &str| rest.contains("}\n");
        if log.split_once(awaited).is_some_and(|(_, rest)| is_whole(rest)) {
            return Ok(log);
        }
        ensure!(Instant::now() < deadline, "no {awaited:?} in {log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn network_ready(client: &Client) -> Result<cri::RuntimeCondition> {
    let request = cri::StatusRequest { verbose: false };
    let told = client.runtime.clone().status(request).await?.into_inner();
    let conditions = told.status.context("status")?.conditions;
    let network = conditions.into_iter().find(|it| it.r#type == "NetworkReady");
    network.context("NetworkReady")
}

/// The verbs of version 1.1: STATUS decides about the node, GC is told the pods, CHECK
/// after a restart finds the broken one; and a handler's pods have their own folder.
#[tokio::test]
async fn plugins_are_asked_and_told() -> Result {
    let mut node = Node::prepare("")?;
    if node.is_peer() {
        eprintln!("skipped: the network of another server is not ours to set");
        return Ok(());
    }
    let (bin, own) = (node.path().join("bin"), node.path().join("own"));
    fs::create_dir(&bin)?;
    fs::create_dir(&own)?;
    fs::write(bin.join("recorder"), RECORDER)?;
    fs::set_permissions(bin.join("recorder"), fs::Permissions::from_mode(0o755))?;
    let list = |name: &str| {
        format!(r#"{{"cniVersion": "1.1.0", "name": "{name}", "plugins": [{{"type": "recorder"}}]}}"#)
    };
    fs::write(node.path().join("cni/10-story.conflist"), list("story"))?;
    fs::write(own.join("10-own.conflist"), list("own"))?;
    let config = format!(
        "[network]\ncni_bin_dirs = [\"{}\"]\ncni_gc_interval = 1\n[runtimes.other]\ncni_conf_dir = \"{}\"\n",
        bin.display(),
        own.display()
    );
    fs::write(node.path().join("config.d/yy-cni.toml"), config)?;
    node.launch().await?;
    let mut story = Story::begin_on(node).await?;
    let client = story.client.clone();
    assert!(network_ready(&client).await?.status);
    written(&bin, "STATUS").await?;

    // The node is not ready while the plugin says so.
    fs::write(bin.join("STATUS"), "")?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let network = loop {
        let network = network_ready(&client).await?;
        if !network.status {
            break network;
        }
        ensure!(Instant::now() < deadline, "STATUS is not asked again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(network.reason, "NetworkPluginNotReady");
    assert!(network.message.contains("the daemon is away"), "{network:?}");
    fs::remove_file(bin.join("STATUS"))?;

    // On the timer; before there was a pod, nothing was told.
    let log = written(&bin, "STATUS").await?;
    assert!(!log.contains("GC "), "{log}");
    let pod = client.run_pod("known").await?;
    assert_eq!(client.addresses(&pod).await?, ["192.0.2.7"]);
    let log = written(&bin, "GC ").await?;
    let attachment = format!(
        r#""cni.dev/valid-attachments":[{{"containerID":"{}","ifname":"eth0"}}]"#,
        pod.id
    );
    assert!(log.contains(&attachment), "{log}");

    // The handler's pods are in its network.
    let request = cri::RunPodSandboxRequest {
        config: Some(client.pod_config("other")),
        runtime_handler: "other".into(),
    };
    let other = client
        .runtime
        .clone()
        .run_pod_sandbox(request)
        .await?
        .into_inner()
        .pod_sandbox_id;
    let log = written(&bin, &format!("ADD {other}")).await?;
    let call = log
        .split(&format!("ADD {other}\n"))
        .nth(1)
        .context("its configuration")?;
    assert!(
        call.lines()
            .next()
            .unwrap_or_default()
            .contains(r#""name":"own""#),
        "{call}"
    );

    // berthd dies, and the network of the pods is not what it was.
    story.node.kill()?;
    fs::remove_file(bin.join("log"))?;
    fs::write(bin.join("CHECK"), "")?;
    story.node.launch().await?;
    story.client = story.node.client().await?;
    let client = story.client.clone();
    written(&bin, &format!("CHECK {}", pod.id)).await?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: true,
        };
        let told = client
            .runtime
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner();
        let info: serde_json::Value = serde_json::from_str(&told.info["info"])?;
        if let Some(message) = info["networkBroken"].as_str() {
            assert!(
                message.contains("CHECK of plugin recorder the daemon is away"),
                "{message}"
            );
            assert_eq!(
                told.status.context("status")?.state(),
                cri::PodSandboxState::SandboxReady
            );
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "the verbose status does not say it: {info}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client.stop_pod(&other).await?;
    client.stop_pod(&pod.id).await?;
    let log = written(&bin, &format!("DEL {}", pod.id)).await?;
    assert!(log.contains(&format!("DEL {other}")), "{log}");
    client.remove_pod(&other).await?;
    client.remove_pod(&pod.id).await?;
    story.finish().await
}
