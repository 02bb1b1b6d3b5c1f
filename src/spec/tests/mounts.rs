use super::*;
use crate::{
    kind::{HasKind, Kind},
    proto::cri::{IdMapping, ImageSpec},
    spec::tests::Case,
};

fn mount_of(container_path: &str, host_path: &str) -> cri::Mount {
    cri::Mount {
        container_path: container_path.into(),
        host_path: host_path.into(),
        ..Default::default()
    }
}

fn made(case: &Case) -> Result<Mounts, Error> {
    case.with(mounts)
}

fn with_mounts(list: &[cri::Mount]) -> Case {
    let mut case = Case::new();
    case.request.mounts = list.to_vec();
    case
}

fn targets(case: &Case) -> Vec<String> {
    made(case)
        .unwrap()
        .mounts
        .iter()
        .map(|m| m.destination().display().to_string())
        .collect()
}

fn options(case: &Case, target: &str) -> String {
    let mounts = made(case).unwrap().mounts;
    let mount = mounts
        .iter()
        .find(|m| m.destination() == Path::new(target))
        .unwrap();
    mount.options().as_ref().unwrap().join(",")
}

#[test]
fn of_a_container_without_mounts() {
    let case = Case::new();
    assert_eq!(
        targets(&case),
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/dev/shm"
        ]
    );
    assert_eq!(options(&case, "/sys"), "nosuid,noexec,nodev,ro");
    assert_eq!(options(&case, "/etc/resolv.conf"), "rbind,rprivate,rw");
}

#[test]
fn a_sandbox_without_files_leaves_the_defaults() {
    let mut case = Case::new();
    case.sandbox.shm = None;
    case.sandbox.resolv_conf = None;
    case.sandbox.hostname_file = None;
    case.sandbox.hosts = Some("/sb/hosts".into());
    assert_eq!(targets(&case).last().unwrap(), "/etc/hosts");
    assert_eq!(
        options(&case, "/dev/shm"),
        "nosuid,noexec,nodev,mode=1777,size=65536k"
    );
}

#[test]
fn privileged_and_read_only_roots() {
    let mut case = Case::new();
    case.context().privileged = true;
    case.context().readonly_rootfs = true;
    assert_eq!(options(&case, "/sys"), "nosuid,noexec,nodev,rw");
    assert_eq!(
        options(&case, "/sys/fs/cgroup"),
        "nosuid,noexec,nodev,relatime,rw"
    );
    assert_eq!(options(&case, "/etc/resolv.conf"), "rbind,rprivate,ro");
    assert_eq!(
        options(&case, "/dev/shm"),
        "rbind,rprivate,rw,nosuid,noexec,nodev"
    );
}

#[test]
fn the_hosts_ipc_brings_the_hosts_shared_memory() {
    let mut case = Case::new();
    let options = case.context().namespace_options.as_mut().unwrap();
    options.ipc = NamespaceMode::Node.into();
    let mounts = made(&case).unwrap().mounts;
    let shm = mounts
        .iter()
        .find(|m| m.destination() == Path::new("/dev/shm"))
        .unwrap();
    assert_eq!(shm.source().as_deref(), Some(Path::new("/dev/shm")));
}

#[test]
fn outer_mounts_come_first_and_equal_depths_keep_their_order() {
    let case = with_mounts(&[
        mount_of("/data/a/b", "/tmp"),
        mount_of("/z", "/tmp"),
        mount_of("/data", "/tmp"),
        mount_of("/a", "/tmp"),
        mount_of("data/../data//a/./", "/tmp"),
    ]);
    let all = targets(&case);
    let own: Vec<&String> = all.iter().filter(|t| !t.starts_with("/etc")).skip(6).collect();
    assert_eq!(own, ["/z", "/data", "/a", "/data/a", "/dev/shm", "/data/a/b"]);
}

