//! `run`: image, pod, container and its start in one go.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    Client, Error,
    arguments::Run,
    containers::{exit_code, remove_one, remove_pod, status, stop_one},
    error::call,
    find::POD_NAME,
    follow::{Follower, Printer, print_until_exit},
    images,
    parse::{Cpus, Credentials, Network},
    table,
};
use crate::proto::cri;

/// Label of containers that go together with their pod.
pub const MADE_BY_RUN: &str = "io.berth.run";
const POD_NAMESPACE: &str = "default";
/// Seconds of grace after the first Ctrl-C; the second one kills.
const GRACE: u32 = 10;

/// Paths of /proc and /sys that a container without privileges does not see, and
/// those it only reads: what a kubelet sends for its default of `procMount`.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Exits with the code of the command; detached, with 0 once it has started.
pub async fn run(mut client: Client, args: Box<Run>) -> Result<u8, Error> {
    let image = match images::present(&mut client, &args.image).await? {
        Some(id) => id,
        None => {
            let auth = Credentials::or_environment(args.creds.as_ref());
            images::fetch(&mut client, &args.image, auth).await?
        }
    };
    let uid = random_hex()?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => format!("{}-{}", base_name(&args.image), &uid[..6]),
    };
    let logs = log_folder(&args.log_dir, &format!("{name}_{uid}"))?;
    let pod = pod_config(&args, &name, &uid, &logs);
    // Before anything is made: an interrupt from now on stops what will run.
    let signals = (!args.detach).then(Signals::listen).transpose()?;
    let made = Box::pin(start(&mut client, &args, &name, pod, image)).await;
    let container = made.inspect_err(|_| {
        let _ = fs::remove_dir_all(&logs);
    })?;
    let Some(signals) = signals else {
        table::print(&format!("{}\n", container.id))?;
        return Ok(0);
    };
    let code = attend(&mut client, &container.id, signals).await;
    if args.rm {
        remove_one(&mut client, &container).await?;
    }
    code
}

/// Makes the pod and the container in it and starts this; what was made is
/// removed when a step fails.
async fn start(
    client: &mut Client,
    args: &Run,
    name: &str,
    pod: cri::PodSandboxConfig,
    image: String,
) -> Result<cri::Container, Error> {
    let config = container_config(args, name, &image)?;
    let request = cri::RunPodSandboxRequest {
        config: Some(pod.clone()),
        runtime_handler: args.runtime.clone(),
    };
    let answer = client.runtime.run_pod_sandbox(request).await;
    let pod_id = answer.map_err(call("run pod", name))?.into_inner().pod_sandbox_id;
    let started = Box::pin(start_in(client, &pod_id, pod, config, name)).await;
    if started.is_err() {
        // The first error is what people need to see.
        let _ = remove_pod(client, &pod_id).await;
    }
    started
}

async fn start_in(
    client: &mut Client,
    pod_id: &str,
    pod: cri::PodSandboxConfig,
    config: cri::ContainerConfig,
    name: &str,
) -> Result<cri::Container, Error> {
    let labels = config.labels.clone();
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod_id.into(),
        config: Some(config),
        sandbox_config: Some(pod),
    };
    let answer = client.runtime.create_container(request).await;
    let id = answer
        .map_err(call("create container", name))?
        .into_inner()
        .container_id;
    let request = cri::StartContainerRequest {
        container_id: id.clone(),
    };
    if let Err(error) = client.runtime.start_container(request).await {
        // An init that could not be executed has an exit code of its own.
        return Err(match status(client, &id).await {
            Ok(status) if status.state() == cri::ContainerState::ContainerExited => Error::Start {
                name: name.into(),
                message: error.message().into(),
                code: status.exit_code,
            },
            _ => call("start container", name)(error),
        });
    }
    Ok(cri::Container {
        id,
        pod_sandbox_id: pod_id.into(),
        labels,
        ..Default::default()
    })
}

