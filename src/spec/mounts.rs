//! Mounts: the defaults, the pod's files, the request's and the image's volumes.
//!
//! First the defaults that nothing replaces; then the rest by depth, so that a
//! mount never hides one that was asked for below it. Later files of this module
//! only read the host; [`prepare_host_paths`] alone writes.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Mount;

use super::{Error, Inputs, Volume, image_volumes, propagation, user_namespace};
use crate::proto::cri::{self, ContainerConfig, MountPropagation, NamespaceMode};

/// The group of terminals, as everywhere.
const TTY: u32 = 5;
const PROC_MAGIC: u64 = 0x9fa0;

/// Files of /proc over which a mount is allowed, as lxcfs does it. Anything else
/// below /proc could deceive what later runs in the container (CVE-2019-19921).
const PROC_FILES: [&str; 9] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// Options that a request may add to a mount; they only take rights away.
const EXTRA_OPTIONS: [&str; 8] = [
    "nosuid",
    "nodev",
    "noexec",
    "noatime",
    "nodiratime",
    "relatime",
    "strictatime",
    "nosymfollow",
];

/// Of those, the ones that exclude each other.
const ACCESS_TIMES: [&str; 3] = ["noatime", "relatime", "strictatime"];

/// The mounts of a container.
#[derive(Debug)]
pub(super) struct Mounts {
    pub mounts: Vec<Mount>,
    pub volumes: Vec<Volume>,
    /// "rshared" or "rslave" when a mount wants to see or to be seen by the host's.
    pub rootfs_propagation: Option<&'static str>,
}

pub(super) fn mounts(inputs: &Inputs<'_>) -> Result<Mounts, Error> {
    let asked = inputs
        .request
        .mounts
        .iter()
        .enumerate()
        .map(|(index, m)| requested(index, m, inputs))
        .collect::<Result<Vec<_>, _>>()?;
    let rootfs_propagation = asked.iter().filter_map(|a| a.rootfs_propagation).min();
    let mut rest: Vec<Mount> = asked.into_iter().map(|a| a.mount).collect();
    let targets: Vec<PathBuf> = rest.iter().map(|m| m.destination().clone()).collect();
    let is_free = |path: &str| !targets.iter().any(|target| target == Path::new(path));

    for extra in pod_mounts(inputs) {
        if is_free(&extra.destination().to_string_lossy()) {
            rest.push(extra);
        }
    }
    let volumes = volumes(inputs, is_free)?;
    rest.extend(
        volumes
            .iter()
            .map(|v| bind(&v.host_path, &v.container_path, &["rbind", "rprivate", "rw"]))
            .map(|mount| user_namespace::own(mount, inputs)),
    );
    rest.sort_by_key(|mount| mount.destination().components().count());

    // A target at or above a default replaces it: it would be hidden.
    let mut mounts = defaults(inputs);
    mounts.retain(|default| {
        !rest
            .iter()
            .any(|mount| default.destination().starts_with(mount.destination()))
    });
    mounts.extend(rest);
    Ok(Mounts {
        mounts,
        volumes,
        rootfs_propagation,
    })
}