#[test]
fn a_request_replaces_defaults_and_pod_files() {
    let case = with_mounts(&[
        mount_of("/etc/resolv.conf", "/tmp"),
        mount_of("/dev/shm/", "/tmp"),
        mount_of("/sys", "/sys"),
    ]);
    let all = targets(&case);
    for target in ["/etc/resolv.conf", "/dev/shm", "/sys"] {
        assert_eq!(
            all.iter().filter(|t| *t == target).count(),
            1,
            "{target}: {all:?}"
        );
    }
    assert!(
        !all.contains(&"/sys/fs/cgroup".to_owned()),
        "it would be hidden below /sys"
    );
    let case = with_mounts(&[mount_of("/dev", "/dev")]);
    let all = targets(&case);
    assert!(
        !all.contains(&"/dev/pts".to_owned()) && all.contains(&"/dev/shm".to_owned()),
        "{all:?}"
    );
}

#[test]
fn access_and_extra_options() {
    let mut asked = mount_of("/data", "/tmp");
    for (readonly, recursive, extra, expected) in [
        (false, false, &[][..], "rbind,rprivate,rw"),
        (true, false, &[], "rbind,rprivate,ro"),
        (true, true, &[], "rbind,rprivate,rro"),
        (
            true,
            false,
            &["noexec", "nosuid"],
            "rbind,rprivate,ro,noexec,nosuid",
        ),
    ] {
        asked.readonly = readonly;
        asked.recursive_read_only = recursive;
        asked.mount_options = extra.iter().map(|o| (*o).to_owned()).collect();
        assert_eq!(options(&with_mounts(&[asked.clone()]), "/data"), expected);
    }
}

#[test]
fn what_is_refused() {
    let mapping = IdMapping {
        host_id: 0,
        container_id: 0,
        length: 1,
    };
    type Change = Box<dyn Fn(&mut cri::Mount)>;
    let cases: Vec<(&str, Kind, Change)> = vec![
        (
            "recursive_read_only",
            Kind::InvalidArgument,
            Box::new(|m| m.recursive_read_only = true),
        ),
        (
            "recursive_read_only",
            Kind::InvalidArgument,
            Box::new(|m| {
                (m.readonly, m.recursive_read_only) = (true, true);
                m.host_path = shared().unwrap_or("/proc/none".into());
                m.propagation = MountPropagation::PropagationHostToContainer.into();
            }),
        ),
        (
            "image",
            Kind::InvalidArgument,
            Box::new(|m| m.image = Some(ImageSpec::default())),
        ),
        (
            "image_sub_path",
            Kind::InvalidArgument,
            Box::new(|m| m.image_sub_path = "a".into()),
        ),
        (
            "gidMappings",
            Kind::InvalidArgument,
            Box::new(move |m| m.uid_mappings = vec![mapping]),
        ),
        (
            "mount_options",
            Kind::InvalidArgument,
            Box::new(|m| m.mount_options = vec!["suid".into()]),
        ),
        (
            "propagation",
            Kind::InvalidArgument,
            Box::new(|m| m.propagation = 9),
        ),
        (
            "host_path",
            Kind::InvalidArgument,
            Box::new(|m| m.host_path = "tmp".into()),
        ),
        (
            "host_path",
            Kind::InvalidArgument,
            Box::new(|m| m.host_path = String::new()),
        ),
        (
            "container_path",
            Kind::InvalidArgument,
            Box::new(|m| m.container_path = String::new()),
        ),
        (
            "container_path",
            Kind::InvalidArgument,
            Box::new(|m| m.container_path = "/..".into()),
        ),
        (
            "container_path",
            Kind::InvalidArgument,
            Box::new(|m| m.container_path = "/proc/self/attr".into()),
        ),
        (
            "container_path",
            Kind::InvalidArgument,
            Box::new(|m| m.container_path = "/proc".into()),
        ),
    ];
    for (field, kind, change) in cases {
        let mut asked = mount_of("/data", "/tmp");
        change(&mut asked);
        if asked.host_path == "/proc/none" {
            eprintln!("skipped one case: no mount of this machine is shared");
            continue;
        }
        let error = made(&with_mounts(&[asked])).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(field), "{error}");
    }
}

