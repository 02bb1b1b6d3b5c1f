//! The streaming server's configuration: TLS, and the time that clients have.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use e2e::{
    Node, Result, Spdy, Story, WebSocket, kernel,
    spdy::Event,
    streams::{exec_of, until},
    websocket::STDIN,
};

const V4: &str = "v4.channel.k8s.io";
const V5: &str = "v5.channel.k8s.io";

/// Writes a certificate for loopback and its key, and gives the certificate for a
/// client to trust, as a file of its own.
fn certify(folder: &Path, name: &str) -> Result<std::path::PathBuf> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let trusted = folder.join(name);
    fs::write(&trusted, made.cert.pem())?;
    // Replaced as an administrator's tool does it, one after the other.
    for (file, text) in [
        ("cert", made.cert.pem()),
        ("key", made.signing_key.serialize_pem()),
    ] {
        fs::write(folder.join("new"), text)?;
        fs::rename(folder.join("new"), folder.join(file))?;
    }
    Ok(trusted)
}

#[tokio::test]
async fn certificates_are_read_again_when_they_change() -> Result {
    let folder = tempfile::tempdir()?;
    let first = certify(folder.path(), "first")?;
    let shown = folder.path().display();
    let config = format!("[streaming]\ntls_cert = \"{shown}/cert\"\ntls_key = \"{shown}/key\"\n");
    let story = Story::begin_with(&config).await?;
    if story.node.is_peer() {
        eprintln!("skipped: the certificate of a peer is not ours");
        return story.finish().await;
    }
    let client = &story.client;
    let (_, id) = story.sleeper("tls").await?;
    let url = client.exec_url(exec_of(&id, &["cat"])).await?;
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    // Who speaks no TLS gets no stream, and has not used the URL up.
    let plain = url.replace("https://", "http://");
    WebSocket::connect(&plain, V5).await.unwrap_err();
    let mut old = WebSocket::connect_trusting(&url, V5, Some(&first)).await?;
    old.send.data(STDIN, b"one\n").await?;
    old.receive.until("one\n").await?;

    let second = certify(folder.path(), "second")?;
    let url = client.exec_url(exec_of(&id, &["cat"])).await?;
    let error = WebSocket::connect_trusting(&url, V5, Some(&first))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let mut new = WebSocket::connect_trusting(&url, V5, Some(&second)).await?;
    new.send.data(STDIN, b"two\n").await?;
    new.receive.until("two\n").await?;
    // A session that was there goes on with the certificate that it began with.
    old.send.data(STDIN, b"three\n").await?;
    old.receive.until("three\n").await?;

    // A certificate that is none leaves the last good one served.
    fs::write(folder.path().join("cert"), "nothing")?;
    let url = client.exec_url(exec_of(&id, &["echo", "four"])).await?;
    let mut kept = WebSocket::connect_trusting(&url, V5, Some(&second)).await?;
    assert_eq!(kept.receive.finish().await?.stdout(), "four\n");
    for mut socket in [old, new] {
        socket.send.close(STDIN).await?;
        assert!(socket.receive.finish().await?.succeeded());
    }
    story.finish().await
}

/// berthd names the file when it cannot serve with it.
#[tokio::test]
async fn a_certificate_that_is_none_is_said_at_the_start() -> Result {
    let folder = tempfile::tempdir()?;
    certify(folder.path(), "good")?;
    fs::write(folder.path().join("cert"), "nothing")?;
    let shown = folder.path().display();
    let config = format!("[streaming]\ntls_cert = \"{shown}/cert\"\ntls_key = \"{shown}/key\"\n");
    let mut node = Node::prepare(&config)?;
    if node.is_peer() {
        eprintln!("skipped: a peer runs already");
        return Ok(());
    }
    let error = node.launch().await.unwrap_err().to_string();
    assert!(error.contains(&format!("{shown}/cert")), "{error}");
    Ok(())
}

/// The time to open the streams is short and that of idleness long: only a client
/// that opens none is ended.
#[tokio::test]
async fn streams_must_be_opened_in_time() -> Result {
    let story = Story::begin_with("[streaming]\ncreation_timeout = 1\nidle_timeout = 600\n").await?;
    if story.node.is_peer() {
        eprintln!("skipped: the time-outs of a peer are not ours");
        return story.finish().await;
    }
    let client = &story.client;
    let (_, id) = story.sleeper("creation").await?;
    let url = client.exec_url(exec_of(&id, &["cat"])).await?;
    let mut idle = Spdy::connect(&url, V4).await?;
    let [_, stdin, stdout, _] = idle.open(["error", "stdin", "stdout", "stderr"]).await?;
    let begin = Instant::now();
    let url = client.exec_url(exec_of(&id, &["cat"])).await?;
    let mut late = Spdy::connect(&url, V4).await?;
    let [error] = late.open(["error"]).await?;
    let said = late.receive.finish().await?;
    let took = begin.elapsed();
    ensure!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(300),
        "ended after {took:?}"
    );
    let said = String::from_utf8_lossy(&said[&error]).into_owned();
    assert!(said.contains("timed out"), "{said}");
    // Nothing passed on the other connection for as long, and longer.
    tokio::time::sleep(Duration::from_secs(2)).await;
    idle.send.data(stdin, b"still here\n").await?;
    while idle.receive.event().await? != Event::Data(stdout, b"still here\n".to_vec()) {}
    idle.send.end(stdin).await?;
    idle.receive.finish().await?;
    story.finish().await
}

/// The other way round: what is idle ends, with its command; what is busy stays.
#[tokio::test]
async fn what_is_idle_ends() -> Result {
    let story = Story::begin_with("[streaming]\ncreation_timeout = 600\nidle_timeout = 5\n").await?;
    if story.node.is_peer() {
        eprintln!("skipped: the time-outs of a peer are not ours");
        return story.finish().await;
    }
    let client = &story.client;
    let (_, id) = story.sleeper("idle").await?;
    let mark = 800_000 + std::process::id();
    let running = || !kernel::output("pgrep", &["-fx", &format!("sleep {mark}")]).is_empty();
    let begin = Instant::now();
    let command = format!("sleep {mark}; true");
    let url = client.exec_url(exec_of(&id, &["sh", "-c", &command])).await?;
    let mut idle = WebSocket::connect(&url, V5).await?;
    until("the command to run", running).await?;
    let talk = "i=0; while [ $i -lt 14 ]; do echo $i; i=$((i+1)); sleep 0.5; done";
    let url = client.exec_url(exec_of(&id, &["sh", "-c", talk])).await?;
    let mut busy = WebSocket::connect(&url, V5).await?;
    let (idle, busy) = tokio::join!(idle.receive.finish(), busy.receive.finish());
    idle?;
    ensure!(
        begin.elapsed() >= Duration::from_secs(3),
        "ended after {:?}",
        begin.elapsed()
    );
    let busy = busy?;
    assert!(busy.succeeded(), "{busy:?}");
    assert!(busy.stdout().ends_with("13\n"), "{busy:?}");
    until("the idle session's command to end", || !running()).await?;
    story.finish().await
}
