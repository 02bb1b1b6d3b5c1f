//! Every field of the requests for streams, one against the other.

use std::time::Duration;

use e2e::{
    Client, Result, Story, WebSocket,
    client::namespaces,
    cri,
    websocket::{STDERR, STDIN, STDOUT, Session},
};
use tonic::Code;

const V5: &str = "v5.channel.k8s.io";

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Runs a command whose input ends at once.
async fn exec(client: &Client, request: cri::ExecRequest) -> Result<Session> {
    let stdin = request.stdin;
    let url = client.runtime.clone().exec(request).await?.into_inner().url;
    assert!(
        url.starts_with("http://127.0.0.1:") || url.contains("://"),
        "{url}"
    );
    let mut socket = WebSocket::connect(&url, V5).await?;
    if stdin {
        socket.send.data(STDIN, b"in\n").await?;
        socket.send.close(STDIN).await?;
    }
    socket.receive.finish().await
}

#[tokio::test]
async fn exec_does_what_each_field_says() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (_, one) = story.sleeper("one").await?;
    let (_, two) = story.sleeper("two").await?;
    let request = |id: &str, script: &str| cri::ExecRequest {
        container_id: id.into(),
        cmd: words(&["sh", "-c", script]),
        stdout: true,
        ..Default::default()
    };
    // The container and the command, of both ways to execute one.
    for (id, name) in [(&one, "one\n"), (&two, "two\n")] {
        assert_eq!(exec(client, request(id, "hostname")).await?.stdout(), name);
        assert_eq!(client.exec(id, &["hostname"]).await?.stdout, name);
    }
    let script = "cat; echo out; echo err >&2; test -t 1 && echo terminal; true";
    for (stdin, stdout, stderr) in [
        (true, true, true),
        (false, true, true),
        (true, false, true),
        (true, true, false),
    ] {
        let request = cri::ExecRequest {
            stdin,
            stdout,
            stderr,
            ..request(&one, script)
        };
        let session = exec(client, request).await?;
        assert!(session.succeeded(), "{session:?}");
        let expected = match (stdin, stdout) {
            (_, false) => "",
            (true, _) => "in\nout\n",
            (false, _) => "out\n",
        };
        assert_eq!(session.stdout(), expected, "{stdin} {stdout} {stderr}");
        let expected: &[u8] = if stderr { b"err\n" } else { b"" };
        assert_eq!(session.stderr, expected, "{stdin} {stdout} {stderr}");
    }
    // Whatever of the protocols a client offers, there is one to speak.
    for offered in [
        "v5.channel.k8s.io, v4.channel.k8s.io, v3.channel.k8s.io, v2.channel.k8s.io, channel.k8s.io",
        "v4.channel.k8s.io",
        "v3.channel.k8s.io",
        "v2.channel.k8s.io",
        "channel.k8s.io",
    ] {
        if story.node.is_peer() && !offered.contains("v4") {
            continue;
        }
        let mut runtime = client.runtime.clone();
        let answer = runtime.exec(request(&one, "echo out")).await?;
        let url = answer.into_inner().url;
        let mut socket = WebSocket::connect(&url, offered).await?;
        let session = socket.receive.finish().await?;
        assert_eq!(session.stdout(), "out\n", "{offered}");
    }
    let mut terminal = request(&one, "test -t 1 && echo terminal");
    terminal.tty = true;
    assert_eq!(exec(client, terminal.clone()).await?.stdout(), "terminal\r\n");
    terminal.stderr = true;
    let error = client.runtime.clone().exec(terminal).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    story.finish().await
}

/// Takes messages until the output holds `text`; everything that came, by channel.
async fn until(socket: &mut WebSocket, channel: u8, text: &str) -> Result<[String; 2]> {
    let mut seen = [String::new(), String::new()];
    let at = |channel: u8| usize::from(channel == STDERR);
    while !seen[at(channel)].contains(text) {
        let waited = tokio::time::timeout(Duration::from_secs(20), socket.receive.message());
        let Some((channel, data)) = waited.await?? else {
            anyhow::bail!("closed before {text:?}: {seen:?}");
        };
        if channel == STDOUT || channel == STDERR {
            seen[at(channel)].push_str(&String::from_utf8_lossy(&data));
        }
    }
    Ok(seen)
}

