//! The Debian package: installed, upgraded under pods that run, reloaded, watched,
//! removed, installed again and purged. It changes the machine that it runs on, so it
//! runs only where E2E_PACKAGES names a folder with `old.deb` and `new.deb`;
//! `make vm-package` does that in a machine that is thrown away.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Client, Image, Pod, Registry, Result, client::log_lines, kernel, whole::Machine};
use rustix::process::{Pid, Signal, kill_process};

const ADDRESS: &str = "unix:///run/berth/berth.sock";
const PODS: usize = 20;
/// For what takes as long as the machine is slow.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn the_life_of_the_package() -> Result {
    let Some(packages) = env::var_os("E2E_PACKAGES").map(PathBuf::from) else {
        eprintln!("skipped: it installs packages; `make vm-package` runs it in a machine of its own");
        return Ok(());
    };
    let registry = Registry::start().await?;
    // It comes with the first who asks for it, and stays.
    ensure!(systemctl(&["start", "dbus"]).status.success(), "no dbus");
    let before = Machine::look()?;
    let logs = Path::new("/var/log/pods");

    step("install");
    configure("machine", &env::var("E2E_CONFIG").unwrap_or_default())?;
    apt(&["install", &packages.join("old.deb").to_string_lossy()])?;
    let first = main_pid().await?;
    ensure!(
        systemctl(&["is-enabled", "berthd"]).status.success(),
        "not enabled"
    );
    what_the_unit_promises(first)?;
    for (path, mode) in [("/run/berth", 0o700), ("/var/lib/berth", 0o700)] {
        ensure!(mode_of(path)? == mode, "{path}: {:o}", mode_of(path)?);
    }
    let version = run("berth", &["version"])?;
    ensure!(version.lines().count() == 4, "{version}");
    ensure!(
        run("berth", &["completion", "bash"])?.contains("complete -F"),
        "completions"
    );

    step("twenty pods");
    let mut pods = Pods::run(&registry, logs).await?;

    step("upgrade");
    let told = apt(&["install", &packages.join("new.deb").to_string_lossy()])?;
    ensure!(!told.contains("did not start"), "{told}");
    let second = main_pid().await?;
    ensure!(first != second, "berthd was not restarted");
    pods.are_as_they_were(logs).await?;

    step("reload");
    configure("reload", "[log]\nlevel = \"debug\"\n")?;
    ensure!(systemctl(&["reload", "berthd"]).status.success(), "reload");
    journal_says("the configuration is reloaded").await?;
    configure("reload", "[log]\nvolume = 11\n")?;
    ensure!(
        !systemctl(&["reload", "berthd"]).status.success(),
        "a wrong file was loaded"
    );
    journal_says("volume").await?;
    fs::remove_file("/etc/berth/config.d/reload.toml")?;
    ensure!(main_pid().await? == second, "a reload is no restart");

    step("watchdog");
    let folder = "/run/systemd/system/berthd.service.d";
    fs::create_dir_all(folder)?;
    fs::write(format!("{folder}/story.conf"), "[Service]\nWatchdogSec=9\n")?;
    systemctl(&["daemon-reload"]);
    ensure!(systemctl(&["restart", "berthd"]).status.success(), "restart");
    let third = main_pid().await?;
    let pid = Pid::from_raw(i32::try_from(third)?).context("pid")?;
    kill_process(pid, Signal::STOP)?;
    journal_says("Watchdog timeout").await?;
    ensure!(next_pid(third).await? != third);
    pods.are_as_they_were(logs).await?;
    fs::remove_dir_all(folder)?;
    systemctl(&["daemon-reload"]);
    journal_is_sane()?;

    step("remove");
    let told = apt(&["remove", "berth"])?;
    ensure!(told.contains("20 containers run on"), "{told}");
    ensure!(!Path::new("/usr/bin/berthd").exists() && Path::new("/etc/berth/config.toml").exists());
    ensure!(
        !systemctl(&["is-active", "berthd"]).status.success(),
        "still active"
    );
    pods.run_on(logs)?;

    step("install again");
    apt(&["install", &packages.join("new.deb").to_string_lossy()])?;
    main_pid().await?;
    ensure!(!Path::new("/var/lib/berth/removed").exists());
    pods.are_as_they_were(logs).await?;

    step("purge");
    let told = apt(&["purge", "berth"])?;
    ensure!(!told.contains("by force"), "{told}");
    fs::remove_dir_all(logs)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // systemd takes a moment to forget a unit.
        let left = Machine::look()?.since(&before, "berth");
        if left.is_empty() {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "left:\n  {}\n{told}",
            left.join("\n  ")
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    step("done");
    Ok(())
}

