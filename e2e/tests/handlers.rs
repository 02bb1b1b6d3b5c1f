//! Runtime handlers: the built-in launcher and OCI runtime binaries side by side, and
//! what becomes of pods whose binary is missing, fails, hangs or is killed.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Node, Result, Story, client::log_lines, cri, kernel};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// The binary of a runtime; None is told.
fn installed(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
    let found = folders
        .map(|folder| Path::new(folder).join(name))
        .into_iter()
        .find(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped for {name}: it is not installed");
    }
    found
}

fn configuration(names: &[&str]) -> String {
    let table = |name: &&str| format!("[runtimes.{name}]\ntype = \"oci\"\n");
    names.iter().map(table).collect()
}

/// What the runtime keeps of the containers of this node.
fn root(node: &Node, name: &str) -> PathBuf {
    node.state().join("runtimes").join(name)
}

fn kept(node: &Node, name: &str) -> Vec<String> {
    let entries = fs::read_dir(root(node, name)).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The shim of a container.
fn shim(node: &Node, id: &str) -> Result<Pid> {
    let ours = kernel::pids(node.names())?;
    let found = ours.into_iter().find(|pid| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with("berth-shim\0") && line.contains(id)
    });
    let pid = i32::try_from(found.context("the container has no shim")?)?;
    Pid::from_raw(pid).context("a pid is not zero")
}

#[tokio::test]
async fn three_pods_by_three_handlers() -> Result {
    let installed: Vec<&str> = RUNTIMES
        .into_iter()
        .filter(|name| installed(name).is_some())
        .collect();
    let story = Story::begin_with(&configuration(&installed)).await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server has other handlers");
        return story.finish().await;
    }
    let client = &story.client;
    let told = client
        .runtime
        .clone()
        .status(cri::StatusRequest::default())
        .await?
        .into_inner();
    let names: Vec<&str> = told
        .runtime_handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    for name in ["berth"].iter().chain(&installed) {
        assert!(names.contains(name), "{names:?}");
    }

    let mut made = Vec::new();
    for name in ["berth"].into_iter().chain(installed.iter().copied()) {
        let pod = client.run_pod_by(name, client.pod_config(name)).await?;
        assert_eq!(client.pod_status(&pod.id).await?.runtime_handler, name);
        let before = kernel::mount_count()?;
        let script = "echo out; echo err >&2; trap 'exit 5' TERM; while :; do sleep 0.05; done";
        let id = client.run(&pod, story.script(name, script)).await?;
        assert_eq!(kernel::mount_count()?, before, "{name}: a mount of the host");
        assert_eq!(
            client.sh(&id, "echo from $HOSTNAME").await?,
            format!("from {name}")
        );
        made.push((name, pod, id));
    }
    // Each runtime knows its own container and no other.
    for name in &installed {
        let own = made
            .iter()
            .find(|(by, ..)| by == name)
            .map(|(_, _, id)| id.clone());
        assert_eq!(
            kept(&story.node, name),
            own.into_iter().collect::<Vec<_>>(),
            "{name}"
        );
    }
    if installed.contains(&"runc") {
        let state = root(&story.node, "runc");
        let list = kernel::output("runc", &["--root", &state.to_string_lossy(), "list"]);
        let (_, _, id) = made.iter().find(|(by, ..)| *by == "runc").context("runc's")?;
        let line = list
            .lines()
            .find(|line| line.starts_with(id.as_str()))
            .context(list.clone())?;
        assert!(line.contains("running"), "{list}");
    }
    for (name, pod, id) in &made {
        let status = client.status(id).await?;
        let lines = log_lines(&status.log_path)?;
        let mut lines: Vec<_> = lines.iter().map(|line| line.content.as_str()).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["err", "out"], "{name}");
        client.stop(id, 20).await?;
        let status = client.wait_exit(id).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (5, "Error"), "{name}");
        client.stop_pod(&pod.id).await?;
        client.remove_pod(&pod.id).await?;
        assert_eq!(kept(&story.node, name), [""; 0], "{name}");
    }
    story.finish().await
}

#[tokio::test]
async fn a_missing_binary_refuses_its_pods_only() -> Result {
    let Some(runc) = installed("runc") else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("later");
    let text = format!("[runtimes.gone]\ntype = \"oci\"\npath = {path:?}\n");
    let story = Story::begin_with(&text).await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server has other handlers");
        return story.finish().await;
    }
    let log = story.node.log();
    assert!(
        log.contains("WARN") && log.contains(&*path.to_string_lossy()),
        "{log}"
    );
    let client = &story.client;
    let refused = client
        .run_pod_by("gone", client.pod_config("early"))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for part in ["gone", &*path.to_string_lossy(), "runtimes.gone.path"] {
        assert!(refused.message().contains(part), "{refused}");
    }
    assert!(client.pods(None).await?.is_empty());
    story.sleeper("others").await?;
    // It is looked for again.
    symlink(runc, &path)?;
    let pod = client.run_pod_by("gone", client.pod_config("late")).await?;
    let id = client.run(&pod, story.script("late", "exec sleep 1000")).await?;
    assert_eq!(client.sh(&id, "echo here").await?, "here");
    // Removal does without it.
    fs::remove_file(&path)?;
    client.stop_pod(&pod.id).await?;
    client.remove_pod(&pod.id).await?;
    assert_eq!(kept(&story.node, "gone"), [""; 0]);
    story.finish().await
}

