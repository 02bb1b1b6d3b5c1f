//! An audit names everything that a berthd has made, and what no record owns.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;
use e2e::{Node, Result, Story, kernel, node::binary};
use serde_json::Value;

/// What `berthd audit --json` says, and its exit status.
fn audit(node: &Node) -> Result<(Value, Option<i32>)> {
    let output = Command::new(binary("berthd"))
        .args(["audit", "--json", "--config"])
        .arg(node.path().join("config.toml"))
        .arg("--root")
        .arg(node.root())
        .arg("--state")
        .arg(node.state())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.is_empty(), "{said}");
    Ok((serde_json::from_slice(&output.stdout)?, output.status.code()))
}

/// "KIND NAME" of a list of things.
fn names(report: &Value, list: &str) -> Vec<String> {
    let things = report[list].as_array().cloned().unwrap_or_default();
    things
        .iter()
        .map(|thing| {
            format!(
                "{} {}",
                thing["kind"].as_str().unwrap_or_default(),
                thing["name"].as_str().unwrap_or_default()
            )
        })
        .collect()
}

/// Taken away whatever happens.
struct Leak {
    cgroup: PathBuf,
    mount: PathBuf,
}

impl Leak {
    fn make(node: &Node) -> Result<Leak> {
        let root = kernel::hierarchies()?.into_iter().next().unwrap_or_default();
        let parent = root.join(node.names().cgroup.trim_start_matches('/'));
        let leak = Leak {
            cgroup: parent.join("left-over"),
            mount: node.state().join("sandboxes/nobody/shm"),
        };
        fs::create_dir(&leak.cgroup)?;
        fs::create_dir_all(&leak.mount)?;
        let shown = leak.mount.to_string_lossy();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "none", &*shown])
            .status()?;
        ensure!(mounted.success(), "mount {shown}");
        Ok(leak)
    }
}

impl Drop for Leak {
    fn drop(&mut self) {
        kernel::output("umount", &[&*self.mount.to_string_lossy()]);
        let _ = self.mount.parent().map(fs::remove_dir_all);
        let _ = fs::remove_dir(&self.cgroup);
    }
}

#[tokio::test]
async fn leaks_are_named() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server keeps no records of ours");
        return story.finish().await;
    }
    let (pod, container) = story.sleeper("audited").await?;
    let (report, code) = audit(&story.node)?;
    assert_eq!((code, names(&report, "orphans")), (Some(0), vec![]), "{report:#}");
    let owned = names(&report, "owned");
    let state = story.node.state();
    let in_state = |path: &str| state.join(path).to_string_lossy().into_owned();
    for thing in [
        format!("namespace {}", in_state(&format!("sandboxes/{}/ns/net", pod.id))),
        format!("mount {}", in_state(&format!("sandboxes/{}/shm", pod.id))),
        format!("folder {}", in_state(&format!("containers/{container}"))),
        format!("link {}", story.node.names().bridge),
        format!("link bv{}", &pod.id[..11]),
    ] {
        assert!(owned.contains(&thing), "{thing} is not in {owned:#?}");
    }
    let of = |kind: &str, part: &str| {
        let found = owned
            .iter()
            .filter(|thing| thing.starts_with(kind) && thing.contains(part));
        found.count()
    };
    assert_eq!(of("shim", &container), 1, "{owned:#?}");
    assert!(of("cgroup", &container) >= 1, "{owned:#?}");
    assert!(of("address", "IPv4") == 1, "{owned:#?}");

    let leak = Leak::make(&story.node)?;
    let (report, code) = audit(&story.node)?;
    let mut orphans = names(&report, "orphans");
    orphans.sort();
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    let wanted = [
        format!("cgroup {}", shown(&leak.cgroup)),
        format!("folder {}", in_state("sandboxes/nobody")),
        format!("mount {}", shown(&leak.mount)),
    ];
    assert_eq!((code, &orphans[..]), (Some(1), &wanted[..]), "{report:#}");
    drop(leak);
    assert_eq!(audit(&story.node)?.1, Some(0));

    // berthd has noticed nothing, and after the last pod there is nothing to list
    // but the image's layer.
    assert_eq!(story.client.sh(&container, "echo here").await?, "here");
    story.client.remove_everything().await?;
    let (report, code) = audit(&story.node)?;
    assert_eq!((code, names(&report, "orphans")), (Some(0), vec![]), "{report:#}");
    let left = names(&report, "owned");
    assert!(
        left.len() == 1 && left[0].starts_with("folder") && left[0].contains("/layers/"),
        "{left:#?}"
    );
    story.finish().await
}
