//! Two berthd on one machine never touch each other's things.

use e2e::{Result, Story, kernel::Snapshot};

#[tokio::test]
async fn two_nodes_live_apart() -> Result {
    let one = Story::begin().await?;
    if one.node.is_peer() {
        eprintln!("skipped: there is one peer only");
        return one.finish().await;
    }
    let two = Story::begin().await?;
    let (_, first) = one.sleeper("same-name").await?;
    let (pod, second) = two.sleeper("same-name").await?;
    assert_eq!(one.client.pods(None).await?.len(), 1);
    let error = two.client.status(&first).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
    let addresses = two.client.addresses(&pod).await?;
    assert!(!addresses.is_empty());

    // One goes with all its things, and the other is as it was.
    let names = two.node.names().clone();
    let before = Snapshot::take(&names)?;
    one.finish().await?;
    let after = Snapshot::take(&names)?;
    assert!(
        before.since(&after).is_empty(),
        "lost: {:?}",
        before.since(&after)
    );
    assert_eq!(two.client.sh(&second, "echo here").await?, "here");
    let gateway = two
        .client
        .sh(&second, "ip route | grep default | cut -d' ' -f3")
        .await?;
    two.client
        .sh(&second, &format!("ping -c 1 -W 2 {gateway}"))
        .await?;
    two.finish().await
}
