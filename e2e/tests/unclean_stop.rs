//! The machine stops and nobody took leave, and the disk has not all that it was given:
//! what was lost is noticed before an image is said to be there, and fetched again.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{
    Client, Image, Node, Registry, Result,
    proxy::{Fault, Proxy},
    tar::Entry,
};

/// The file of that name in whichever layer has it.
fn in_a_layer(node: &Node, name: &str) -> Result<PathBuf> {
    let layers = fs::read_dir(node.root().join("layers"))?.flatten();
    layers
        .map(|layer| layer.path().join(name))
        .find(|path| path.exists())
        .with_context(|| format!("no layer has {name}"))
}

/// Other bytes of the same length and time, as a disk that lost a block.
fn lose_a_byte(path: &Path) -> Result {
    let time = fs::metadata(path)?.modified()?;
    let mut bytes = fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] = !bytes[middle];
    fs::write(path, bytes)?;
    fs::File::open(path)?.set_modified(time)?;
    Ok(())
}

async fn again(node: &mut Node) -> Result<Client> {
    node.launch().await?;
    node.client().await
}

#[tokio::test]
async fn a_lost_byte_is_noticed_and_its_layer_fetched_again() -> Result {
    if std::env::var_os("E2E_PEER").is_some() {
        eprintln!("skipped: another server keeps its layers elsewhere");
        return Ok(());
    }
    let registry = Registry::start().await?;
    let proxy = Proxy::start(&registry, Fault::None).await?;
    let image = Image::busybox()
        .layer(&[Entry::file("first", vec![1; 200_000])])
        .layer(&[Entry::file("second", vec![2; 200_000])]);
    let image = image.push(&registry, "lost:1").await?;
    let tag = proxy.instead(&image.tag);
    let other = Image::busybox().push(&registry, "whole:1").await?.tag;
    let mut node = Node::start().await?;
    let mut client = node.client().await?;
    client.pull(&tag).await?;
    client.pull(&other).await?;
    let fetched = || proxy.fetches();
    let before = fetched();

    // berthd alone dies: the kernel has everything still, and nothing is read again.
    node.kill()?;
    lose_a_byte(&in_a_layer(&node, "second")?)?;
    client = again(&mut node).await?;
    ensure!(client.image(&tag).await?.is_some(), "nothing was to be looked at");
    // A polite stop, and then the machine goes down: everything was on the disk.
    node.stop().await?;
    node.reboot()?;
    client = again(&mut node).await?;
    ensure!(client.image(&tag).await?.is_some(), "berthd took leave");
    ensure!(!node.log().contains("stopped uncleanly"), "{}", node.log_end());

    // The power goes.
    node.reboot()?;
    client = again(&mut node).await?;
    // The very first call: what is whole is not missed, and the other is not there.
    let listed: Vec<_> = client
        .image_list()
        .await?
        .into_iter()
        .map(|found| found.id)
        .collect();
    ensure!(listed.len() == 1 && listed[0] != image.id, "{listed:?}");
    ensure!(client.image(&tag).await?.is_none(), "an image that is not whole");
    ensure!(client.image(&image.id).await?.is_none(), "the same by its id");
    ensure!(client.image(&other).await?.is_some(), "the other is whole");
    ensure!(node.log().contains("this layer is broken"), "{}", node.log_end());
    let pod = client.run_pod("early").await?;
    let error = client.create(&pod, client.script("c", &tag, "true")).await;
    ensure!(error.is_err_and(|error| error.code() == tonic::Code::NotFound));

    ensure!(client.pull(&tag).await? == image.id);
    ensure!(
        fetched() - before == 1,
        "{} blobs were fetched",
        fetched() - before
    );
    let script = "busybox sha256sum /first /second | busybox cut -d' ' -f1";
    let output = client
        .run_to_end(&pod, client.script("look", &tag, script))
        .await?;
    let sums = [vec![1; 200_000], vec![2; 200_000]].map(|bytes| e2e::images::digest(&bytes));
    let wanted = sums.map(|sum| sum.trim_start_matches("sha256:").to_owned());
    ensure!(output.stdout.lines().eq(wanted), "{output:?}");

    // All was looked at: a berthd that starts now has nothing to do.
    node.kill()?;
    fs::write(node.path().join("log"), "")?;
    client = again(&mut node).await?;
    ensure!(!node.log().contains("stopped uncleanly"), "{}", node.log_end());
    client.remove_everything().await?;
    for image in client.image_list().await? {
        client.remove_image(&image.id).await?;
    }
    node.finish().await
}

/// Whatever is lost of a layer, and however long looking takes, nobody is told of an image
/// that is not whole.
#[tokio::test]
async fn files_that_are_gone_shorter_or_others() -> Result {
    if std::env::var_os("E2E_PEER").is_some() {
        eprintln!("skipped: another server keeps its layers elsewhere");
        return Ok(());
    }
    type Harm = fn(&Path) -> std::io::Result<()>;
    let harms: [(&str, Harm); 4] = [
        ("gone", |path| fs::remove_file(path)),
        ("empty", |path| fs::File::create(path).map(drop)),
        ("shorter", |path| {
            fs::File::options().write(true).open(path)?.set_len(99_999)
        }),
        ("the whole layer", |path| {
            path.parent().map_or(Ok(()), fs::remove_dir_all)
        }),
    ];
    let registry = Registry::start().await?;
    let image = Image::busybox().layer(&[Entry::file("noise", vec![5; 100_000])]);
    let image = image.push(&registry, "noise:1").await?;
    let mut node = Node::start().await?;
    let mut client = node.client().await?;
    for (what, harm) in harms {
        client.pull(&image.tag).await?;
        node.reboot()?;
        harm(&in_a_layer(&node, "noise")?)?;
        client = again(&mut node).await?;
        let begin = Instant::now();
        ensure!(
            client.image(&image.tag).await?.is_none(),
            "{what}: it is said to be there"
        );
        ensure!(begin.elapsed() < Duration::from_secs(10), "{what}");
        client.pull(&image.tag).await?;
        let pod = client.run_pod("look").await?;
        let script = client.script("look", &image.tag, "test $(busybox wc -c < /noise) = 100000");
        let output = client.run_to_end(&pod, script).await?;
        ensure!(output.code == 0, "{what}: {output:?}");
        client.remove_everything().await?;
    }
    for image in client.image_list().await? {
        client.remove_image(&image.id).await?;
    }
    node.finish().await
}