/// Prints what the container writes until it exits; a signal stops it.
async fn attend(client: &mut Client, id: &str, signals: Signals) -> Result<u8, Error> {
    let log = status(client, id).await?.log_path;
    let mut follower = Follower::open(PathBuf::from(log))?;
    let mut printer = Printer::default();
    let stopping = stop_at_signal(client.clone(), id, signals);
    tokio::select! {
        printed = print_until_exit(client, id, &mut follower, &mut printer) => printed?,
        () = stopping => {}
    }
    Ok(exit_code(status(client, id).await?.exit_code))
}

/// SIGINT and SIGTERM, heard from when it is made.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Signals, Error> {
        let handler = |kind| {
            signal(kind).map_err(|source| Error::Io {
                step: "install a signal handler",
                source,
            })
        };
        Ok(Signals {
            interrupt: handler(SignalKind::interrupt())?,
            terminate: handler(SignalKind::terminate())?,
        })
    }
}

/// Never ends: the exit is seen by who prints.
async fn stop_at_signal(client: Client, id: &str, mut signals: Signals) {
    let mut grace = GRACE;
    loop {
        tokio::select! {
            _ = signals.interrupt.recv() => {}
            _ = signals.terminate.recv() => {}
        }
        // Not awaited here, so that a second signal is heard meanwhile.
        let (mut client, id) = (client.clone(), id.to_owned());
        tokio::spawn(async move {
            if let Err(error) = stop_one(&mut client, &id, grace).await {
                eprintln!("berth: {error}");
            }
        });
        grace = 0;
    }
}

fn pod_config(args: &Run, name: &str, uid: &str, logs: &Path) -> cri::PodSandboxConfig {
    let namespaces = namespaces(args);
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.into(),
            uid: uid.into(),
            namespace: POD_NAMESPACE.into(),
            attempt: 0,
        }),
        // A host name is at most 63 bytes; the host's is kept with the host's network.
        hostname: match args.network {
            Network::Pod => name.chars().take(63).collect(),
            Network::Host => String::new(),
        },
        log_directory: logs.to_string_lossy().into_owned(),
        port_mappings: args.publish.iter().map(|port| port.0.clone()).collect(),
        labels: labels(name, uid),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces),
                privileged: args.privileged,
                seccomp: Some(seccomp(args)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container_config(args: &Run, name: &str, image: &str) -> Result<cri::ContainerConfig, Error> {
    let envs: Result<Vec<_>, _> = args.env.iter().map(|variable| variable.resolve()).collect();
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(cri::ImageSpec {
            user_specified_image: args.image.clone(),
            ..images::spec(image)
        }),
        command: args.entrypoint.iter().cloned().collect(),
        args: args.command.clone(),
        working_dir: args.workdir.clone().unwrap_or_default(),
        envs: envs?,
        mounts: args.volume.iter().map(|volume| volume.0.clone()).collect(),
        labels: labels(name, ""),
        log_path: "0.log".into(),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(args)),
            security_context: Some(security(args)),
        }),
        ..Default::default()
    })
}

fn resources(args: &Run) -> cri::LinuxContainerResources {
    let mut resources = cri::LinuxContainerResources::default();
    if let Some(memory) = args.memory {
        resources.memory_limit_in_bytes = memory.0;
    }
    if let Some(cpus) = args.cpus {
        resources.cpu_quota = cpus.0;
        resources.cpu_period = Cpus::PERIOD;
    }
    resources
}

fn security(args: &Run) -> cri::LinuxContainerSecurityContext {
    let value = |id: Option<i64>| id.map(|value| cri::Int64Value { value });
    let user = args.user.as_ref();
    let paths = |paths: &[&str]| -> Vec<String> {
        let paths = if args.privileged { &[] } else { paths };
        paths.iter().map(|path| (*path).to_owned()).collect()
    };
    cri::LinuxContainerSecurityContext {
        privileged: args.privileged,
        readonly_rootfs: args.read_only,
        namespace_options: Some(namespaces(args)),
        run_as_user: value(user.and_then(|user| user.uid)),
        run_as_username: user.map(|user| user.name.clone()).unwrap_or_default(),
        run_as_group: value(user.and_then(|user| user.gid)),
        seccomp: Some(seccomp(args)),
        masked_paths: paths(MASKED),
        readonly_paths: paths(READ_ONLY),
        ..Default::default()
    }
}

