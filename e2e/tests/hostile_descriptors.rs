//! What a container gets hold of by descriptors: those of the node that are still open
//! when its program runs, the program that starts it, and whoever is executed in it
//! (CVE-2016-9962, 2019-5736, 2024-21626).

use std::{collections::BTreeMap, fs};

use e2e::{
    Client, Image, Result, Story,
    client::{pod_security, security},
    cri, hostile,
    images::digest,
    machine,
    node::{binary, handler},
    tar::Entry,
};

/// Descriptors of a process by number, and what they are. That of the listing itself is
/// left out.
const LISTING: &str = "for f in /proc/$0/fd/*; do echo ${f##*/} $(readlink $f); done";

fn listed(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.trim().split_once(' '));
    lines.map(|(number, what)| (number.into(), what.into())).collect()
}

#[tokio::test]
async fn only_standard_streams_are_open() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("descriptors").await?;
    for (name, tty, stdin) in [
        ("plain", false, false),
        ("input", false, true),
        ("terminal", true, true),
    ] {
        let mut config = story.script(name, "exec sleep 1000");
        (config.tty, config.stdin) = (tty, stdin);
        let id = client.run(&pod, config).await?;
        let of_init = listed(&client.exec(&id, &["sh", "-c", LISTING, "1"]).await?.stdout);
        let numbers: Vec<_> = of_init.keys().map(String::as_str).collect();
        assert_eq!(numbers, ["0", "1", "2"], "{name}: {of_init:?}");
        // A pipe, nothing, or a terminal of the container's own: no file of the node.
        for what in of_init.values() {
            let good = what.starts_with("pipe:") || what == "/dev/null" || what.starts_with("/dev/pts/");
            assert!(good, "{name}: {of_init:?}");
        }
        // The list sees more when there is more.
        let script = "exec 9</etc/passwd; sh -c \"$0\" self";
        let of_exec = client.exec(&id, &["sh", "-c", script, LISTING]).await?;
        let of_exec = listed(&of_exec.stdout);
        assert_eq!(
            of_exec.get("9").map(String::as_str),
            Some("/etc/passwd"),
            "{of_exec:?}"
        );
        let more: Vec<_> = of_exec
            .keys()
            .filter(|number| !["0", "1", "2", "9"].contains(&number.as_str()))
            .collect();
        assert!(more.is_empty(), "{name}: {of_exec:?}");
    }
    story.finish().await
}

/// Where the working folder is, and whether the end of the way up from it is the root.
const WHERE: &str = "pwd -P; i=0; while [ $i -lt 20 ]; do cd -P ..; i=$((i+1)); done; \
    [ $(stat -c %d:%i .) = $(stat -c %d:%i /) ] && echo inside || echo outside";

#[tokio::test]
async fn a_working_folder_is_never_outside() -> Result {
    let mut story = Story::begin().await?;
    let links = (3..16).map(|fd| Entry::symlink(&format!("w{fd}"), &format!("/proc/self/fd/{fd}")));
    let image = Image::busybox().layer(&links.collect::<Vec<_>>());
    let image = story.image(image, "working:1").await?;
    let client = &story.client;
    let pod = client.run_pod("working").await?;
    let mut refused = 0;
    for fd in 3..16 {
        for (kind, folder) in [
            ("direct", format!("/proc/self/fd/{fd}")),
            ("link", format!("/w{fd}")),
            ("above", format!("/proc/self/fd/{fd}/../..")),
        ] {
            let mut config = client.script(&format!("{kind}{fd}"), &image.tag, WHERE);
            config.working_dir = folder.clone();
            let started = match client.create(&pod, config).await {
                Ok(id) => client.start(&id).await.map(|()| id),
                Err(error) => Err(error),
            };
            let Ok(id) = started else {
                refused += 1;
                continue;
            };
            let log = fs::read_to_string(client.wait_exit(&id).await?.log_path)?;
            assert!(log.contains("inside"), "{folder}: {log}");
        }
    }
    // Not one of these is a folder.
    assert!(refused >= 26, "{refused} of 39 working folders were refused");
    story.finish().await
}

