//! Whole plans.

use std::path::Path;

use super::*;
use crate::{
    kind::{HasKind, Kind},
    proto::cri::{
        Int64Value, KeyValue, LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
        Mount, SecurityProfile,
    },
};

/// What a kubelet asks for: limits, a user, a volume, the pod's hosts file, the
/// default seccomp profile, masked paths.
fn typical() -> Case {
    let mut case = Case::new();
    case.image.entrypoint = vec!["/bin/app".into()];
    case.image.cmd = vec!["serve".into()];
    case.image.env = vec!["PATH=/app/bin:/bin".into()];
    case.image.working_dir = "/srv".into();
    case.image.stop_signal = "SIGQUIT".into();
    case.request.args = vec!["--port".into(), "80".into()];
    case.request.envs = vec![KeyValue {
        key: "MODE".into(),
        value: b"test".to_vec(),
    }];
    case.request.mounts = vec![
        Mount {
            container_path: "/etc/hosts".into(),
            host_path: "/etc/hosts".into(),
            ..Default::default()
        },
        Mount {
            container_path: "/data".into(),
            host_path: "/tmp".into(),
            readonly: true,
            ..Default::default()
        },
    ];
    case.request.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        cpu_shares: 102,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 999,
        ..Default::default()
    });
    let context = case.context();
    context.run_as_user = Some(Int64Value { value: 1000 });
    context.supplemental_groups = vec![3000];
    context.no_new_privs = true;
    context.seccomp = Some(SecurityProfile::default());
    context.masked_paths = vec!["/proc/kcore".into()];
    context.readonly_paths = vec!["/proc/sys".into()];
    case
}

/// The plan as text, without the seccomp program.
fn text(mut plan: wire::LaunchPlan) -> String {
    let process = plan.process.as_mut().unwrap();
    assert_ne!(process.seccomp.len(), 0);
    process.seccomp.clear();
    let env: Vec<String> = process
        .env
        .iter()
        .map(|e| String::from_utf8_lossy(e).into_owned())
        .collect();
    process.env.clear();
    format!("env: {env:?}\n{plan:#?}\n")
}

#[test]
fn the_plan_of_a_typical_request() {
    let made = typical().build().unwrap();
    assert_eq!(made.stop_signal, 3);
    assert_eq!((made.user.uid, made.user.gid), (1000, 1000));
    assert_eq!(made.user.supplemental_groups, [1000, 2000, 3000]);
    assert_eq!(
        made.log_path.as_deref(),
        Some(Path::new("/var/log/pods/default_pod-1_uid-1/app/0.log"))
    );
    assert!(made.warnings.is_empty());
    let found = text(made.plan);
    let expected = include_str!("typical_plan.txt");
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::write(
            concat!(env!("CARGO_MANIFEST_DIR"), "/src/spec/tests/typical_plan.txt"),
            &found,
        )
        .unwrap();
    } else {
        assert_eq!(
            found, expected,
            "run with BERTH_BLESS=1 to accept, then read the difference"
        );
    }
}

#[test]
fn config_json_round_trips_to_the_same_plan() {
    let case = typical();
    let made = case.build().unwrap();
    let json = serde_json::to_vec(&made.spec).unwrap();
    let again: Spec = serde_json::from_slice(&json).unwrap();
    let launch = Launch {
        id: ID,
        rootfs: &case.rootfs,
        log_path: made.log_path.as_deref(),
        stdin: false,
        stdin_once: false,
    };
    assert_eq!(plan(&again, &launch).unwrap(), made.plan);
}

#[test]
fn an_exec_is_the_container_with_another_command() {
    let made = typical().build().unwrap();
    let command = ["sh".to_owned(), "-c".to_owned()];
    let template = exec_template(&made.spec).unwrap();
    let exec = exec_process(&template, &command, true).unwrap();
    let init = made.plan.process.unwrap();
    assert_eq!(exec.args, command);
    assert!(exec.terminal && exec.env.contains(&b"TERM=xterm".to_vec()));
    let mut same = exec_process(&template, &command, false).unwrap();
    assert!(!same.terminal);
    same.args.clone_from(&init.args);
    assert_eq!(same, init);
    assert_eq!(
        exec_process(&template, &[], false).unwrap_err().kind(),
        Kind::InvalidArgument
    );
    assert!(exec_process(&template, &["a\0".to_owned()], false).is_err());
}

