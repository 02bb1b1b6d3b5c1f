//! A CNI configuration: Debian's bridge, host-local and portmap plugins.

use std::{fs, net::TcpStream, time::Duration};

use e2e::{Node, Result, Story, cri, machine, registry::free_port};

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
