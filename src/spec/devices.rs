//! Device nodes and the rules of the device cgroup.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::{Error, Inputs, mounts::clean};
use crate::proto::cri;

/// Nodes that every container has: name in /dev, major, minor, all character devices
/// (runtime spec, "Default Devices"). /dev/console and /dev/ptmx are the launcher's.
pub(super) const DEFAULT_NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Folders of /dev that are file systems of their own, or other tools' private state.
const NOT_DEVICES: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// Depth at which a folder of devices is given up.
const MAX_DEPTH: usize = 8;

pub(super) struct Devices {
    pub nodes: Vec<LinuxDevice>,
    pub rules: Vec<LinuxDeviceCgroup>,
}

/// The devices of the request, or all of the host's for a privileged container.
pub(super) fn devices(inputs: &Inputs<'_>) -> Result<Devices, Error> {
    let privileged = super::context(inputs.request).is_some_and(|context| context.privileged);
    let mut made = Devices {
        nodes: Vec::new(),
        rules: if privileged {
            vec![rule(true, None, None, None, "rwm")]
        } else {
            default_rules()
        },
    };
    if privileged && !inputs.handler.privileged_without_host_devices {
        let mut found = Vec::new();
        walk(Path::new("/dev"), Path::new("/dev"), 0, &mut found)?;
        made.nodes.extend(found.iter().map(Node::to_oci));
    }
    for asked in &inputs.request.devices {
        for node in requested(asked)? {
            // One node a path: what is asked for by name wins.
            made.nodes.retain(|known| *known.path() != node.path);
            made.nodes.push(node.to_oci());
            if !privileged && node.kind != LinuxDeviceType::P {
                let (major, minor) = (i64::from(node.major), i64::from(node.minor));
                made.rules.push(rule(
                    true,
                    Some(node.kind),
                    Some(major),
                    Some(minor),
                    &asked.permissions,
                ));
            }
        }
    }
    Ok(made)
}

/// A device of the request: one node, or all those in a folder.
fn requested(asked: &cri::Device) -> Result<Vec<Node>, Error> {
    let field = |name: &str| format!("devices[{:?}].{name}", asked.host_path);
    let known = |c: char| "rwm".contains(c);
    if asked.permissions.is_empty() || !asked.permissions.chars().all(known) {
        return Err(Error::invalid(
            field("permissions"),
            format!("{:?} is not made of r, w and m", asked.permissions),
        ));
    }
    if !asked.host_path.starts_with('/') {
        return Err(Error::invalid(field("host_path"), "not an absolute path"));
    }
    let target = if asked.container_path.is_empty() {
        &asked.host_path
    } else {
        &asked.container_path
    };
    if !target.starts_with('/') || clean(target) == "/" {
        return Err(Error::invalid(
            field("container_path"),
            format!("{target:?} is not the path of a device"),
        ));
    }
    let (source, target) = (Path::new(&asked.host_path), PathBuf::from(clean(target)));
    let found = fs::metadata(source).map_err(Error::io("look at the device", source))?;
    if found.is_dir() {
        let mut nodes = Vec::new();
        walk(source, &target, 0, &mut nodes)?;
        return Ok(nodes);
    }
    match Node::of(&found, target) {
        Some(node) => Ok(vec![node]),
        None => Err(Error::invalid(
            field("host_path"),
            "neither a device nor a folder",
        )),
    }
}

/// Collects the character and block devices below a folder. A device may vanish
/// meanwhile: then it is not there.
fn walk(folder: &Path, target: &Path, depth: usize, nodes: &mut Vec<Node>) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(Error::io("list the devices in", folder))? {
        let entry = entry.map_err(Error::io("list the devices in", folder))?;
        let (path, name) = (entry.path(), entry.file_name());
        let found = match entry.metadata() {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io("look at the device", path)(e)),
        };
        let target = target.join(&name);
        if found.is_dir() {
            if !NOT_DEVICES.iter().any(|other| name == *other) {
                walk(&path, &target, depth + 1, nodes)?;
            }
        } else if name != "console" {
            nodes.extend(Node::of(&found, target).filter(|node| node.kind != LinuxDeviceType::P));
        }
    }
    Ok(())
}

/// A device node as the host has it.
pub(super) struct Node {
    path: PathBuf,
    pub kind: LinuxDeviceType,
    pub major: u32,
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    uid: u32,
    gid: u32,
}

impl Node {
    /// `None` when it is no device.
    pub(super) fn of(found: &fs::Metadata, path: PathBuf) -> Option<Node> {
        let file_type = found.file_type();
        let kind = if file_type.is_char_device() {
            LinuxDeviceType::C
        } else if file_type.is_block_device() {
            LinuxDeviceType::B
        } else if file_type.is_fifo() {
            LinuxDeviceType::P
        } else {
            return None;
        };
        Some(Node {
            path,
            kind,
            major: rustix::fs::major(found.rdev()),
            minor: rustix::fs::minor(found.rdev()),
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
        })
    }

