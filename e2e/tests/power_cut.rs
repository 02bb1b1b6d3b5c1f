//! The power goes while images are pulled and removed: what was said to be there is there
//! afterwards, whole, and nothing else is said to be. The disk is a file; what it holds
//! at the instant is what the machine has after it. `POWER_CUTS=100` makes a long run of it.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use e2e::{Client, Image, Node, Registry, Result, cri, disk::Disk, images::Pushed, tar::Entry};

/// Images that come and go.
const IMAGES: usize = 6;
const FILES: usize = 12;

/// An image whose last layer holds files of noise, and their sums.
async fn image(registry: &Registry, number: usize) -> Result<Pushed> {
    let mut noise = fastrand::Rng::with_seed(number as u64);
    let mut entries = vec![Entry::folder("noise")];
    let mut sums = String::new();
    for file in 0..FILES {
        let bytes: Vec<u8> = (0..noise.usize(1..300_000)).map(|_| noise.u8(..)).collect();
        let sum = e2e::images::digest(&bytes);
        sums += &format!("{}  /noise/{file}\n", sum.trim_start_matches("sha256:"));
        entries.push(Entry::file(&format!("noise/{file}"), bytes));
    }
    entries.push(Entry::file("sums", sums));
    Image::busybox()
        .layer(&entries)
        .push(registry, &format!("noise{number}:1"))
        .await
}

/// Pulls, and now and then removes, until berthd dies. What the answers said is in `kept`.
async fn come_and_go(client: Client, images: Vec<String>, seed: u64, kept: Arc<Mutex<BTreeSet<String>>>) {
    let mut random = fastrand::Rng::with_seed(seed);
    loop {
        let tag = &images[random.usize(..images.len())];
        let lock = || kept.lock().unwrap_or_else(PoisonError::into_inner);
        if lock().contains(tag) {
            // From when it is asked for, it may be gone.
            lock().remove(tag);
            if client.remove_image(tag).await.is_err() {
                return;
            }
        } else {
            if client.pull(tag).await.is_err() {
                return;
            }
            lock().insert(tag.clone());
        }
    }
}

/// Runs a container of the image that looks at its files.
async fn is_whole(client: &Client, tag: &str) -> Result {
    let pod = client.run_pod("look").await?;
    let script = format!("busybox sha256sum -c /sums && test $(ls /noise | wc -l) = {FILES}");
    let output = client
        .run_to_end(&pod, client.script("look", tag, &script))
        .await?;
    ensure!(
        output.code == 0,
        "{tag} is said to be there, and is not whole: {output:?}"
    );
    client.stop_pod(&pod.id).await?;
    client.remove_pod(&pod.id).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_whole() -> Result {
    if e2e::handler().is_some() || std::env::var_os("E2E_PEER").is_some() {
        eprintln!("skipped: images are the same whoever runs containers");
        return Ok(());
    }
    if !Disk::can_be() {
        return Ok(());
    }
    let cuts: usize = std::env::var("POWER_CUTS").map_or(Ok(4), |text| text.parse())?;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let registry = Registry::start().await?;
    let mut images = Vec::new();
    for number in 0..IMAGES {
        images.push(image(&registry, number).await?.tag);
    }
    let (mut survived, mut unsaid) = (0, 0);
    let mut node = Node::prepare("")?;
    let disk = Disk::of(node.path(), &node.root());
    for cut in 0..cuts {
        disk.make(0)?;
        disk.mount(0)?;
        node.launch().await?;
        let kept = Arc::new(Mutex::new(BTreeSet::new()));
        // Each image has one client that knows what became of it.
        let tasks: Vec<_> = images
            .chunks(2)
            .enumerate()
            .map(|(at, own)| (node.client(), own.to_vec(), random.u64(..) + at as u64))
            .collect();
        let mut running = Vec::new();
        for (client, own, seed) in tasks {
            running.push(tokio::spawn(come_and_go(client.await?, own, seed, kept.clone())));
        }
        let pod = node.client().await?.run_pod("before").await?;
        tokio::time::sleep(Duration::from_millis(random.u64(50..1500))).await;
        node.kill()?;
        // At once: what is not on the disk by now never gets there.
        fs::copy(disk.file(0), disk.file(1))?;
        for task in running {
            task.await?;
        }
        node.reboot()?;
        disk.unmount();
        disk.mount(1)?;
        node.launch().await?;
        let client = node.client().await?;
        let there: BTreeSet<String> = client
            .image_list()
            .await?
            .into_iter()
            .flat_map(|image| image.repo_tags)
            .collect();
        let kept = kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lost: Vec<_> = kept.difference(&there).collect();
        ensure!(
            lost.is_empty(),
            "cut {cut}: pulls were answered, and are lost: {lost:?}"
        );
        for tag in &there {
            is_whole(&client, tag)
                .await
                .with_context(|| format!("cut {cut}"))?;
        }
        survived += kept.len();
        unsaid += there.len() - kept.len();
        if let Ok(status) = client.pod_status(&pod.id).await {
            ensure!(
                status.state() == cri::PodSandboxState::SandboxNotready,
                "cut {cut}: {status:?}"
            );
        }
        for tag in &images {
            client.pull(tag).await?;
            is_whole(&client, tag)
                .await
                .with_context(|| format!("cut {cut}, pulled again"))?;
        }
        client.remove_everything().await?;
        for image in client.image_list().await? {
            client.remove_image(&image.id).await?;
        }
        node.stop().await?;
        let left = fs::read_dir(node.root().join("layers"))?.count();
        ensure!(left == 0, "cut {cut}: {left} layers are left");
        disk.unmount();
    }
    println!(
        "{cuts} power cuts: {survived} images that were acknowledged are there and whole, {unsaid} more are whole"
    );
    for number in 0..2 {
        fs::remove_file(disk.file(number))?;
    }
    drop(disk);
    node.finish().await
}
