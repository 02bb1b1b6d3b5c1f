//! The built-in bridge: addresses of both families, host ports, the host's network.

use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::mpsc,
    time::{Duration, Instant},
};

use e2e::{
    Client, Pod, Result, Story,
    client::{pod_security, security},
    cri, kernel, machine,
    registry::free_port,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

fn port(protocol: cri::Protocol, container: u16, host: u16) -> cri::PortMapping {
    cri::PortMapping {
        protocol: protocol.into(),
        container_port: container.into(),
        host_port: host.into(),
        host_ip: String::new(),
    }
}

/// What a TCP server says to who connects; tried until it listens.
fn ask(address: &str) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let answer = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        });
        match answer {
            Ok(text) if !text.is_empty() => return Ok(text),
            Err(error) if Instant::now() > deadline => return Err(anyhow::anyhow!("{address}: {error}")),
            _ if Instant::now() > deadline => return Err(anyhow::anyhow!("{address}: no answer")),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A server of TCP on port 80; `mark` tells its process from others.
async fn serving(client: &Client, image: &str, pod: &Pod, mark: u32) -> Result<String> {
    let script = format!("nc -ll -p 80 -e echo served & exec sleep {mark}");
    Ok(client.run(pod, client.script("server", image, &script)).await?)
}

/// Answers one UDP message with itself, on port 53 of the network namespace of
/// the process that sleeps for `mark` seconds.
fn echo_once(mark: u32) -> Result<()> {
    let pid = kernel::output("pgrep", &["-fx", &format!("sleep {mark}")]);
    let space = File::open(format!("/proc/{}/ns/net", pid.trim()))?;
    let (bound, ready) = mpsc::channel();
    // A thread of its own enters the namespace and ends in it.
    std::thread::spawn(move || -> Result<()> {
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
        let socket = UdpSocket::bind("0.0.0.0:53")?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        bound.send(())?;
        let mut bytes = [0; 64];
        let (count, from) = socket.recv_from(&mut bytes)?;
        socket.send_to(&bytes[..count], from)?;
        Ok(())
    });
    ready.recv_timeout(Duration::from_secs(5))?;
    Ok(())
}

#[tokio::test]
async fn pods_have_addresses_and_reach_each_other() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let one = client.run_pod("one").await?;
    let two = client.run_pod("two").await?;
    serving(client, &story.image.tag, &one, 810_000 + std::process::id()).await?;
    let addresses = client.addresses(&one).await?;
    let others = client.addresses(&two).await?;
    assert!(
        addresses.iter().all(|a| !others.contains(a)),
        "{addresses:?} {others:?}"
    );
    if !story.node.is_peer() {
        assert_eq!(addresses.len(), 2, "one of each family: {addresses:?}");
        assert!(addresses.iter().any(|a| a.contains('.')) && addresses.iter().any(|a| a.contains(':')));
    }
    let asking = client.run(&two, story.script("asking", "sleep 1000")).await?;
    let inside = client.sh(&asking, "ip addr show; ip link show lo").await?;
    assert!(inside.contains("LOOPBACK,UP"), "{inside}");
    for address in &others {
        assert!(inside.contains(address.as_str()), "{address} is not in {inside}");
    }
    for address in &addresses {
        // From the host, and from the other pod.
        let host = if address.contains(':') {
            format!("[{address}]:80")
        } else {
            format!("{address}:80")
        };
        assert_eq!(ask(&host)?, "served\n", "{host}");
        assert_eq!(
            client
                .sh(&asking, &format!("nc -w 2 {address} 80 </dev/null"))
                .await?,
            "served"
        );
    }
    // Out of the pod the node can be reached.
    let gateway = client
        .sh(&asking, "ip route | grep default | cut -d' ' -f3")
        .await?;
    assert_eq!(
        client
            .sh(&asking, &format!("ping -c 1 -W 2 {gateway} >/dev/null; echo $?"))
            .await?,
        "0"
    );
    story.finish().await
}

