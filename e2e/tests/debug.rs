//! `berth debug`: what is in the file, what is not, and that it can be had of a berthd
//! that hangs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, ensure};
use e2e::{Result, Story, cri, node::binary};
use rustix::process::{Pid, Signal, kill_process};

fn debug(story: &Story, output: &Path) -> Result<Output> {
    Ok(Command::new(binary("berth"))
        .args([
            "--address",
            &story.node.address(),
            "debug",
            "--lines",
            "10",
            "--output",
        ])
        .arg(output)
        .arg("--root")
        .arg(story.node.root())
        .arg("--state")
        .arg(story.node.state())
        .arg("--config")
        .arg(story.node.path().join("config.toml"))
        .output()?)
}

/// The files of the archive, below the folder.
fn unpack(archive: &Path, into: &Path) -> Result<PathBuf> {
    fs::create_dir_all(into)?;
    let status = Command::new("tar")
        .arg("-xzf")
        .arg(archive)
        .arg("-C")
        .arg(into)
        .status()?;
    ensure!(status.success(), "tar: {status}");
    Ok(into.join("berth-debug"))
}

#[tokio::test]
async fn a_file_for_a_bug_report() -> Result {
    let story = Story::begin().await?;
    let Some(pid) = story.node.pid() else {
        eprintln!("skipped: another server is not asked");
        return story.finish().await;
    };
    let client = &story.client;
    let mut pod = client.pod_config("reported");
    pod.annotations.insert("owner".into(), "secret-of-the-pod".into());
    let pod = client.run_pod_with(pod).await?;
    let mut config = story.script("c", "echo secret-of-the-output; sleep 1000");
    config.envs.push(cri::KeyValue {
        key: "PASSWORD".into(),
        value: "secret-of-the-variables".into(),
    });
    config
        .annotations
        .insert("note".into(), "secret-of-the-container".into());
    let id = client.run(&pod, config).await?;

    let file = story.node.path().join("report.tar.gz");
    let done = debug(&story, &file)?;
    assert!(done.status.success(), "{done:?}");
    assert_eq!(
        String::from_utf8_lossy(&done.stdout).trim(),
        file.display().to_string()
    );
    let folder = unpack(&file, &story.node.path().join("report"))?;
    let read = |name: &str| fs::read_to_string(folder.join(name)).with_context(|| name.to_owned());
    let audit: serde_json::Value = serde_json::from_str(&read("audit.json")?)?;
    assert_eq!(audit["orphans"], serde_json::json!([]), "{audit}");
    assert!(read("config.toml")?.contains("max_concurrent_layers"));
    assert!(read(&format!("answers/pods/{}.txt", pod.id))?.contains("network"));
    assert!(read(&format!("answers/containers/{id}.txt"))?.contains("Running"));
    assert!(read(&format!("processes/berthd-{pid}.txt"))?.contains("== thread"));
    let shims = fs::read_dir(folder.join("processes"))?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("berth-shim-"));
    assert!(shims.count() >= 1);
    let secrets = Command::new("grep")
        .args(["-r", "secret-of-"])
        .arg(&folder)
        .output()?;
    assert!(
        secrets.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&secrets.stdout)
    );

    // The file is not written over.
    let again = debug(&story, &file)?;
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("report.tar.gz"));

    // One that hangs: no answers, but what it and its shims wait for.
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a pid")?;
    kill_process(process, Signal::STOP)?;
    let file = story.node.path().join("hung.tar.gz");
    let done = debug(&story, &file);
    kill_process(process, Signal::CONT)?;
    assert!(done?.status.success());
    let folder = unpack(&file, &story.node.path().join("hung"))?;
    assert!(folder.join("answers.missing").exists());
    let berthd = fs::read_to_string(folder.join(format!("processes/berthd-{pid}.txt")))?;
    assert!(berthd.contains("stopped"), "{berthd}");
    assert!(folder.join("audit.json").exists());
    story.finish().await
}
