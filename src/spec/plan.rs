//! The spec as numbers: what the shim does without a thought.
//!
//! Every field of the spec is carried or refused. A spec that was edited by CDI,
//! NRI or a person never runs as something else than what it says.

use std::path::Path;

use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, LinuxSeccomp, PosixRlimitType,
    Process, Spec,
};

use super::{Error, Launch, capability, devices, hooks, plan_mounts, process, resources, seccomp_compile};
use crate::proto::plan as wire;

/// The plan of a spec.
pub fn plan(spec: &Spec, launch: &Launch<'_>) -> Result<wire::LaunchPlan, Error> {
    let Some(linux) = spec.linux() else {
        return Err(Error::spec("linux", "is missing"));
    };
    let Some(process) = spec.process() else {
        return Err(Error::spec("process", "is missing"));
    };
    refuse(spec, linux, process)?;
    let namespaces = namespaces(linux)?;
    let uids = id_ranges(linux.uid_mappings().as_deref());
    let gids = id_ranges(linux.gid_mappings().as_deref());
    let limits = linux.resources().as_ref().map(resources::plan).transpose()?;
    let cgroup = linux.cgroups_path().as_deref().unwrap_or(Path::new(""));
    if !cgroup.is_absolute() {
        return Err(Error::spec(
            "linux.cgroupsPath",
            format!("{} is not absolute", cgroup.display()),
        ));
    }
    Ok(wire::LaunchPlan {
        id: launch.id.to_owned(),
        rootfs: Some(rootfs(spec, linux, launch)?),
        hostname: hostname(spec, &namespaces)?,
        namespaces,
        mounts: spec
            .mounts()
            .iter()
            .flatten()
            .map(plan_mounts::plan)
            .collect::<Result<_, _>>()?,
        devices: nodes(linux)?,
        process: Some(process_of(process, spec)?),
        cgroup: Some(wire::Cgroup {
            path: text("linux.cgroupsPath", cgroup)?,
            resources: limits,
            delegated: is_scope(cgroup),
        }),
        masked_paths: linux.masked_paths().clone().unwrap_or_default(),
        readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
        sysctls: linux.sysctl().clone().unwrap_or_default(),
        log: match launch.log_path {
            Some(path) => Some(wire::Log {
                path: text("log path", path)?,
            }),
            None => None,
        },
        stdin: launch.stdin,
        stdin_once: launch.stdin_once,
        sandbox_init: false,
        runtime: None,
        surroundings: None,
        hooks: hooks::plan(spec)?,
        rootfs_propagation: propagation(linux.rootfs_propagation().as_deref())?.into(),
        uids,
        gids,
    })
}

/// Scopes are made by systemd.
pub(super) fn is_scope(cgroup: &Path) -> bool {
    cgroup.extension().is_some_and(|kind| kind == "scope")
}

fn rootfs(spec: &Spec, linux: &Linux, launch: &Launch<'_>) -> Result<wire::Rootfs, Error> {
    let view = launch.rootfs;
    Ok(wire::Rootfs {
        lower: view
            .lower
            .iter()
            .map(|path| text("layer", path))
            .collect::<Result<_, _>>()?,
        upper: text("upper folder", &view.upper)?,
        work: text("work folder", &view.work)?,
        readonly: spec
            .root()
            .as_ref()
            .and_then(|root| root.readonly())
            .unwrap_or(false),
        mount_label: linux.mount_label().clone().unwrap_or_default(),
    })
}

fn namespaces(linux: &Linux) -> Result<Vec<wire::Namespace>, Error> {
    use wire::namespace::Kind;
    let mut list: Vec<wire::Namespace> = Vec::new();
    for namespace in linux.namespaces().iter().flatten() {
        let kind = match namespace.typ() {
            LinuxNamespaceType::Pid => Kind::Pid,
            LinuxNamespaceType::Network => Kind::Network,
            LinuxNamespaceType::Mount => Kind::Mount,
            LinuxNamespaceType::Ipc => Kind::Ipc,
            LinuxNamespaceType::Uts => Kind::Uts,
            LinuxNamespaceType::Cgroup => Kind::Cgroup,
            // One that nobody has made would go with the container, and its layers' owners.
            LinuxNamespaceType::User if namespace.path().is_none() => {
                return Err(absent("linux.namespaces: a new user namespace"));
            }
            LinuxNamespaceType::User => Kind::User,
            LinuxNamespaceType::Time => {
                return Err(absent(&format!("linux.namespaces {:?}", namespace.typ())));
            }
        };
        if list.iter().any(|known| known.kind == i32::from(kind)) {
            return Err(Error::spec(
                "linux.namespaces",
                format!("{:?} is there twice", namespace.typ()),
            ));
        }
        list.push(wire::Namespace {
            kind: kind.into(),
            path: text(
                "linux.namespaces",
                namespace.path().as_deref().unwrap_or(Path::new("")),
            )?,
        });
    }
    if !list
        .iter()
        .any(|namespace| namespace.kind() == Kind::Mount && namespace.path.is_empty())
    {
        return Err(Error::spec("linux.namespaces", "a new mount namespace is needed"));
    }
    Ok(list)
}

pub(super) fn id_ranges(mappings: Option<&[LinuxIdMapping]>) -> Vec<wire::IdRange> {
    let range = |mapping: &LinuxIdMapping| wire::IdRange {
        container: mapping.container_id(),
        host: mapping.host_id(),
        length: mapping.size(),
    };
    mappings.unwrap_or_default().iter().map(range).collect()
}