#[tokio::test]
async fn host_ports_lead_into_the_pod() -> Result {
    if !machine::has_nftables() {
        eprintln!("skipped: this kernel has no nf_tables, and so berthd no host ports");
        return Ok(());
    }
    let story = Story::begin().await?;
    let client = &story.client;
    let (tcp, udp, sctp, bound) = (free_port()?, free_port()?, free_port()?, free_port()?);
    let mut config = client.pod_config("ports");
    config.port_mappings = vec![
        port(cri::Protocol::Tcp, 80, tcp),
        port(cri::Protocol::Udp, 53, udp),
        port(cri::Protocol::Sctp, 83, sctp),
        cri::PortMapping {
            host_ip: "127.0.0.2".into(),
            ..port(cri::Protocol::Tcp, 81, bound)
        },
        // Documentation only: as the kubelet gives a container's port without a host's.
        port(cri::Protocol::Tcp, 82, 0),
    ];
    let pod = client.run_pod_with(config).await?;
    let mark = 820_000 + std::process::id();
    let server = serving(client, &story.image.tag, &pod, mark).await?;
    let more = story.script("more", "nc -ll -p 81 -e echo bound & exec sleep 1000");
    client.run(&pod, more).await?;
    assert_eq!(ask(&format!("127.0.0.1:{tcp}"))?, "served\n");
    // Each port at its own address only, and each protocol apart.
    assert_eq!(ask(&format!("127.0.0.2:{bound}"))?, "bound\n");
    assert!(TcpStream::connect(format!("127.0.0.1:{bound}")).is_err());
    for port in [udp, sctp] {
        assert!(TcpStream::connect(format!("127.0.0.1:{port}")).is_err());
    }
    if !story.node.is_peer() {
        // Nobody here speaks SCTP: what the kernel was told is looked at.
        let rules = kernel::output("nft", &["list", "ruleset"]);
        let address = &client.addresses(&pod).await?[0];
        let rule = format!("sctp . {sctp} : {address} . 83");
        assert!(rules.contains(&rule), "{rule}: {rules}");
        assert!(!rules.contains(&format!("{address} . 82")), "{rules}");
    }
    echo_once(mark)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.send_to(b"echo", format!("127.0.0.1:{udp}"))?;
    let mut bytes = [0; 16];
    let count = socket.recv(&mut bytes)?;
    assert_eq!(&bytes[..count], b"echo");

    // Another pod reaches it by the node's own address too.
    let other = client.run_pod("other").await?;
    let asking = client.run(&other, story.script("asking", "sleep 1000")).await?;
    let gateway = client
        .sh(&asking, "ip route | grep default | cut -d' ' -f3")
        .await?;
    assert_eq!(
        client
            .sh(&asking, &format!("nc -w 2 {gateway} {tcp} </dev/null"))
            .await?,
        "served"
    );

    // A stopped pod gives its ports back.
    client.stop(&server, 0).await?;
    client.stop_pod(&pod.id).await?;
    assert!(TcpStream::connect(format!("127.0.0.1:{tcp}")).is_err());
    story.finish().await
}

#[tokio::test]
async fn the_hosts_network_is_the_hosts() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut config = client.pod_config("host");
    config.hostname = String::new();
    let node = cri::NamespaceMode::Node.into();
    pod_security(&mut config)
        .namespace_options
        .get_or_insert_default()
        .network = node;
    let pod = client.run_pod_with(config).await?;
    let mut container = story.script("c", "sleep 1000");
    security(&mut container)
        .namespace_options
        .get_or_insert_default()
        .network = node;
    let id = client.run(&pod, container).await?;
    let own = std::fs::read_link("/proc/self/ns/net")?;
    assert_eq!(
        client.sh(&id, "readlink /proc/self/ns/net").await?,
        own.to_string_lossy()
    );
    assert_eq!(client.addresses(&pod).await?, [""]);
    assert_eq!(
        client.sh(&id, "hostname").await?,
        kernel::output("hostname", &[]).trim()
    );

    // A server in the pod is a server of the host.
    let port = free_port()?;
    let server = format!("nc -l -p {port} -e echo from-host-net >/dev/null 2>&1 & sleep 0.2");
    client.sh(&id, &server).await?;
    let mut text = String::new();
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}"))?;
    let _ = stream.write_all(b"\n");
    let _ = stream.read_to_string(&mut text);
    assert_eq!(text, "from-host-net\n");
    story.finish().await
}