    fn to_oci(&self) -> LinuxDevice {
        let mut device = LinuxDevice::default();
        device
            .set_path(self.path.clone())
            .set_typ(self.kind)
            .set_major(i64::from(self.major))
            .set_minor(i64::from(self.minor))
            .set_file_mode(Some(self.mode))
            .set_uid(Some(self.uid))
            .set_gid(Some(self.gid));
        device
    }
}

/// All is denied, but making nodes, the default nodes and terminals: the rules of
/// the OCI runtimes.
fn default_rules() -> Vec<LinuxDeviceCgroup> {
    let (c, b) = (Some(LinuxDeviceType::C), Some(LinuxDeviceType::B));
    let mut rules = vec![
        rule(false, None, None, None, "rwm"),
        rule(true, c, None, None, "m"),
        rule(true, b, None, None, "m"),
    ];
    for (_, major, minor) in DEFAULT_NODES {
        rules.push(rule(
            true,
            c,
            Some(i64::from(major)),
            Some(i64::from(minor)),
            "rwm",
        ));
    }
    // /dev/pts/N and /dev/ptmx.
    rules.push(rule(true, c, Some(136), None, "rwm"));
    rules.push(rule(true, c, Some(5), Some(2), "rwm"));
    rules
}

fn rule(
    allow: bool,
    kind: Option<LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(kind)
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kind::{HasKind, Kind},
        spec::tests::Case,
    };

    fn device(host_path: &str, container_path: &str, permissions: &str) -> cri::Device {
        cri::Device {
            host_path: host_path.into(),
            container_path: container_path.into(),
            permissions: permissions.into(),
        }
    }

    fn made(list: &[cri::Device]) -> Result<Devices, Error> {
        let mut case = Case::new();
        case.request.devices = list.to_vec();
        case.with(devices)
    }

    #[test]
    fn nothing_asked_for() {
        let made = made(&[]).unwrap();
        assert!(made.nodes.is_empty());
        assert_eq!(made.rules.len(), 11);
        assert!(!made.rules[0].allow());
    }

    #[test]
    fn a_device_and_its_rule() {
        let made = made(&[device("/dev/zero", "/dev/other", "rw")]).unwrap();
        let node = &made.nodes[0];
        assert_eq!(node.path(), Path::new("/dev/other"));
        assert_eq!(
            (node.major(), node.minor(), node.typ()),
            (1, 5, LinuxDeviceType::C)
        );
        let rule = made.rules.last().unwrap();
        assert_eq!(
            (rule.allow(), rule.major(), rule.minor()),
            (true, Some(1), Some(5))
        );
        assert_eq!(rule.access().as_deref(), Some("rw"));
    }

    #[test]
    fn links_are_followed_and_folders_are_walked() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("dev");
        fs::create_dir_all(folder.join("sub")).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o640);
        let kind = rustix::fs::FileType::CharacterDevice;
        let zero = folder.join("sub/zero");
        if let Err(e) = rustix::fs::mknodat(rustix::fs::CWD, &zero, kind, mode, rustix::fs::makedev(1, 5)) {
            eprintln!("skipped: making a device node: {e}");
            return;
        }
        std::os::unix::fs::symlink(&zero, dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/dev/null", folder.join("link")).unwrap();
        fs::write(folder.join("file"), "").unwrap();

        let link = dir.path().join("link");
        let one = made(&[device(link.to_str().unwrap(), "/dev/z", "r")]).unwrap();
        assert_eq!((one.nodes[0].minor(), one.nodes[0].file_mode()), (5, Some(0o640)));
        let all = made(&[device(folder.to_str().unwrap(), "/dev/all", "rwm")]).unwrap();
        let paths: Vec<&PathBuf> = all.nodes.iter().map(LinuxDevice::path).collect();
        assert_eq!(paths, [Path::new("/dev/all/sub/zero")]);
    }

    #[test]
    fn wrong_devices() {
        for (asked, kind) in [
            (device("/dev/null", "/dev/null", ""), Kind::InvalidArgument),
            (device("/dev/null", "/dev/null", "rx"), Kind::InvalidArgument),
            (device("null", "/dev/null", "r"), Kind::InvalidArgument),
            (device("/dev/null", "null", "r"), Kind::InvalidArgument),
            (device("/etc/passwd", "/dev/null", "r"), Kind::InvalidArgument),
            (device("/dev/absent-device", "", "r"), Kind::FailedPrecondition),
        ] {
            let error = made(&[asked]).err().unwrap();
            assert_eq!(error.kind(), kind, "{error}");
        }
    }

    #[test]
    fn privileged_has_the_hosts() {
        let mut case = Case::new();
        case.context().privileged = true;
        let made = case.with(devices).unwrap();
        assert!(
            made.nodes
                .iter()
                .any(|node| node.path() == Path::new("/dev/null"))
        );
        assert!(!made.nodes.iter().any(|node| node.path().starts_with("/dev/pts")));
        assert_eq!(made.rules.len(), 1);
        assert!(made.rules[0].allow() && made.rules[0].typ().is_none());
    }
}