fn hostname(spec: &Spec, namespaces: &[wire::Namespace]) -> Result<String, Error> {
    let name = spec.hostname().clone().unwrap_or_default();
    let own = namespaces
        .iter()
        .any(|n| n.kind() == wire::namespace::Kind::Uts && n.path.is_empty());
    if !name.is_empty() && !own {
        return Err(Error::spec(
            "hostname",
            "can only be set in a UTS namespace of the container's own",
        ));
    }
    Ok(name)
}

pub(super) fn propagation(option: Option<&str>) -> Result<wire::Propagation, Error> {
    match option {
        None | Some("" | "private" | "rprivate") => Ok(wire::Propagation::Private),
        Some("slave" | "rslave") => Ok(wire::Propagation::Slave),
        Some("shared" | "rshared") => Ok(wire::Propagation::Shared),
        Some(other) => Err(Error::spec(
            "linux.rootfsPropagation",
            format!("{other:?} is not possible"),
        )),
    }
}

/// The nodes every container has, and those of the spec, which win.
fn nodes(linux: &Linux) -> Result<Vec<wire::Device>, Error> {
    let mut list: Vec<wire::Device> = devices::DEFAULT_NODES
        .iter()
        .map(|(name, major, minor)| wire::Device {
            path: format!("/dev/{name}"),
            kind: wire::device::Kind::Char.into(),
            major: *major,
            minor: *minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    for device in linux.devices().iter().flatten() {
        let node = node(device)?;
        // The launcher's own: a terminal of this container, not the host's.
        if matches!(node.path.as_str(), "/dev/ptmx" | "/dev/console") {
            continue;
        }
        list.retain(|known| known.path != node.path);
        list.push(node);
    }
    Ok(list)
}

fn node(device: &LinuxDevice) -> Result<wire::Device, Error> {
    let field = "linux.devices";
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => wire::device::Kind::Char,
        LinuxDeviceType::B => wire::device::Kind::Block,
        LinuxDeviceType::P => wire::device::Kind::Fifo,
        LinuxDeviceType::A => return Err(Error::spec(field, "a node needs type c, b or p")),
    };
    let number = |number: i64| {
        u32::try_from(number).map_err(|_| Error::spec(field, format!("number {number} is out of range")))
    };
    if !device.path().is_absolute() {
        return Err(Error::spec(
            field,
            format!("{} is not absolute", device.path().display()),
        ));
    }
    Ok(wire::Device {
        path: text(field, device.path())?,
        kind: kind.into(),
        major: number(device.major())?,
        minor: number(device.minor())?,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// The process of a spec, with its seccomp program.
pub(super) fn process_of(process: &Process, spec: &Spec) -> Result<wire::Process, Error> {
    let args = process.args().clone().unwrap_or_default();
    if args.is_empty() {
        return Err(Error::spec("process.args", "are empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(Error::spec(
            "process.cwd",
            format!("{} is not absolute", process.cwd().display()),
        ));
    }
    let rules: Option<&LinuxSeccomp> = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let program = rules.map(seccomp_compile::compile).transpose()?;
    let user = process.user();
    let none = std::collections::HashMap::new();
    let annotations = spec.annotations().as_ref().unwrap_or(&none);
    let size = process.console_size().unwrap_or_default();
    Ok(wire::Process {
        args,
        env: process::environment_bytes(process.env().as_deref().unwrap_or_default(), annotations),
        cwd: text("process.cwd", process.cwd())?,
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        capabilities: Some(capability::plan(process.capabilities().as_ref())),
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        seccomp_flags: program.as_ref().map_or(0, |program| program.flags),
        seccomp: program.map(|program| program.bytes).unwrap_or_default(),
        rlimits: process
            .rlimits()
            .iter()
            .flatten()
            .map(|limit| wire::Rlimit {
                resource: rlimit(limit.typ()),
                soft: limit.soft(),
                hard: limit.hard(),
            })
            .collect(),
        oom_score_adj: process.oom_score_adj(),
        terminal: process.terminal().unwrap_or(false),
        console_width: u32::try_from(size.width()).unwrap_or(0),
        console_height: u32::try_from(size.height()).unwrap_or(0),
        apparmor_profile: process.apparmor_profile().clone().unwrap_or_default(),
        selinux_label: process.selinux_label().clone().unwrap_or_default(),
        umask: user.umask(),
        oci: Vec::new(),
    })
}

fn rlimit(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// Parts of a spec that the launcher does not do.
fn refuse(spec: &Spec, linux: &Linux, process: &Process) -> Result<(), Error> {
    let set = [
        (
            "domainname",
            spec.domainname().as_ref().is_some_and(|name| !name.is_empty()),
        ),
        ("windows", spec.windows().is_some()),
        ("solaris", spec.solaris().is_some()),
        ("zos", spec.zos().is_some()),
        ("vm", spec.vm().is_some()),
        (
            "linux.netDevices",
            linux.net_devices().as_ref().is_some_and(|map| !map.is_empty()),
        ),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.personality", linux.personality().is_some()),
        (
            "linux.timeOffsets",
            linux.time_offsets().as_ref().is_some_and(|map| !map.is_empty()),
        ),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
    ];
    match set.iter().find(|(_, set)| *set) {
        None => Ok(()),
        Some((field, _)) => Err(absent(field)),
    }
}

pub(super) fn absent(field: &str) -> Error {
    Error::unsupported(format!("config.json: {field}"), "the launcher cannot do it yet")
}

/// A path as the plan carries it.
pub(super) fn text(field: &str, path: &Path) -> Result<String, Error> {
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::spec(field, format!("{} is not UTF-8", path.display()))),
    }
}

#[cfg(test)]
#[path = "tests/plan.rs"]
mod tests;