#[test]
fn privileged_needs_a_privileged_sandbox() {
    let mut case = typical();
    case.context().privileged = true;
    assert_eq!(case.build().unwrap_err().kind(), Kind::InvalidArgument);
    case.sandbox.config.linux = Some(LinuxPodSandboxConfig {
        security_context: Some(LinuxSandboxSecurityContext {
            privileged: true,
            ..Default::default()
        }),
        ..Default::default()
    });
    let plan = case.build().unwrap().plan;
    assert!(plan.masked_paths.is_empty() && plan.readonly_paths.is_empty());
    let process = plan.process.unwrap();
    assert!(process.seccomp.is_empty());
    assert_eq!(process.capabilities.unwrap().bounding, host().capabilities);
    let rules = plan.cgroup.unwrap().resources.unwrap().devices;
    assert_eq!(
        (rules.len(), rules[0].allow, rules[0].kind.as_str()),
        (1, true, "a")
    );
}

#[test]
fn oom_scores() {
    let mut case = typical();
    let score = |case: &Case| case.build().map(|made| made.plan.process.unwrap().oom_score_adj);
    assert_eq!(score(&case).unwrap(), Some(999));
    case.request
        .linux
        .as_mut()
        .unwrap()
        .resources
        .as_mut()
        .unwrap()
        .oom_score_adj = -997;
    assert_eq!(score(&case).unwrap(), Some(-997));
    case.host.oom_score_adj_min = 0;
    assert_eq!(score(&case).unwrap(), Some(0));
    case.request
        .linux
        .as_mut()
        .unwrap()
        .resources
        .as_mut()
        .unwrap()
        .oom_score_adj = 1001;
    assert!(score(&case).is_err());
    case.request.linux.as_mut().unwrap().resources = None;
    assert_eq!(score(&case).unwrap(), None);
}

#[test]
fn scopes_are_systemds() {
    let mut case = typical();
    for (path, delegated) in [("/a.slice/berth-1.scope", true), ("/kubepods/podX/1", false)] {
        case.cgroup = path.into();
        let cgroup = case.build().unwrap().plan.cgroup.unwrap();
        assert_eq!((cgroup.path.as_str(), cgroup.delegated), (path, delegated));
    }
    case.cgroup = "relative".into();
    assert!(case.build().is_err());
}

#[test]
fn the_init_of_a_shared_pid_namespace() {
    let sandbox = SandboxInit {
        user: None,
        id: ID,
        net_ns: Some(Path::new("/sb/ns/net")),
        ipc_ns: None,
        uts_ns: Some(Path::new("/sb/ns/uts")),
        cgroup: "/berth/pod1/init",
    };
    let mut host = host();
    let plan = sandbox_plan(&sandbox, &host).unwrap();
    assert!(plan.sandbox_init && plan.rootfs.is_none());
    let namespaces: Vec<(wire::namespace::Kind, &str)> = plan
        .namespaces
        .iter()
        .map(|n| (n.kind(), n.path.as_str()))
        .collect();
    use wire::namespace::Kind::{Mount, Network, Pid, Uts};
    assert_eq!(
        namespaces,
        [
            (Pid, ""),
            (Mount, ""),
            (Network, "/sb/ns/net"),
            (Uts, "/sb/ns/uts")
        ]
    );
    assert_eq!(plan.cgroup.unwrap().path, "/berth/pod1/init");
    assert_eq!(plan.process.unwrap().oom_score_adj, Some(-998));
    host.oom_score_adj_min = 0;
    assert_eq!(
        sandbox_plan(&sandbox, &host)
            .unwrap()
            .process
            .unwrap()
            .oom_score_adj,
        Some(0)
    );
}

#[test]
fn labels_of_a_node_with_selinux() {
    let mut case = Case::new();
    case.host.selinux = Some(crate::spec::SelinuxDefaults::read(Path::new("/nonexistent")));
    case.sandbox.selinux_level = "s0:c1,c2".into();
    case.image.volumes = vec!["/volume".into()];
    let mount = |path: &str, selinux_relabel| cri::Mount {
        container_path: path.into(),
        host_path: "/tmp".into(),
        selinux_relabel,
        ..Default::default()
    };
    case.request.mounts = vec![mount("/a", true), mount("/b", false)];
    let built = case.build().unwrap();
    let process = built.plan.process.unwrap();
    assert_eq!(process.selinux_label, "system_u:system_r:container_t:s0:c1,c2");
    assert_eq!(
        built.plan.rootfs.unwrap().mount_label,
        "system_u:object_r:container_file_t:s0:c1,c2"
    );
    assert_eq!(
        built.relabel,
        [Path::new("/tmp"), Path::new("/containers/c/volumes/0")]
    );
    case.context().selinux_options = Some(cri::SeLinuxOption {
        r#type: "bad type".into(),
        ..Default::default()
    });
    assert!(case.build().is_err());
    // A node without it: nothing of all that means anything.
    case.host.selinux = None;
    let built = case.build().unwrap();
    assert_eq!(built.plan.process.unwrap().selinux_label, "");
    assert_eq!(built.relabel, Vec::<std::path::PathBuf>::new());
}