/// A runtime that is runc, but for what its file `mode` says of one of its commands.
struct Fake {
    folder: tempfile::TempDir,
}

impl Fake {
    fn new(runc: &Path) -> Result<Fake> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("fake");
        let script = format!(
            "#!/bin/sh\n\
             mode=$(cat {folder}/mode)\n\
             for word; do case $word in create|start|exec|kill|delete) verb=$word; break;; esac; done\n\
             case $mode in\n\
             fail-$verb) echo '{{\"level\":\"error\",\"msg\":\"no \\\"room\\\" on this node\"}}' >runtime.log; exit 1;;\n\
             hang-$verb) sleep 1000;;\n\
             slow-$verb) exec sleep 30;;\n\
             esac\n\
             exec {runc} \"$@\"\n",
            folder = folder.path().display(),
            runc = runc.display()
        );
        fs::write(folder.path().join("mode"), "")?;
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Fake { folder })
    }

    fn set(&self, mode: &str) -> Result {
        Ok(fs::write(self.folder.path().join("mode"), mode)?)
    }

    fn configuration(&self, timeout: u64) -> String {
        let path = self.folder.path().join("fake");
        format!("[runtimes.fake]\ntype = \"oci\"\npath = {path:?}\ntimeout = {timeout}\n")
    }
}