fn namespaces(args: &Run) -> cri::NamespaceOption {
    let network = match args.network {
        Network::Pod => cri::NamespaceMode::Pod,
        Network::Host => cri::NamespaceMode::Node,
    };
    cri::NamespaceOption {
        network: network.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn seccomp(args: &Run) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let kind = if args.privileged {
        ProfileType::Unconfined
    } else {
        ProfileType::RuntimeDefault
    };
    cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: String::new(),
    }
}

fn labels(name: &str, uid: &str) -> HashMap<String, String> {
    let mut labels = HashMap::from([
        (MADE_BY_RUN.to_owned(), "true".to_owned()),
        (POD_NAME.to_owned(), name.to_owned()),
        ("io.kubernetes.pod.namespace".to_owned(), POD_NAMESPACE.to_owned()),
    ]);
    if !uid.is_empty() {
        labels.insert("io.kubernetes.pod.uid".to_owned(), uid.to_owned());
    }
    labels
}

/// A folder for this container's log. Where the chosen place cannot be written
/// (a machine with a read-only /var), the folder for temporary files is used.
fn log_folder(parent: &Path, name: &str) -> Result<PathBuf, Error> {
    let folder = parent.join(name);
    let Err(first) = fs::create_dir_all(&folder) else {
        return Ok(folder);
    };
    let other = std::env::temp_dir().join("berth-logs").join(name);
    fs::create_dir_all(&other).map_err(|_| Error::File {
        step: "make log folder",
        path: folder,
        source: first,
    })?;
    Ok(other)
}

/// The last part of a reference without tag and digest, in the letters of a host name.
fn base_name(reference: &str) -> String {
    let last = reference.split('@').next().unwrap_or(reference);
    let last = last.rsplit('/').next().unwrap_or(last);
    let base = last.split(':').next().unwrap_or(last).to_lowercase();
    let base: String = base
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(40)
        .collect();
    let base = base.trim_matches('-');
    if base.is_empty() {
        "container".into()
    } else {
        base.into()
    }
}

fn random_hex() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::Io {
        step: "read random bytes for the pod's uid",
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Arguments, Command};
    use clap::Parser;

    fn args(words: &[&str]) -> Box<Run> {
        let words = ["berth", "run"].iter().chain(words);
        match Arguments::parse_from(words).command {
            Command::Run(run) => run,
            other => panic!("not run: {other:?}"),
        }
    }

    #[test]
    fn names_come_from_the_image() {
        let names = ["busybox", "host:5000/a/My_App:1.2", "x@sha256:00", "@"].map(base_name);
        assert_eq!(names, ["busybox", "my-app", "x", "container"]);
    }

    #[test]
    fn options_reach_the_requests() {
        let args = args(&[
            "--network",
            "host",
            "-m",
            "64m",
            "--cpus",
            "0.5",
            "-u",
            "www:7",
            "-w",
            "/w",
            "-e",
            "A=b",
            "i",
            "c",
            "d",
        ]);
        let pod = pod_config(&args, "n", "u", Path::new("/logs"));
        assert_eq!(pod.hostname, "");
        let config = container_config(&args, "n", "sha256:0").unwrap();
        let linux = config.linux.unwrap();
        let resources = linux.resources.unwrap();
        assert_eq!(
            (
                resources.memory_limit_in_bytes,
                resources.cpu_quota,
                resources.cpu_period
            ),
            (64 << 20, 50_000, 100_000)
        );
        let security = linux.security_context.unwrap();
        assert_eq!(security.run_as_username, "www");
        assert_eq!(security.run_as_group.map(|g| g.value), Some(7));
        assert_eq!(
            security.namespace_options.unwrap().network(),
            cri::NamespaceMode::Node
        );
        assert!(security.masked_paths.iter().any(|path| path == "/proc/kcore"));
        assert_eq!(config.args, ["c", "d"]);
        assert_eq!(config.envs[0].value, b"b");
        assert_eq!(config.image.unwrap().user_specified_image, "i");
    }

    #[test]
    fn privileges_take_the_masks_away() {
        let config = container_config(&args(&["--privileged", "i"]), "n", "sha256:0").unwrap();
        let security = config.linux.unwrap().security_context.unwrap();
        assert!(security.privileged && security.masked_paths.is_empty());
    }
}
