//! What berthd tells about itself: its settings, its metrics, the time that the
//! start of a pod took.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Image, Node, Result, Story, cri, node::binary};
use rustix::process::{Pid, Signal, kill_process};

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// `berthd config …` with a configuration file.
fn config(verb: &str, file: &Path) -> Result<Output> {
    Ok(Command::new(binary("berthd"))
        .args(["config", verb, "--config"])
        .arg(file)
        .output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn settings_are_checked_and_shown() -> Result {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("config.toml");
    fs::create_dir(folder.path().join("config.d"))?;
    fs::write(&file, "[image]\nmax_concurrent_layers = 2\n")?;
    let part = folder.path().join("config.d/10.toml");

    let shipped = include_str!("../../deploy/config.toml");
    let default = config("default", &file)?;
    assert_eq!(text(&default.stdout), shipped);

    fs::write(&part, "# a comment\n[network]\nbrige = \"b\"\n")?;
    let wrong = config("check", &file)?;
    let said = text(&wrong.stderr);
    assert_eq!(wrong.status.code(), Some(1));
    for word in [&*part.to_string_lossy(), "line 3", "brige"] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    fs::write(&part, "[cgroup]\n\ndriver = \"sistemd\"\n")?;
    let said = text(&config("check", &file)?.stderr);
    let place = format!("{}:3: cgroup.driver", part.display());
    assert!(said.contains(&place), "{said}");

    fs::write(&part, "image.pinned = [\"a:1\"]\n")?;
    assert!(config("check", &file)?.status.success());
    let shown = text(&config("show", &file)?.stdout);
    for line in [
        format!("max_concurrent_layers = 2  # {}:2", file.display()),
        format!("pinned = [\"a:1\"]  # {}:1", part.display()),
        "max_layer_bytes = 0  # default".to_owned(),
    ] {
        assert!(
            shown.lines().any(|found| found == line),
            "{line} is not in {shown}"
        );
    }
    Ok(())
}

/// Waits until berthd has written the word, `count` times in all.
async fn logged(node: &Node, word: &str, count: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while node.log().matches(word).count() < count {
        ensure!(
            Instant::now() < deadline,
            "{word:?} is not in the log:\n{}",
            node.log()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_hangup_reloads_the_settings() -> Result {
    let story = Story::begin().await?;
    let Some(pid) = story.node.pid() else {
        eprintln!("skipped: another server has other settings");
        return story.finish().await;
    };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a pid")?;
    let part = story.node.path().join("config.d/50-reload.toml");
    let pinned = || async {
        let image = story.client.image(&story.image.tag).await?;
        Ok::<_, anyhow::Error>(image.context("the image")?.pinned)
    };
    assert!(!pinned().await?);

    // A wrong file changes nothing, whatever else is right in it.
    let pin = format!("image.pinned = [\"{}\"]\n", story.image.tag);
    fs::write(&part, format!("{pin}registry.stall_timeout = \"soon\"\n"))?;
    kill_process(pid, Signal::HUP)?;
    logged(&story.node, "nothing is changed", 1).await?;
    assert!(story.node.log().contains("stall_timeout"));
    assert!(!pinned().await?);

    fs::write(&part, format!("{pin}log.level = \"info\"\nnetwork.mtu = 1400\n"))?;
    kill_process(pid, Signal::HUP)?;
    logged(&story.node, "the configuration is reloaded", 1).await?;
    logged(&story.node, "need a restart", 1).await?;
    let log = story.node.log();
    let line = |word: &str| log.lines().find(|line| line.contains(word)).unwrap_or_default();
    let changed = line("is reloaded");
    assert!(
        changed.contains("image.pinned") && changed.contains("log.level") && !changed.contains("mtu"),
        "{changed}"
    );
    let restart = line("need a restart");
    assert!(
        restart.contains("network.mtu") && !restart.contains("image"),
        "{restart}"
    );
    assert!(pinned().await?);
    fs::remove_file(&part)?;
    kill_process(pid, Signal::HUP)?;
    logged(&story.node, "the configuration is reloaded", 2).await?;
    assert!(!pinned().await?);
    story.finish().await
}

/// The metrics by name and labels.
fn scrape(socket: &Path) -> Result<BTreeMap<String, f64>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: berth\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    ensure!(answer.contains("application/openmetrics-text"), "{answer}");
    ensure!(answer.contains("# EOF"), "{answer}");
    let lines = answer.lines().filter(|line| !line.starts_with('#'));
    Ok(lines
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect())
}

#[tokio::test]
async fn metrics_count_what_was_done() -> Result {
    let mut node = Node::prepare("")?;
    let socket = node.path().join("metrics.sock");
    let address = format!("metrics.address = \"unix://{}\"\n", socket.display());
    fs::write(node.path().join("config.d/20-metrics.toml"), address)?;
    node.launch().await?;
    if node.is_peer() {
        eprintln!("skipped: another server has other metrics");
        return node.finish().await;
    }
    let mut story = Story::begin_on(node).await?;
    let other = story.image(
        Image::busybox().config(serde_json::json!({"Cmd": ["true"]})),
        "other:1",
    );
    let other = other.await?;
    let client = story.client.clone();
    let (pod, container) = story.sleeper("metered").await?;
    let second = client.run_pod("stopped").await?;
    client.stop_pod(&second.id).await?;
    assert!(client.status("no-such-container").await.is_err());
    assert!(client.pull(&format!("{}-not-there", other.tag)).await.is_err());

    let seen = scrape(&socket)?;
    let value = |name: &str| seen.get(name).copied().unwrap_or_default();
    let all = || format!("{seen:#?}");
    for (name, wanted) in [
        ("berth_rpcs_total{method=\"RunPodSandbox\",code=\"OK\"}", 2.0),
        ("berth_rpcs_total{method=\"CreateContainer\",code=\"OK\"}", 1.0),
        (
            "berth_rpcs_total{method=\"ContainerStatus\",code=\"NotFound\"}",
            1.0,
        ),
        ("berth_rpc_duration_seconds_count{method=\"RunPodSandbox\"}", 2.0),
        ("berth_rpcs_in_flight{method=\"RunPodSandbox\"}", 0.0),
        ("berth_pods{state=\"ready\"}", 1.0),
        ("berth_pods{state=\"stopped\"}", 1.0),
        ("berth_containers{state=\"running\"}", 1.0),
        ("berth_containers{state=\"exited\"}", 0.0),
        ("berth_images{state=\"in use\"}", 1.0),
        ("berth_images{state=\"unused\"}", 1.0),
        ("berth_image_pulls_total{outcome=\"fetched\"}", 2.0),
        ("berth_image_pulls_total{outcome=\"failed\"}", 1.0),
        // Two images of the same layer.
        ("berth_image_layers_fetched_total", 1.0),
        ("berth_image_layers_shared_total", 1.0),
        ("berth_shims_started_total", 1.0),
        ("berth_shims_lost_total", 0.0),
        ("berth_recoveries_total", 0.0),
        ("berth_network_setup_duration_seconds_count{by=\"bridge\"}", 2.0),
    ] {
        assert!(seen.contains_key(name), "{name} is not there: {}", all());
        assert_eq!(value(name), wanted, "{name}: {}", all());
    }
    assert!(value("berth_image_fetched_bytes_total") > 100_000.0, "{}", all());
    assert!(value("process_resident_memory_bytes") > 1_000_000.0, "{}", all());
    assert!(value("process_open_fds") > 5.0, "{}", all());
    assert!(value("process_start_time_seconds") > 1.7e9, "{}", all());
    assert!(value("process_cpu_seconds_total") > 0.0, "{}", all());

    // A shim that dies, and a berthd that does.
    let shim = shim_of(&story.node, &container)?;
    kill_process(shim, Signal::KILL)?;
    client.wait_exit(&container).await?;
    assert_eq!(scrape(&socket)?.get("berth_shims_lost_total"), Some(&1.0));
    story.node.kill()?;
    story.node.launch().await?;
    story.client = story.node.client().await?;
    let seen = scrape(&socket)?;
    assert_eq!(seen.get("berth_recoveries_total"), Some(&1.0), "{seen:#?}");
    assert_eq!(seen.get("berth_containers{state=\"exited\"}"), Some(&1.0));
    story.client.remove_pod(&pod.id).await?;
    story.finish().await
}

/// The shim whose arguments name the container, of this node alone.
fn shim_of(node: &Node, container: &str) -> Result<Pid> {
    for pid in e2e::kernel::pids(node.names())? {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = text(&line);
        if line.starts_with("berth-shim") && line.contains(container) {
            return i32::try_from(pid).ok().and_then(Pid::from_raw).context("a pid");
        }
    }
    anyhow::bail!("container {container} has no shim")
}

#[tokio::test]
async fn why_shows_where_the_time_went() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server keeps no timelines");
        return story.finish().await;
    }
    let client = story.client.clone();
    let pod = client.run_pod("slow-pod").await?;
    // As a kubelet pulls: for this pod.
    let pushed = Image::busybox()
        .layer(&[e2e::tar::Entry::file("extra", vec![7; 50_000])])
        .push(&story.registry, "late:1")
        .await?;
    let request = cri::PullImageRequest {
        image: Some(e2e::client::spec(&pushed.tag)),
        auth: None,
        sandbox_config: Some(pod.config.clone()),
    };
    client.images.clone().pull_image(request).await?;
    let id = client
        .run(&pod, client.script("main", &pushed.tag, "exec sleep 1000"))
        .await?;

    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: true,
    };
    let status = client.runtime.clone().pod_sandbox_status(request).await?;
    let of_pod = steps(&status.into_inner().info)?;
    let names: Vec<_> = of_pod.iter().map(|step| step["name"].clone()).collect();
    assert_eq!(names, ["name", "cgroup parent", "namespaces", "network", "pull"]);
    let pull = &of_pod[4];
    assert_eq!(pull["image"], pushed.tag.as_str());
    assert!(pull["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{pull}");
    assert!(pull["took"].as_u64().is_some_and(|took| took > 0), "{pull}");
    let request = cri::ContainerStatusRequest {
        container_id: id.clone(),
        verbose: true,
    };
    let status = client.runtime.clone().container_status(request).await?;
    let of_container = steps(&status.into_inner().info)?;
    let names: Vec<_> = of_container.iter().map(|step| step["name"].clone()).collect();
    assert_eq!(names, ["spec", "shim", "init", "start"]);
    // Each begins after what it needs has ended.
    let ends = |step: &serde_json::Value| {
        step["at"].as_i64().unwrap_or(0) + step["took"].as_i64().unwrap_or(0) * 1000
    };
    let at = |step: &serde_json::Value| step["at"].as_i64().unwrap_or(0);
    assert!(at(pull) >= ends(&of_pod[3]) && at(&of_container[0]) >= ends(pull));
    assert!(at(&of_container[3]) >= ends(&of_container[2]));

    let berth = |arguments: &[&str]| -> Result<Output> {
        let mut command = Command::new(binary("berth"));
        command.arg("--address").arg(story.node.address());
        Ok(command.args(arguments).output()?)
    };
    let shown = text(&berth(&["why", "slow-pod"])?.stdout);
    for word in ["network", "pull", "late:1", "main", "start", "█"] {
        assert!(shown.contains(word), "{word} is not in\n{shown}");
    }
    assert_eq!(shown.lines().count(), 3 + 9, "{shown}");
    let picture = story.node.path().join("why.svg");
    let done = berth(&["why", &pod.id[..12], "--svg", &picture.to_string_lossy()])?;
    assert!(done.status.success(), "{done:?}");
    let svg = fs::read_to_string(&picture)?;
    assert!(
        svg.starts_with("<?xml") && svg.ends_with("</svg>\n") && svg.contains("late:1"),
        "{svg}"
    );
    let missing = berth(&["why", "no-such-pod"])?;
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("no-such-pod"), "{missing:?}");
    story.finish().await
}

fn steps(info: &std::collections::HashMap<String, String>) -> Result<Vec<serde_json::Value>> {
    Ok(serde_json::from_str(info.get("timeline").context("a timeline")?)?)
}

#[tokio::test]
async fn the_watchdog_is_fed() -> Result {
    let mut node = Node::prepare("")?;
    if node.is_peer() {
        eprintln!("skipped: another server has another watchdog");
        return node.finish().await;
    }
    let path = node.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    node.set_variable("NOTIFY_SOCKET", &path.to_string_lossy());
    node.set_variable("WATCHDOG_USEC", "300000");
    node.launch().await?;
    let mut said = Vec::new();
    while said.iter().filter(|word| *word == "WATCHDOG=1").count() < 3 {
        let mut bytes = [0; 512];
        let length = socket
            .recv(&mut bytes)
            .with_context(|| format!("heard {said:?}"))?;
        said.extend(text(&bytes[..length]).lines().map(str::to_owned));
    }
    assert_eq!(said[0], "READY=1");
    node.finish().await
}
