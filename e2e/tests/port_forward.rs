//! Port-forward through the streaming server.

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::{
    Client, Result, Story, WebSocket,
    client::{namespaces, pod_security},
    cri,
};

const V4: &str = "v4.channel.k8s.io";

async fn forward(client: &Client, pod: &str, port: u16) -> Result<WebSocket> {
    let request = cri::PortForwardRequest {
        pod_sandbox_id: pod.into(),
        port: vec![port.into()],
    };
    let url = client
        .runtime
        .clone()
        .port_forward(request)
        .await?
        .into_inner()
        .url;
    WebSocket::connect(&format!("{url}?port={port}"), V4).await
}

/// Channel 0 carries the data; both channels begin with the port in two bytes.
async fn answer(socket: &mut WebSocket, wanted: &str) -> Result<String> {
    let mut seen = Vec::new();
    while let Some((channel, data)) = socket.receive.message().await? {
        if channel == 0 {
            seen.extend_from_slice(&data);
        } else {
            ensure!(data.len() <= 2, "error: {}", String::from_utf8_lossy(&data));
        }
        let text = String::from_utf8_lossy(seen.get(2..).unwrap_or_default()).into_owned();
        if text.contains(wanted) {
            return Ok(text);
        }
    }
    Err(anyhow::anyhow!(
        "closed after {:?}",
        String::from_utf8_lossy(&seen)
    ))
}

#[tokio::test]
async fn ports_of_a_pod_and_of_the_node() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    for host in [false, true] {
        let mut config = client.pod_config(if host { "host" } else { "own" });
        if host {
            pod_security(&mut config).namespace_options = Some(cri::NamespaceOption {
                network: cri::NamespaceMode::Node as i32,
                ..namespaces()
            });
        }
        let pod = client.run_pod_with(config).await?;
        // On the node's network the port must be free.
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let families = if host {
            &["127.0.0.1"][..]
        } else {
            &["127.0.0.1", "[::1]"]
        };
        for (number, address) in families.iter().enumerate() {
            let script = format!("echo got it >/tmp/x; exec httpd -f -p {address}:{port} -h /tmp");
            let id = client
                .run(&pod, story.script(&format!("c{number}"), &script))
                .await?;
            let mut got = Err(anyhow::anyhow!("not tried"));
            for _ in 0..50 {
                let mut socket = forward(client, &pod.id, port).await?;
                socket.send.data(0, b"GET /x HTTP/1.0\r\n\r\n").await?;
                got = answer(&mut socket, "got it\n").await;
                if got.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            got.with_context(|| format!("host {host}, {address}"))?;
            client.stop(&id, 0).await?;
        }
        // Where nobody listens the client is told so.
        let mut socket = forward(client, &pod.id, port).await?;
        let error = answer(&mut socket, "\n").await.unwrap_err();
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
    story.finish().await
}