/// What runs, and how it was when it began.
struct Pods {
    client: Client,
    all: Vec<(Pod, String)>,
    /// Of shims and of all that containers run, by pid.
    processes: Vec<(u32, String)>,
    started: Vec<i64>,
}

impl Pods {
    async fn run(registry: &Registry, logs: &Path) -> Result<Pods> {
        let image = Image::busybox().push(registry, "busybox:1").await?;
        let client = Client::connect(ADDRESS, "package", logs).await?;
        client.pull(&image.tag).await?;
        let mut pods = Pods {
            client,
            all: Vec::new(),
            processes: Vec::new(),
            started: Vec::new(),
        };
        for number in 0..PODS {
            let pod = pods.client.run_pod(&format!("pod{number}")).await?;
            // The builtin and nothing else: a fork is dear in a slow machine.
            let script =
                "trap exit TERM; i=0; while :; do echo $i; i=$((i+1)); read -t 1 x <>/tmp/none; done";
            let script = format!("mkfifo /tmp/none 2>/dev/null || :; {script}");
            let config = pods.client.script("count", &image.tag, &script);
            let id = pods.client.run(&pod, config).await?;
            pods.started.push(pods.client.status(&id).await?.started_at);
            pods.all.push((pod, id));
        }
        pods.processes = processes()?;
        let shims = pods.processes.iter().filter(|(_, name)| name == "berth-shim");
        ensure!(shims.count() == PODS, "{:?}", pods.processes);
        apart_from_the_service().await?;
        Ok(pods)
    }

    /// The same processes, and logs that go on without a gap.
    fn run_on(&self, logs: &Path) -> Result {
        let now = processes()?;
        for process in &self.processes {
            ensure!(now.contains(process), "{process:?} is gone: {now:?}");
        }
        let mut files = Vec::new();
        for folder in fs::read_dir(logs)?.flatten() {
            files.extend(fs::read_dir(folder.path())?.flatten().map(|file| file.path()));
        }
        ensure!(files.len() == PODS, "{files:?}");
        let counts: Vec<usize> = files
            .iter()
            .map(|file| Ok(log_lines(file)?.len()))
            .collect::<Result<_>>()?;
        let deadline = Instant::now() + PATIENCE;
        for (file, count) in files.iter().zip(counts) {
            loop {
                let lines = log_lines(file)?;
                for (number, line) in lines.iter().enumerate() {
                    let file = file.display();
                    ensure!(
                        line.content == number.to_string(),
                        "{file}: {line:?} is number {number}"
                    );
                }
                if lines.len() > count {
                    break;
                }
                ensure!(Instant::now() < deadline, "{} does not go on", file.display());
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }

    /// That, and berthd knows them as before.
    async fn are_as_they_were(&mut self, logs: &Path) -> Result {
        self.run_on(logs)?;
        self.client = Client::connect(ADDRESS, "package", logs).await?;
        for ((pod, id), started) in self.all.iter().zip(&self.started) {
            let status = self.client.status(id).await?;
            ensure!(
                status.state() == e2e::cri::ContainerState::ContainerRunning,
                "{status:?}"
            );
            ensure!(status.started_at == *started, "{status:?}");
            let attempt = status.metadata.map(|metadata| metadata.attempt);
            ensure!(attempt == Some(0), "{attempt:?}");
            let sandbox = self.client.pod_status(&pod.id).await?;
            ensure!(
                sandbox.state() == e2e::cri::PodSandboxState::SandboxReady,
                "{sandbox:?}"
            );
        }
        for (pod, id) in self.all.iter().take(3) {
            let name = self.client.exec(id, &["hostname"]).await?;
            ensure!(name.stdout.trim() == pod.config.hostname, "{name:?}");
        }
        Ok(())
    }
}

fn processes() -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.starts_with(b"berth-shim\0-id") {
            found.push((pid, "berth-shim".to_owned()));
        } else if String::from_utf8_lossy(&line).contains("/tmp/none") {
            found.push((pid, "container".to_owned()));
        }
    }
    Ok(found)
}

