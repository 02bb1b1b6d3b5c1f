use super::*;
use crate::{
    kind::{HasKind, Kind},
    proto::{cri, plan as wire},
    spec::{UserNamespace as Namespace, tests::Case},
};

fn mapping(host_id: u32, container_id: u32, length: u32) -> IdMapping {
    IdMapping {
        host_id,
        container_id,
        length,
    }
}

fn options(mode: NamespaceMode, uids: &[IdMapping], gids: &[IdMapping]) -> NamespaceOption {
    NamespaceOption {
        pid: NamespaceMode::Container.into(),
        userns_options: Some(UserNamespace {
            mode: mode.into(),
            uids: uids.to_vec(),
            gids: gids.to_vec(),
        }),
        ..Default::default()
    }
}

const HOST: u32 = 3_516_268_544;

fn usual() -> NamespaceOption {
    let all = mapping(HOST, 0, 65536);
    options(NamespaceMode::Pod, &[all], &[all])
}

/// A container of a pod with a user namespace.
fn case() -> Case {
    let mut case = Case::new();
    let ranges = user_ranges(&usual(), &case.host).unwrap().unwrap();
    case.sandbox.user = Some(Namespace {
        path: "/sb/ns/user".into(),
        ranges,
    });
    case
}

#[test]
fn one_range_that_begins_at_root() {
    let host = Case::new().host;
    let asked = |options: &NamespaceOption| user_ranges(options, &host);
    assert_eq!(asked(&NamespaceOption::default()).unwrap(), None);
    assert_eq!(asked(&options(NamespaceMode::Node, &[], &[])).unwrap(), None);
    let found = asked(&usual()).unwrap().unwrap();
    assert_eq!(found.host_uid(65535), Some(HOST + 65535));
    // To the last id there is.
    let last = [mapping(u32::MAX - 65536, 0, 65536)];
    assert!(asked(&options(NamespaceMode::Pod, &last, &last)).is_ok());
    let good = mapping(HOST, 0, 65536);
    for (uids, gids) in [
        (&[][..], &[good][..]),
        (&[good], &[]),
        (&[good, mapping(1, 65536, 1)], &[good]),
        (&[mapping(HOST, 1, 65536)], &[good]),
        (&[mapping(HOST, 0, 0)], &[good]),
        (&[good], &[mapping(u32::MAX - 65535, 0, 65537)]),
    ] {
        let error = asked(&options(NamespaceMode::Pod, uids, gids)).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    }
    for mode in [NamespaceMode::Container, NamespaceMode::Target] {
        let error = asked(&options(mode, &[good], &[good])).unwrap_err();
        assert!(error.to_string().contains(mode.as_str_name()), "{error}");
    }
    assert!(asked(&options(NamespaceMode::Node, &[good], &[good])).is_err());
}

#[test]
fn the_nodes_namespaces_are_out_of_reach() {
    let mut host = Case::new().host;
    let mut asked = usual();
    // The network may be the node's (KEP-127).
    asked.network = NamespaceMode::Node.into();
    assert!(user_ranges(&asked, &host).is_ok());
    asked.pid = NamespaceMode::Node.into();
    assert!(
        user_ranges(&asked, &host)
            .unwrap_err()
            .to_string()
            .contains(".pid")
    );
    asked.pid = NamespaceMode::Pod.into();
    asked.ipc = NamespaceMode::Node.into();
    assert!(
        user_ranges(&asked, &host)
            .unwrap_err()
            .to_string()
            .contains(".ipc")
    );
    host.user_namespaces = false;
    let error = user_ranges(&usual(), &host).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
}