fn defaults(inputs: &Inputs<'_>) -> Vec<Mount> {
    let privileged = super::context(inputs.request).is_some_and(|context| context.privileged);
    let access = if privileged { "rw" } else { "ro" };
    [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"][..]),
        (
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        (
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        (
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ]
    .into_iter()
    .map(|(target, kind, source, options)| mount(target, kind, Path::new(source), options))
    .map(|mount| in_user_namespace(mount, inputs))
    .collect()
}

/// A default mount as it is possible in a user namespace.
fn in_user_namespace(mut default: Mount, inputs: &Inputs<'_>) -> Mount {
    let Some(user) = &inputs.sandbox.user else {
        return default;
    };
    let target = default.destination().to_string_lossy().into_owned();
    if target == "/sys" && inputs.sandbox.net_ns.is_none() {
        // A new sysfs is for who has rights in the network namespace, here the node's.
        return bind(
            Path::new("/sys"),
            &target,
            &["bind", "rprivate", "nosuid", "noexec", "nodev", "ro"],
        );
    }
    if user.ranges.host_gid(TTY).is_none()
        && let Some(mut options) = default.options().clone()
    {
        options.retain(|option| *option != format!("gid={TTY}"));
        default.set_options(Some(options));
    }
    default
}

/// The pod's own files. Read-only when the container's root is.
fn pod_mounts(inputs: &Inputs<'_>) -> Vec<Mount> {
    let (sandbox, context) = (inputs.sandbox, super::context(inputs.request));
    let access = if context.is_some_and(|context| context.readonly_rootfs) {
        "ro"
    } else {
        "rw"
    };
    let files = [
        ("/etc/hostname", &sandbox.hostname_file),
        ("/etc/hosts", &sandbox.hosts),
        ("/etc/resolv.conf", &sandbox.resolv_conf),
    ];
    let mut mounts: Vec<Mount> = files
        .into_iter()
        .filter_map(|(target, file)| Some(bind(file.as_ref()?, target, &["rbind", "rprivate", access])))
        .collect();
    let shm = if super::namespaces::options(inputs).ipc() == NamespaceMode::Node {
        Some(bind(
            Path::new("/dev/shm"),
            "/dev/shm",
            &["rbind", "rprivate", "rw"],
        ))
    } else {
        // As the pod's is mounted: there are runtimes (crun) that clear what is not named.
        let options = ["rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"];
        sandbox.shm.as_deref().map(|shm| bind(shm, "/dev/shm", &options))
    };
    mounts.extend(shm);
    mounts
        .into_iter()
        .map(|mount| user_namespace::own(mount, inputs))
        .collect()
}

struct Requested {
    mount: Mount,
    rootfs_propagation: Option<&'static str>,
}

/// One mount of the request.
fn requested(index: usize, asked: &cri::Mount, inputs: &Inputs<'_>) -> Result<Requested, Error> {
    let field = |name: &str| format!("mounts[{:?}].{name}", asked.container_path);
    refuse(asked)?;
    if asked.image.is_some() {
        return Ok(Requested {
            mount: image_volumes::requested(index, asked, inputs)?,
            rootfs_propagation: None,
        });
    }
    let target = target_of(&asked.container_path)
        .map_err(|message| Error::invalid(field("container_path"), message))?;
    let source = Path::new(&asked.host_path);
    check_proc(&target, source).map_err(|message| Error::invalid(field("container_path"), message))?;

    let propagation = MountPropagation::try_from(asked.propagation).map_err(|_| {
        Error::invalid(
            field("propagation"),
            format!("{} is not one of the CRI", asked.propagation),
        )
    })?;
    let (flow, rootfs_propagation) = match propagation {
        MountPropagation::PropagationPrivate => ("rprivate", None),
        MountPropagation::PropagationHostToContainer => {
            propagation::check(
                source,
                &["shared:", "master:"],
                "shared or slave",
                &field("propagation"),
            )?;
            ("rslave", Some("rslave"))
        }
        MountPropagation::PropagationBidirectional if inputs.sandbox.user.is_some() => {
            return Err(Error::invalid(
                field("propagation"),
                "bidirectional is not possible in a user namespace, whose mounts the node never sees; \
                 set hostUsers: true, or use HostToContainer",
            ));
        }
        MountPropagation::PropagationBidirectional => {
            propagation::check(source, &["shared:"], "shared", &field("propagation"))?;
            // Sorts before "rslave", which it must win over.
            ("rshared", Some("rshared"))
        }
    };
    let access = match (asked.readonly, asked.recursive_read_only) {
        (false, false) => "rw",
        (true, false) => "ro",
        (false, true) => {
            return Err(Error::invalid(
                field("recursive_read_only"),
                "readonly is false; set both",
            ));
        }
        (true, true) if propagation != MountPropagation::PropagationPrivate => {
            return Err(Error::invalid(
                field("recursive_read_only"),
                "only possible with private propagation",
            ));
        }
        (true, true) => "rro",
    };
    let mut options = vec!["rbind", flow, access];
    options.extend(extra_options(asked)?);
    let mount = bind(source, &target, &options);
    let (uids, gids) = (&asked.uid_mappings, &asked.gid_mappings);
    Ok(Requested {
        mount: user_namespace::of_request(mount, &asked.container_path, uids, gids)?,
        rootfs_propagation,
    })
}

/// The mount_options of a request. Two kinds of access times at once are refused:
/// one of them would be ignored.
pub(super) fn extra_options(asked: &cri::Mount) -> Result<Vec<&'static str>, Error> {
    let wrong = |message: String| {
        let field = format!("mounts[{:?}].mount_options", asked.container_path);
        Err(Error::invalid(field, message))
    };
    let mut options: Vec<&'static str> = Vec::new();
    for option in &asked.mount_options {
        let Some(known) = EXTRA_OPTIONS.iter().find(|known| *known == option) else {
            return wrong(format!("{option:?} is none of {}", EXTRA_OPTIONS.join(", ")));
        };
        let times = options.iter().find(|other| ACCESS_TIMES.contains(other));
        match times {
            Some(other) if ACCESS_TIMES.contains(known) && other != known => {
                return wrong(format!("{known:?} contradicts {other:?}"));
            }
            _ => options.push(known),
        }
    }
    Ok(options)
}

/// What a mount must not ask for.
fn refuse(asked: &cri::Mount) -> Result<(), Error> {
    let field = |name: &str| format!("mounts[{:?}].{name}", asked.container_path);
    if asked.image.is_none() && !asked.image_sub_path.is_empty() {
        return Err(Error::invalid(
            field("image_sub_path"),
            "only possible together with image",
        ));
    }
    if asked.image.is_some() {
        return image_volumes::check(asked);
    }
    if !asked.host_path.starts_with('/') || asked.host_path.contains('\0') {
        return Err(Error::invalid(
            field("host_path"),
            format!("{:?} is not an absolute path", asked.host_path),
        ));
    }
    Ok(())
}

/// The target of a mount: absolute, without "." and "..", never the root.
pub(super) fn target_of(path: &str) -> Result<String, String> {
    if path.is_empty() || path.contains('\0') {
        return Err(format!("{path:?} is not a path"));
    }
    match clean(path).as_str() {
        "/" => Err("the container's root cannot be mounted over".into()),
        target => Ok(target.to_owned()),
    }
}

pub(super) fn check_proc(target: &str, source: &Path) -> Result<(), String> {
    if target == "/proc" {
        let found = rustix::fs::statfs(source).map_err(|e| format!("statfs {}: {e}", source.display()))?;
        return match u64::try_from(found.f_type) {
            Ok(PROC_MAGIC) => Ok(()),
            _ => Err(format!(
                "{} is not a proc file system; only one may be mounted there",
                source.display()
            )),
        };
    }
    if target.starts_with("/proc/") && !PROC_FILES.contains(&target) {
        return Err(format!(
            "a mount inside /proc is only possible over one of {}",
            PROC_FILES.join(", ")
        ));
    }
    Ok(())
}

/// The image's volumes that the request does not mount itself, in the order of
/// their paths; the folders are numbered in it.
fn volumes(inputs: &Inputs<'_>, is_free: impl Fn(&str) -> bool) -> Result<Vec<Volume>, Error> {
    let mut targets = Vec::new();
    for path in &inputs.image.volumes {
        let wrong = |message: String| Error::Image {
            image: inputs.image.name.clone(),
            message: format!("volume {path:?}: {message}"),
        };
        let target = target_of(path).map_err(wrong)?;
        check_proc(&target, inputs.volumes_dir).map_err(wrong)?;
        if is_free(&target) {
            targets.push(target);
        }
    }
    targets.sort_unstable();
    targets.dedup();
    let numbered = targets
        .into_iter()
        .enumerate()
        .map(|(number, container_path)| Volume {
            container_path,
            host_path: inputs.volumes_dir.join(number.to_string()),
        });
    Ok(numbered.collect())
}

fn bind(source: &Path, target: &str, options: &[&str]) -> Mount {
    mount(target, "bind", source, options)
}

fn mount(target: &str, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(target.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

/// An absolute path without ".", ".." and doubled slashes, by its letters alone.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Makes a folder for each host path of the request's mounts that does not exist,
/// as containerd does for the kubelet, and returns those it made. Links are
/// followed. Call it before [`super::build`], which looks at these paths.
pub fn prepare_host_paths(request: &ContainerConfig) -> Result<Vec<PathBuf>, Error> {
    let mut made = Vec::new();
    for mount in &request.mounts {
        refuse(mount)?;
        if mount.image.is_some() {
            continue;
        }
        let path = PathBuf::from(&mount.host_path);
        match fs::metadata(&path) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut builder = fs::DirBuilder::new();
                builder.recursive(true).mode(0o755);
                builder
                    .create(&path)
                    .map_err(Error::io("make the missing host folder", &path))?;
                made.push(path);
            }
            Err(e) => return Err(Error::io("look at the host path", path)(e)),
        }
    }
    Ok(made)
}

#[cfg(test)]
#[path = "tests/mounts.rs"]
mod tests;
