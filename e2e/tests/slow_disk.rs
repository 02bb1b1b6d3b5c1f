//! The disk under the root stands still for a while, as one that is worn out or far away
//! does: whoever needs it waits, nobody else, and afterwards all is as if nothing had been.

use std::{future::Future, time::Duration};

use anyhow::{Context, ensure};
use e2e::{Image, Node, Registry, Result, cri, disk::Disk};

/// Far more than an answer from memory takes, far less than the disk stands still.
const SOON: Duration = Duration::from_secs(20);

async fn soon<T, E: Into<anyhow::Error>>(what: &str, call: impl Future<Output = Result<T, E>>) -> Result<T> {
    let answer = tokio::time::timeout(SOON, call).await;
    answer
        .with_context(|| format!("{what}: no answer while the disk stands still"))?
        .map_err(Into::into)
        .with_context(|| what.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_stands_still() -> Result {
    if e2e::handler().is_some() || std::env::var_os("E2E_PEER").is_some() {
        eprintln!("skipped: the records are the same whoever runs containers");
        return Ok(());
    }
    if !Disk::can_be() {
        return Ok(());
    }
    let registry = Registry::start().await?;
    let base = Image::busybox().push(&registry, "base:1").await?.tag;
    let other = Image::busybox().push(&registry, "other:1").await?.tag;
    let mut node = Node::prepare("")?;
    let disk = Disk::of(node.path(), &node.root());
    disk.make(0)?;
    disk.mount(0)?;
    node.launch().await?;
    let client = node.client().await?;
    client.pull(&base).await?;
    let pod = client.run_pod("before").await?;
    let id = client
        .run(&pod, client.script("c", &base, "exec sleep 1000"))
        .await?;
    client.sh(&id, "true").await?;
    let counted = client
        .run(&pod, client.script("count", &base, "sleep 2; echo end"))
        .await?;

    disk.freeze()?;
    // What has to be written down waits: several of each, for each may hold a thread.
    let mut waiting = Vec::new();
    for number in 0..6 {
        let (client, base, other, pod) = (node.client().await?, base.clone(), other.clone(), pod.clone());
        waiting.push(tokio::spawn(async move {
            let made = client.run_pod(&format!("frozen{number}")).await?;
            client.pull(&other).await?;
            let name = format!("frozen{number}");
            client
                .create(&pod, client.script(&name, &base, "exec sleep 1000"))
                .await?;
            Ok::<_, tonic::Status>(made.id)
        }));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for _ in 0..3 {
        ensure!(
            waiting.iter().all(|call| !call.is_finished()),
            "nothing waits: the disk goes"
        );
        let pods = soon("list pods", client.pods(None)).await?;
        ensure!(pods.iter().any(|listed| listed.id == pod.id), "{pods:?}");
        let containers = soon("list containers", client.containers(None)).await?;
        ensure!(containers.iter().any(|listed| listed.id == id), "{containers:?}");
        let status = soon("status", client.status(&id)).await?;
        ensure!(status.state() == cri::ContainerState::ContainerRunning);
        ensure!(soon("exec", client.sh(&id, "echo here")).await? == "here");
        soon("list images", client.image_list()).await?;
        ensure!(soon("image", client.image(&base)).await?.is_some());
    }
    disk.thaw()?;

    let mut made = Vec::new();
    for call in waiting {
        made.push(call.await??);
    }
    let listed = client.pods(None).await?;
    for id in &made {
        ensure!(
            listed.iter().any(|pod| pod.id == *id),
            "{id} was acknowledged, and is not there"
        );
    }
    let ended = client.wait_exit(&counted).await?;
    ensure!(ended.exit_code == 0, "{ended:?}");
    ensure!(client.sh(&id, "echo here").await? == "here");
    client.remove_everything().await?;
    for image in client.image_list().await? {
        client.remove_image(&image.id).await?;
    }
    node.stop().await?;
    drop(disk);
    std::fs::remove_file(node.path().join("disk0"))?;
    node.finish().await
}