#[test]
fn a_container_is_in_the_namespace_of_its_pod() {
    let mut case = case();
    case.request.mounts = vec![cri::Mount {
        container_path: "/data".into(),
        host_path: "/tmp".into(),
        uid_mappings: vec![mapping(HOST, 0, 65536)],
        gid_mappings: vec![mapping(HOST, 0, 65536)],
        ..Default::default()
    }];
    case.image.volumes = vec!["/volume".into()];
    // The same as its pod, or nothing.
    let mut silent = usual();
    silent.userns_options = None;
    for asked in [usual(), silent] {
        case.context().namespace_options = Some(asked);
        let plan = case.build().unwrap().plan;
        let range = wire::IdRange {
            container: 0,
            host: HOST,
            length: 65536,
        };
        assert_eq!((&plan.uids[..], &plan.gids[..]), (&[range][..], &[range][..]));
        let user = plan
            .namespaces
            .iter()
            .find(|n| n.kind() == wire::namespace::Kind::User);
        assert_eq!(user.unwrap().path, "/sb/ns/user");
        for target in ["/data", "/volume", "/dev/shm", "/etc/hostname"] {
            let mount = plan.mounts.iter().find(|m| m.target == target).unwrap();
            assert_eq!(mount.uids, [range], "{target}");
            assert_eq!(mount.gids, [range], "{target}");
        }
    }
    let other = [mapping(1000, 0, 65536)];
    case.context().namespace_options = Some(options(NamespaceMode::Pod, &other, &other));
    let error = case.build().unwrap_err();
    assert!(error.to_string().contains("sandbox"), "{error}");
    case.context().namespace_options = Some(options(NamespaceMode::Node, &[], &[]));
    assert!(case.build().is_err());
}

#[test]
fn ids_outside_are_refused() {
    let mut case = case();
    case.context().run_as_user = Some(cri::Int64Value { value: 70000 });
    let error = case.build().unwrap_err();
    assert!(
        error.to_string().contains("70000") && error.to_string().contains("65536"),
        "{error}"
    );
    case.context().run_as_user = None;
    case.context().supplemental_groups = vec![65536];
    assert!(case.build().unwrap_err().to_string().contains("group 65536"));
}

#[test]
fn what_a_namespace_changes() {
    let mut case = case();
    case.context().privileged = true;
    let security = cri::LinuxSandboxSecurityContext {
        privileged: true,
        ..Default::default()
    };
    case.sandbox.config.linux = Some(cri::LinuxPodSandboxConfig {
        security_context: Some(security),
        ..Default::default()
    });
    // What the agent itself may do does not matter.
    case.host.capabilities = 1;
    let plan = case.build().unwrap().plan;
    let all = crate::sys::capability::known();
    assert_eq!(plan.process.unwrap().capabilities.unwrap().effective, all);
    let kinds: Vec<_> = plan.namespaces.iter().map(wire::Namespace::kind).collect();
    assert!(kinds.contains(&wire::namespace::Kind::Cgroup), "{kinds:?}");

    let mut case = self::case();
    case.sandbox.net_ns = None;
    let options = case.context().namespace_options.as_mut().unwrap();
    options.network = NamespaceMode::Node.into();
    let plan = case.build().unwrap().plan;
    let sys = plan.mounts.iter().find(|m| m.target == "/sys").unwrap();
    assert_eq!(
        (sys.kind(), sys.source.as_str()),
        (wire::mount::Kind::Bind, "/sys")
    );
    assert!(!sys.bind_recursive && sys.attr_set & 1 == 1);

    let mut case = self::case();
    case.request.mounts = vec![cri::Mount {
        container_path: "/data".into(),
        host_path: "/tmp".into(),
        propagation: cri::MountPropagation::PropagationBidirectional.into(),
        ..Default::default()
    }];
    assert!(case.build().unwrap_err().to_string().contains("bidirectional"));
}

#[test]
fn mappings_of_a_mount() {
    let mut case = Case::new();
    let mut mount = cri::Mount {
        container_path: "/data".into(),
        host_path: "/tmp".into(),
        uid_mappings: vec![mapping(1000, 0, 10), mapping(5000, 10, 1)],
        gid_mappings: vec![mapping(1000, 0, 10)],
        ..Default::default()
    };
    case.request.mounts = vec![mount.clone()];
    let plan = case.build().unwrap().plan;
    let planned = plan.mounts.iter().find(|m| m.target == "/data").unwrap();
    assert_eq!((planned.uids.len(), planned.uids[1].host), (2, 5000));
    mount.gid_mappings.clear();
    case.request.mounts = vec![mount.clone()];
    let error = case.build().unwrap_err().to_string();
    assert!(
        error.contains("/data") && error.contains("gidMappings"),
        "{error}"
    );
    mount.gid_mappings = vec![mapping(1000, 0, 0)];
    case.request.mounts = vec![mount];
    assert!(case.build().is_err());
}