/// Shims and the fork server that makes them are not in the service's cgroup: berthd is
/// alone there.
async fn apart_from_the_service() -> Result {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let alone = fs::read_to_string("/sys/fs/cgroup/system.slice/berthd.service/cgroup.procs")?;
        let shims = fs::read_to_string("/sys/fs/cgroup/system.slice/berth-shims.scope/cgroup.procs");
        let shims = shims.unwrap_or_default();
        if alone.lines().count() == 1 && shims.lines().count() == PODS + 1 {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the service: {alone}\nthe scope: {shims}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn what_the_unit_promises(pid: u32) -> Result {
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    ensure!(score.trim() == "-999", "{score}");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let files = limits.lines().find(|line| line.starts_with("Max open files"));
    ensure!(files.is_some_and(|line| line.contains("1048576")), "{limits}");
    let properties = [
        "Type",
        "KillMode",
        "Delegate",
        "Restart",
        "WatchdogUSec",
        "TasksMax",
    ];
    let shown = run(
        "systemctl",
        &["show", "berthd", &format!("--property={}", properties.join(","))],
    )?;
    for line in [
        "Type=notify",
        "KillMode=process",
        "Delegate=yes",
        "Restart=always",
        "WatchdogUSec=1min",
        "TasksMax=infinity",
    ] {
        ensure!(
            shown.lines().any(|given| given == line),
            "{line} is not in\n{shown}"
        );
    }
    let wrong = run("systemd-analyze", &["verify", "--man=no", "berthd.service"]);
    ensure!(wrong.is_ok(), "{wrong:?}");
    // Mounts go both ways between the node and its pods.
    let own = fs::read_link("/proc/self/ns/mnt")?;
    ensure!(
        fs::read_link(format!("/proc/{pid}/ns/mnt"))? == own,
        "berthd has a mount namespace of its own"
    );
    Ok(())
}

/// A file in config.d.
fn configure(name: &str, text: &str) -> Result {
    fs::create_dir_all("/etc/berth/config.d")?;
    Ok(fs::write(format!("/etc/berth/config.d/{name}.toml"), text)?)
}

/// The pid of berthd once it is active and answers.
async fn main_pid() -> Result<u32> {
    next_pid(0).await
}

/// That of one after `old`.
async fn next_pid(old: u32) -> Result<u32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shown = run("systemctl", &["show", "berthd", "--property=MainPID,ActiveState"])?;
        let pid = shown
            .lines()
            .find_map(|line| line.strip_prefix("MainPID=")?.parse().ok());
        let pid = pid.unwrap_or(0);
        let answers = run("berth", &["version"]).is_ok();
        if pid != 0 && pid != old && shown.contains("ActiveState=active") && answers {
            return Ok(pid);
        }
        ensure!(
            Instant::now() < deadline,
            "berthd is not up: {shown}\n{}",
            journal()
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn journal() -> String {
    kernel::output("journalctl", &["--no-pager", "--output=cat", "--unit=berthd"])
}

async fn journal_says(words: &str) -> Result {
    let deadline = Instant::now() + PATIENCE;
    while !journal().contains(words) {
        ensure!(Instant::now() < deadline, "{words:?} is not in\n{}", journal());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

/// Nothing went wrong that we have not done, and upgrades do not fill it.
fn journal_is_sane() -> Result {
    let text = journal();
    let bad: Vec<&str> = text
        .lines()
        .filter(|line| {
            line.contains("ERROR") || line.contains("panicked") || line.contains("left-over process")
        })
        .collect();
    ensure!(bad.is_empty(), "{}", bad.join("\n"));
    Ok(())
}

fn systemctl(arguments: &[&str]) -> Output {
    Command::new("systemctl")
        .args(arguments)
        .output()
        .expect("systemctl runs")
}

fn apt(arguments: &[&str]) -> Result<String> {
    let output = Command::new("apt-get")
        .args(["--yes", "--quiet", "--no-install-recommends"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(
        output.status.success(),
        "apt-get {arguments:?}:\n{text}\n{}",
        journal()
    );
    Ok(text)
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn mode_of(path: &str) -> Result<u32> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::metadata(path)?.permissions().mode() & 0o7777)
}

fn step(name: &str) {
    let up = fs::read_to_string("/proc/uptime").unwrap_or_default();
    println!("{} s: {name}", up.split(' ').next().unwrap_or_default());
}