/// A mount point of this machine that is shared.
fn shared() -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = table.lines().find(|line| line.contains(" shared:"))?;
    line.split(' ').nth(4).map(str::to_owned)
}

#[test]
fn propagation_needs_a_shared_mount() {
    let Some(point) = shared() else {
        eprintln!("skipped: no mount of this machine is shared");
        return;
    };
    let mut asked = mount_of("/data", &point);
    asked.propagation = MountPropagation::PropagationHostToContainer.into();
    let mut both = mount_of("/other", &point);
    both.propagation = MountPropagation::PropagationBidirectional.into();
    let case = with_mounts(&[asked.clone()]);
    assert_eq!(options(&case, "/data"), "rbind,rslave,rw");
    assert_eq!(made(&case).unwrap().rootfs_propagation, Some("rslave"));
    let case = with_mounts(&[asked, both]);
    assert_eq!(options(&case, "/other"), "rbind,rshared,rw");
    assert_eq!(made(&case).unwrap().rootfs_propagation, Some("rshared"));
}

#[test]
fn files_of_proc_and_proc_itself() {
    let case = with_mounts(&[
        mount_of("/proc/meminfo", "/etc/hosts"),
        mount_of("/host/proc", "/proc"),
    ]);
    assert!(made(&case).is_ok());
    assert!(made(&with_mounts(&[mount_of("/proc", "/proc")])).is_ok());
}

#[test]
fn volumes_of_the_image() {
    let mut case = with_mounts(&[mount_of("/var/lib/db/", "/tmp")]);
    let volumes = ["/var/lib/db", "data", "/cache/", "/cache"];
    case.image.volumes = volumes.iter().map(|v| (*v).to_owned()).collect();
    let made = made(&case).unwrap();
    let paths: Vec<(&str, &str)> = made
        .volumes
        .iter()
        .map(|v| (v.container_path.as_str(), v.host_path.to_str().unwrap()))
        .collect();
    assert_eq!(
        paths,
        [
            ("/cache", "/containers/c/volumes/0"),
            ("/data", "/containers/c/volumes/1")
        ]
    );
    let sources: Vec<_> = made.mounts.iter().filter_map(|m| m.source().clone()).collect();
    assert!(sources.contains(&"/containers/c/volumes/1".into()));
    case.image.volumes = vec!["/".into()];
    let error = case.with(mounts).unwrap_err();
    assert!(error.to_string().contains("example.test/app:1"), "{error}");
}

#[test]
fn missing_host_paths_become_folders() {
    let dir = tempfile::tempdir().unwrap();
    let (deep, file) = (dir.path().join("a/b"), dir.path().join("file"));
    fs::write(&file, "").unwrap();
    let case = with_mounts(&[
        mount_of("/a", deep.to_str().unwrap()),
        mount_of("/b", file.to_str().unwrap()),
        mount_of("/c", deep.to_str().unwrap()),
    ]);
    assert_eq!(prepare_host_paths(&case.request).unwrap(), [deep.as_path()]);
    assert!(deep.is_dir());
    assert!(prepare_host_paths(&case.request).unwrap().is_empty());
    let below_file = with_mounts(&[mount_of("/a", &format!("{}/x", file.display()))]);
    assert!(prepare_host_paths(&below_file.request).is_err());
}

#[test]
fn paths_are_cleaned() {
    for (path, expected) in [
        ("/a//b/./c/", "/a/b/c"),
        ("a/../../b", "/b"),
        ("/", "/"),
        ("", "/"),
        ("/../..", "/"),
        ("/...", "/..."),
    ] {
        assert_eq!(clean(path), expected, "{path:?}");
    }
}
