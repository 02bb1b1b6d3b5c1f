//! Twenty pods: twenty shims, berthd, and nothing else of ours; afterwards the
//! counts of before.

use std::{collections::BTreeMap, fs};

use e2e::{Result, Story, kernel};

const PODS: usize = 20;

/// Ids of our processes by name.
fn by_name(story: &Story) -> Result<BTreeMap<String, Vec<u32>>> {
    let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for pid in kernel::pids(story.node.names())? {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        found.entry(name.trim().into()).or_default().push(pid);
    }
    Ok(found)
}

fn veths() -> usize {
    kernel::output("ip", &["-o", "link", "show", "type", "veth"])
        .lines()
        .count()
}

#[tokio::test]
async fn twenty_pods_come_and_go() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: this counts the processes of Berth");
        return story.finish().await;
    }
    let client = &story.client;
    // What the first pod brings for all (the bridge) is not counted.
    let (first, _) = story.sleeper("first").await?;
    client.stop_pod(&first.id).await?;
    client.remove_pod(&first.id).await?;
    let before = (by_name(&story)?, kernel::mount_count()?, veths());
    assert_eq!(before.0.keys().collect::<Vec<_>>(), ["berthd"]);

    for number in 0..PODS {
        story.sleeper(&format!("pod{number}")).await?;
    }
    let with = by_name(&story)?;
    let mounts = kernel::mount_count()?;
    println!(
        "processes with {PODS} pods: {:?}",
        with.iter().map(|(n, p)| (n, p.len())).collect::<Vec<_>>()
    );
    println!("mounts: {} before, {mounts} with {PODS} pods", before.1);
    assert_eq!(with.keys().collect::<Vec<_>>(), ["berth-shim", "berthd", "sleep"]);
    assert_eq!(with["berth-shim"].len(), PODS);
    assert_eq!(with["berthd"].len(), 1);
    assert_eq!(with["sleep"].len(), PODS, "one process a container");

    // Namespace files and the shared memory of a pod are mounts; a container has none.
    let per_pod = (mounts - before.1) / PODS;
    assert!(per_pod <= 4, "{per_pod} mounts a pod");

    client.remove_everything().await?;
    let after = (by_name(&story)?, kernel::mount_count()?, veths());
    assert_eq!(after, before);
    story.finish().await
}