#[tokio::test]
async fn attach_does_what_each_field_says() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("attached").await?;
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let script = format!("while read line; do echo {name} $line; echo err $line >&2; done");
        let mut config = story.script(name, &script);
        config.stdin = true;
        ids.push(client.run(&pod, config).await?);
    }
    let request = |id: &str| cri::AttachRequest {
        container_id: id.into(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    };
    let attach = async |request: cri::AttachRequest| -> Result<WebSocket> {
        let url = client.runtime.clone().attach(request).await?.into_inner().url;
        WebSocket::connect(&url, V5).await
    };
    let mut other = attach(request(&ids[1])).await?;
    let whole = attach(request(&ids[0])).await?;
    let deaf = attach(cri::AttachRequest {
        stdout: false,
        stdin: false,
        ..request(&ids[0])
    })
    .await?;
    let mut dumb = attach(cri::AttachRequest {
        stdin: false,
        stderr: false,
        ..request(&ids[0])
    })
    .await?;
    // The answer to an upgrade comes before the container's streams are joined: a
    // line is said again until everybody has heard one.
    let saying = {
        let mut send = whole.send;
        tokio::spawn(async move {
            for number in 0..400 {
                let line = format!("line{number}.\n");
                if send.data(STDIN, line.as_bytes()).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    };
    let heard = async |mut receive: e2e::websocket::Receiver| -> Result<[String; 2]> {
        let mut seen = [String::new(), String::new()];
        // Enough that what a stream was not asked for would have come too.
        while seen.iter().map(|text| text.matches('\n').count()).sum::<usize>() < 10 {
            let waited = tokio::time::timeout(Duration::from_secs(20), receive.message());
            let Some((channel, data)) = waited.await?? else {
                anyhow::bail!("closed: {seen:?}");
            };
            seen[usize::from(channel == STDERR)].push_str(&String::from_utf8_lossy(&data));
        }
        Ok(seen)
    };
    // Whoever was not asked for an input has none.
    let _ = dumb.send.data(STDIN, b"never\n").await;
    let [out, err] = heard(whole.receive).await?;
    assert!(
        out.contains("one line") && err.contains("err line"),
        "{out} {err}"
    );
    assert!(!out.contains("never"), "{out}");
    let [out, err] = heard(deaf.receive).await?;
    assert!(out.is_empty() && err.contains("err line"), "{out} {err}");
    saying.abort();
    other.send.data(STDIN, b"last\n").await?;
    let [out, _] = until(&mut other, STDOUT, "two last").await?;
    assert!(!out.contains("line"), "of another container: {out}");
    drop(deaf.send);

    // One that has no error stream and did not try to speak.
    let mut quiet = attach(cri::AttachRequest {
        stderr: false,
        ..request(&ids[1])
    })
    .await?;
    let mut said = [String::new(), String::new()];
    for _ in 0..5 {
        quiet.send.data(STDIN, b"again\n").await?;
        let [out, err] = until(&mut quiet, STDOUT, "two again").await?;
        said[0].push_str(&out);
        said[1].push_str(&err);
    }
    assert!(said[1].is_empty(), "{said:?}");

    let both = cri::AttachRequest {
        tty: true,
        ..request(&ids[0])
    };
    let error = client.runtime.clone().attach(both).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    story.finish().await
}

#[tokio::test]
async fn a_port_is_forwarded_of_the_pod_that_was_named() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        let pod = client.run_pod(name).await?;
        let script = format!(
            "mkdir /tmp/a /tmp/b; echo {name}-a >/tmp/a/x; echo {name}-b >/tmp/b/x; \
             httpd -p 127.0.0.1:8080 -h /tmp/a; httpd -p 127.0.0.1:8081 -h /tmp/b; exec sleep 1000"
        );
        let mut config = story.script("server", &script);
        e2e::client::security(&mut config).namespace_options = Some(namespaces());
        let id = client.run(&pod, config).await?;
        for _ in 0..200 {
            let asked = "wget -q -O - http://127.0.0.1:8080/x; wget -q -O - http://127.0.0.1:8081/x";
            if client.exec(&id, &["sh", "-c", asked]).await?.code == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        pods.push((pod.id, name));
    }
    for (pod, name) in &pods {
        for (port, letter) in [(8080, "a"), (8081, "b")] {
            // The port is in the request alone.
            let request = cri::PortForwardRequest {
                pod_sandbox_id: pod.clone(),
                port: vec![port],
            };
            let told = client.runtime.clone().port_forward(request).await?;
            let mut url = told.into_inner().url;
            if story.node.is_peer() {
                url.push_str(&format!("?port={port}"));
            }
            let mut socket = WebSocket::connect(&url, "v4.channel.k8s.io").await?;
            socket.send.data(0, b"GET /x HTTP/1.0\r\n\r\n").await?;
            let expected = format!("{name}-{letter}\n");
            let mut seen = Vec::new();
            while !String::from_utf8_lossy(&seen).contains(&expected) {
                let waited = tokio::time::timeout(Duration::from_secs(20), socket.receive.message());
                let Some((channel, data)) = waited.await?? else {
                    anyhow::bail!("{expected}: {:?}", String::from_utf8_lossy(&seen));
                };
                if channel == 0 {
                    seen.extend_from_slice(&data);
                }
            }
        }
    }
    if !story.node.is_peer() {
        for port in [0, -1, 65536] {
            let request = cri::PortForwardRequest {
                pod_sandbox_id: pods[0].0.clone(),
                port: vec![port],
            };
            let error = client.runtime.clone().port_forward(request).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{port}: {error}");
        }
    }
    story.finish().await
}