#[tokio::test]
async fn the_folder_of_execs_is_swapped_for_links() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("swapped").await?;
    let script = "while :; do for fd in 3 4 5 6 7 8 9 10 11 12; do cd /; mkdir -p /tmp/work; usleep 500; \
        rm -rf /tmp/work; ln -s /proc/self/fd/$fd /tmp/work; usleep 500; rm -f /tmp/work; done; done";
    let mut config = story.script("c", script);
    config.working_dir = "/tmp/work".into();
    let id = client.run(&pod, config).await?;
    let (mut begun, mut failed) = (0, 0);
    for _ in 0..60 {
        match client.exec(&id, &["sh", "-c", WHERE]).await {
            Ok(output) => {
                begun += 1;
                assert!(!output.stdout.contains("outside"), "{output:?}");
            }
            Err(_) => failed += 1,
        }
    }
    // Both ways of the race were seen.
    assert!(begun > 0 && failed > 0, "{begun} execs began, {failed} failed");
    story.finish().await
}

/// A pod whose containers may share a pid namespace.
fn one_pid_namespace(client: &Client, name: &str) -> cri::PodSandboxConfig {
    let mut config = client.pod_config(name);
    let options = pod_security(&mut config)
        .namespace_options
        .get_or_insert_default();
    options.pid = cri::NamespaceMode::Pod.into();
    config
}

/// In the pid namespace of its pod.
fn share_pids(config: &mut cri::ContainerConfig) {
    let options = security(config).namespace_options.get_or_insert_default();
    options.pid = cri::NamespaceMode::Pod.into();
}

/// Programs that are the runtime's own by a link: what is executed then is the node's,
/// and must stay as it is.
#[tokio::test]
async fn the_program_that_starts_containers_cannot_be_written() -> Result {
    let mut story = Story::begin().await?;
    let shim = binary("berth-shim");
    let before = (digest(&fs::read(&shim)?), fs::metadata(&shim)?.modified()?);
    let image = hostile::image()?.layer(&[
        Entry::symlink("bin/again", "/proc/self/exe"),
        Entry::file("bin/script", "#!/proc/self/exe\n").mode(0o755),
    ]);
    let image = story.image(image, "again:1").await?;
    let client = &story.client;
    let pod = client.run_pod_with(one_pid_namespace(client, "again")).await?;
    // It waits for processes of the pod and opens what they run, for as long as it lives.
    let look = "(attack look 8 | sed 's/^/look /') & for i in $(seq 300); do for p in /proc/[0-9]*; do \
        attack write $p/exe | sed 's/^/write /'; done; usleep 10000; done; wait";
    let mut config = client.script("attacker", &image.tag, look);
    share_pids(&mut config);
    let attacker = client.run(&pod, config).await?;
    for (number, program) in ["/proc/self/exe", "/bin/again", "/bin/script"]
        .into_iter()
        .enumerate()
    {
        let mut config = client.script(&format!("entry{number}"), &image.tag, "");
        config.command = vec![program.into()];
        share_pids(&mut config);
        // It may be refused; what matters is the file.
        if let Ok(id) = client.create(&pod, config).await {
            client.start(&id).await.ok();
            for command in [["/proc/self/exe"], ["/bin/again"], ["/bin/script"]] {
                client.exec_within(&attacker, &command, 2).await.ok();
            }
        }
    }
    for _ in 0..40 {
        client.exec(&attacker, &["true"]).await.ok();
    }
    let status = client.wait_exit(&attacker).await?;
    let log = fs::read_to_string(status.log_path)?;
    let told = |word: &str| log.lines().filter(|line| line.contains(word)).count();
    eprintln!(
        "{} looks, {} writes",
        told("stdout F look"),
        told("stdout F write")
    );
    // It saw what it may see, itself and its neighbours.
    assert!(log.contains("look exe /bin/busybox"), "{log}");
    assert!(told("write ETXTBSY") > 0, "{log}");
    assert_eq!(
        told("write done"),
        0,
        "a program could be opened for writing: {log}"
    );
    assert_eq!(told("look exe-write"), 0, "{log}");
    let after = (digest(&fs::read(&shim)?), fs::metadata(&shim)?.modified()?);
    assert_eq!(before, after, "{} was changed", shim.display());
    story.finish().await
}

