//! Registries that are down, slow, truncating or lying: the right code, the
//! step, the object, and nothing left behind.

use std::time::{Duration, Instant};

use e2e::{
    Image, Node, Registry, Result,
    proxy::{Fault, Proxy},
    registry::free_port,
    tar::Entry,
};
use tonic::Code;

async fn failing(fault: Fault, codes: &[Code], words: &[&str]) -> Result {
    let registry = Registry::start().await?;
    let image = Image::busybox().layer(&[Entry::file("more", "x".repeat(10_000))]);
    let pushed = image.push(&registry, "app:1").await?;
    let proxy = Proxy::start(&registry, fault).await?;
    // A lie about a manifest shows when it is asked for by its digest.
    let name = proxy.instead(if fault == Fault::CorruptManifest {
        &pushed.digest
    } else {
        &pushed.tag
    });
    let node = Node::start().await?;
    let client = node.client().await?;
    let begin = Instant::now();
    let error = client.pull(&name).await.expect_err("a bad registry");
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    if !node.is_peer() {
        assert!(codes.contains(&error.code()), "{fault:?}: {error}");
        assert!(
            error.message().contains(&name),
            "the reference is not named: {error}"
        );
        let said = words
            .iter()
            .any(|word| error.message().to_lowercase().contains(word));
        assert!(said, "none of {words:?}: {error}");
    }
    assert!(client.image(&name).await?.is_none());
    // With the registry well again, the same pull works.
    if !node.is_peer() {
        assert_eq!(client.pull(&pushed.tag).await?, pushed.id);
        client.remove_image(&pushed.id).await?;
    }
    node.finish().await
}

#[tokio::test]
async fn unavailable() -> Result {
    failing(Fault::Unavailable, &[Code::Unavailable], &["503"]).await
}

#[tokio::test]
async fn truncating() -> Result {
    let words = [
        "truncat",
        "ended",
        "short",
        "incomplete",
        "closed",
        "cut",
        "body",
        "bytes",
    ];
    failing(Fault::Truncate, &[Code::Unavailable, Code::DataLoss], &words).await
}

#[tokio::test]
async fn lying_about_a_blob() -> Result {
    failing(Fault::CorruptBlob, &[Code::DataLoss], &["digest", "sha256"]).await
}

#[tokio::test]
async fn lying_about_a_manifest() -> Result {
    failing(
        Fault::CorruptManifest,
        &[Code::DataLoss],
        &["digest", "sha256", "size"],
    )
    .await
}

#[tokio::test]
async fn stalling() -> Result {
    if std::env::var_os("E2E_PEER").is_some() {
        eprintln!("skipped: other servers wait for minutes");
        return Ok(());
    }
    let words = ["stall", "no byte", "timed out", "seconds"];
    failing(Fault::Stall, &[Code::Unavailable, Code::DeadlineExceeded], &words).await
}

#[tokio::test]
async fn one_cut_is_resumed() -> Result {
    let registry = Registry::start().await?;
    let pushed = Image::busybox().push(&registry, "app:1").await?;
    let proxy = Proxy::start(&registry, Fault::TruncateOnce).await?;
    let node = Node::start().await?;
    let client = node.client().await?;
    assert_eq!(client.pull(&proxy.instead(&pushed.tag)).await?, pushed.id);
    client.remove_image(&pushed.id).await?;
    node.finish().await
}

#[tokio::test]
async fn nobody_listens() -> Result {
    let node = Node::start().await?;
    let client = node.client().await?;
    let name = format!("127.0.0.1:{}/app:1", free_port()?);
    let error = client.pull(&name).await.unwrap_err();
    if !node.is_peer() {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.message().contains(&name), "{error}");
    }
    node.finish().await
}

#[tokio::test]
async fn what_the_registry_does_not_have() -> Result {
    let registry = Registry::start().await?;
    let node = Node::start().await?;
    let client = node.client().await?;
    let name = format!("{}/nothing:1", registry.host());
    let error = client.pull(&name).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.message().contains(&name), "{error}");
    node.finish().await
}