#[tokio::test]
async fn a_runtime_that_fails_or_hangs_is_told_and_leaves_nothing() -> Result {
    let Some(runc) = installed("runc") else {
        return Ok(());
    };
    let fake = Fake::new(&runc)?;
    let story = Story::begin_with(&fake.configuration(5)).await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server has other handlers");
        return story.finish().await;
    }
    let client = &story.client;
    let pod = client.run_pod_by("fake", client.pod_config("unlucky")).await?;
    let sleeper = |name: &str| story.script(name, "exec sleep 1000");

    fake.set("fail-create")?;
    let error = client.create(&pod, sleeper("a")).await.unwrap_err();
    for part in ["create", "no \"room\" on this node", "fake"] {
        assert!(error.message().contains(part), "{error}");
    }
    fake.set("hang-create")?;
    let begin = Instant::now();
    let error = client.create(&pod, sleeper("b")).await.unwrap_err();
    assert!(error.message().contains("took longer than 5 s"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    assert!(client.containers(None).await?.is_empty());

    fake.set("fail-start")?;
    let id = client.create(&pod, sleeper("c")).await?;
    let error = client.start(&id).await.unwrap_err();
    assert!(error.message().contains("no \"room\" on this node"), "{error}");
    let status = client.wait_exit(&id).await?;
    assert_eq!(status.reason, "StartError");
    assert!(status.message.contains("room"), "{}", status.message);

    fake.set("")?;
    let id = client.run(&pod, sleeper("d")).await?;
    for (mode, word) in [("fail-exec", "room"), ("hang-exec", "took longer")] {
        fake.set(mode)?;
        let error = client.exec(&id, &["true"]).await.unwrap_err();
        assert!(error.message().contains(word), "{mode}: {error}");
        fake.set("")?;
        assert_eq!(client.sh(&id, "echo still").await?, "still");
    }
    // What does not go through the runtime goes past it.
    fake.set("hang-kill")?;
    client.stop(&id, 1).await?;
    assert_eq!(client.wait_exit(&id).await?.exit_code, 137);
    fake.set("hang-delete")?;
    let id = client.run(&pod, sleeper("e")).await?;
    client.stop(&id, 0).await?;
    client.remove(&id).await?;
    assert_eq!(kept(&story.node, "fake"), [""; 0]);
    fake.set("")?;
    story.finish().await
}

#[tokio::test]
async fn a_shim_that_is_killed_takes_the_run_of_its_runtime_along() -> Result {
    let Some(runc) = installed("runc") else {
        return Ok(());
    };
    let fake = Fake::new(&runc)?;
    let story = Story::begin_with(&fake.configuration(30)).await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server's shims are not ours to kill");
        return story.finish().await;
    }
    let client = story.client.clone();
    let pod = client.run_pod_by("fake", client.pod_config("cut")).await?;
    fake.set("slow-create")?;
    let (caller, asked, config) = (client.clone(), pod.clone(), story.script("cut", "sleep 1000"));
    let creating = tokio::spawn(async move { caller.create(&asked, config).await });
    let deadline = Instant::now() + Duration::from_secs(20);
    let id = loop {
        // Its folder is there when it is recorded, its shim soon after.
        let folders = fs::read_dir(story.node.state().join("containers"))?;
        let found = folders
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .next();
        if let Some(id) = found
            && story
                .node
                .state()
                .join("containers")
                .join(&id)
                .join("config.json")
                .exists()
            && shim(&story.node, &id).is_ok()
        {
            break id;
        }
        ensure!(Instant::now() < deadline, "no container is made");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    kill_process(shim(&story.node, &id)?, Signal::KILL)?;
    assert!(creating.await?.is_err());
    fake.set("")?;
    assert!(client.containers(None).await?.is_empty());
    assert_eq!(kept(&story.node, "fake"), [""; 0]);
    story.finish().await
}

#[tokio::test]
async fn berthd_and_shims_may_be_killed() -> Result {
    let installed: Vec<&str> = RUNTIMES
        .into_iter()
        .filter(|name| installed(name).is_some())
        .collect();
    let mut story = Story::begin_with(&configuration(&installed)).await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server is not ours to kill");
        return story.finish().await;
    }
    let mut made = Vec::new();
    for name in &installed {
        let client = &story.client;
        let pod = client.run_pod_by(name, client.pod_config(name)).await?;
        let running = client
            .run(&pod, story.script("running", "exec sleep 1000"))
            .await?;
        let created = client
            .create(&pod, story.script("created", "exec sleep 1000"))
            .await?;
        made.push((*name, running, created));
    }
    story.node.kill()?;
    story.node.launch().await?;
    story.client = story.node.client().await?;
    let client = &story.client;
    for (name, running, created) in &made {
        assert_eq!(client.sh(running, "echo alive").await?, "alive", "{name}");
        client.start(created).await?;
        assert_eq!(client.sh(created, "echo started").await?, "started", "{name}");
        assert_eq!(kept(&story.node, name).len(), 2, "{name}");
        kill_process(shim(&story.node, running)?, Signal::KILL)?;
        let status = client.wait_exit(running).await?;
        assert_eq!(status.exit_code, 137, "{name}");
        assert!(status.message.contains("shim"), "{name}: {}", status.message);
        client.remove(running).await?;
        assert_eq!(kept(&story.node, name), [created.as_str()], "{name}");
    }
    // All of it at once, and nobody there to see it.
    for (_, _, created) in &made {
        kill_process(shim(&story.node, created)?, Signal::KILL)?;
    }
    story.node.kill()?;
    story.node.launch().await?;
    story.client = story.node.client().await?;
    for (name, _, created) in &made {
        let status = story.client.wait_exit(created).await?;
        assert_eq!(status.exit_code, 137, "{name}");
        story.client.remove(created).await?;
        assert_eq!(kept(&story.node, name), [""; 0], "{name}");
    }
    story.finish().await
}

#[tokio::test]
async fn annotations_and_devices_are_the_handlers() -> Result {
    let Some(_) = installed("runc") else { return Ok(()) };
    let text = "[runtimes.runc]\ntype = \"oci\"\npod_annotations = [\"io.example/*\"]\nprivileged_without_host_devices = true\n";
    let story = Story::begin_with(text).await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server has other handlers");
        return story.finish().await;
    }
    let client = &story.client;
    let mut config = client.pod_config("noted");
    config.annotations.insert("io.example/a".into(), "1".into());
    config.annotations.insert("io.other/b".into(), "2".into());
    let security = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut());
    security.context("the pod has a context")?.privileged = true;
    let pod = client.run_pod_by("runc", config).await?;
    let mut request = story.script("noted", "exec sleep 1000");
    let linux = request.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let id = client.run(&pod, request).await?;
    let bundle = story.node.state().join("containers").join(&id);
    let spec: serde_json::Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    assert_eq!(spec["annotations"]["io.example/a"], "1");
    assert_eq!(spec["annotations"]["io.other/b"], serde_json::Value::Null);
    // What a runtime cannot do is refused when the pod is run.
    let mut config = client.pod_config("mapped");
    let options = e2e::client::pod_security(&mut config)
        .namespace_options
        .get_or_insert_default();
    let ids = vec![cri::IdMapping {
        container_id: 0,
        host_id: 100_000,
        length: 65_536,
    }];
    options.userns_options = Some(cri::UserNamespace {
        mode: cri::NamespaceMode::Pod.into(),
        uids: ids.clone(),
        gids: ids,
    });
    let refused = client.run_pod_by("runc", config).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let nodes = client.sh(&id, "ls /dev | grep -c -e kmsg -e mem || true").await?;
    assert_eq!(nodes, "0", "devices of the host");
    story.finish().await
}