/// A process on its way into the container is not to be looked into: it is still the
/// node's.
#[tokio::test]
async fn nobody_looks_into_what_is_being_executed() -> Result {
    let mut story = Story::begin().await?;
    let image = story.image(hostile::image()?, "look:1").await?;
    let client = &story.client;
    let pod = client.run_pod("look").await?;
    let id = client
        .run(
            &pod,
            client.script("looker", &image.tag, "echo up; exec attack look 6"),
        )
        .await?;
    let mut ran = 0;
    while client.status(&id).await?.state() == cri::ContainerState::ContainerRunning {
        ran += usize::from(client.exec(&id, &["usleep", "2000"]).await.is_ok());
    }
    let log = fs::read_to_string(client.status(&id).await?.log_path)?;
    eprintln!("{ran} execs: {log}");
    assert!(ran > 10, "{log}");
    // What was executed was seen when it was the container's.
    assert!(log.contains("exe /bin/busybox"), "{log}");
    assert_eq!(
        not_the_containers(&log, &["/bin/busybox", "/bin/attack"]),
        Vec::<&str>::new()
    );
    story.finish().await
}

/// CAP_SYS_PTRACE opens what is not dumpable too. So whoever gets into a pid namespace
/// with others in it must be the container's by then, root and descriptors and all.
#[tokio::test]
async fn who_may_trace_finds_nothing_of_the_node() -> Result {
    if let Some(handler) = handler() {
        eprintln!("not told of {handler}: what it does on its way into a container is its own affair");
        return Ok(());
    }
    let mut story = Story::begin().await?;
    let image = story.image(hostile::image()?, "tracer:1").await?;
    let client = &story.client;
    let pod = client.run_pod_with(one_pid_namespace(client, "tracer")).await?;
    let look = format!("echo up; exec attack look 8 {}", story.node.path().display());
    let mut config = client.script("tracer", &image.tag, &look);
    share_pids(&mut config);
    let capabilities = security(&mut config).capabilities.get_or_insert_default();
    capabilities.add_capabilities.push("SYS_PTRACE".into());
    let tracer = client.run(&pod, config).await?;
    // With older kernels an init has to be inside from the beginning.
    let neighbours = machine::kernel_is_at_least(6, 18)?;
    if !neighbours {
        eprintln!("execs only: this kernel makes no procfs of another pid namespace (Linux 6.18)");
    }
    let (mut ran, mut made) = (0, 0);
    while client.status(&tracer).await?.state() == cri::ContainerState::ContainerRunning {
        for _ in 0..10 {
            ran += usize::from(client.exec(&tracer, &["usleep", "500"]).await.is_ok());
        }
        if neighbours {
            let mut config = client.script(&format!("neighbour{made}"), &image.tag, "true");
            share_pids(&mut config);
            let id = client.run(&pod, config).await?;
            client.remove(&id).await?;
            made += 1;
        }
    }
    let log = fs::read_to_string(client.status(&tracer).await?.log_path)?;
    eprintln!("{ran} execs, {made} containers: {log}");
    assert!(ran > 10 && (made > 2 || !neighbours), "{log}");
    // It saw its neighbours, and the shim's program, which nobody can write.
    assert!(log.contains("exe /bin/busybox"), "{log}");
    let shim = "/memfd:berth-shim (deleted)";
    let found = not_the_containers(&log, &["/bin/busybox", "/bin/attack", shim]);
    let found: Vec<_> = found
        .into_iter()
        .filter(|line| !line.starts_with("root of another"))
        // By the socket a launch tells how it went, about itself alone; by `tasks` one joins
        // the container's own cgroup, and does nothing else.
        .filter(|line| !line.starts_with("fd socket:") && !line.ends_with(&format!("/{tracer}/tasks")))
        .collect();
    assert_eq!(found, Vec::<&str>::new());
    story.finish().await
}

/// What `attack look` told of and is none of a container's own.
fn not_the_containers<'a>(log: &'a str, programs: &[&str]) -> Vec<&'a str> {
    let told = log.lines().filter_map(|line| line.split_once(" stdout F "));
    told.map(|(_, line)| line)
        .filter(|line| {
            let (what, which) = line.split_once(' ').unwrap_or((line, ""));
            !match what {
                "up" | "denied" => true,
                "exe" => programs.contains(&which),
                "cwd" => which == "/",
                "fd" => ["pipe:", "/dev/null", "/proc"]
                    .iter()
                    .any(|begin| which.starts_with(begin)),
                _ => false,
            }
        })
        .collect()
}
