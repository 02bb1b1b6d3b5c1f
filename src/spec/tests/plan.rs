use oci_spec::runtime::LinuxDeviceType as Type;

use super::*;
use crate::{
    kind::{HasKind, Kind},
    spec::tests::{Case, ID},
};

fn planned(change: impl FnOnce(&mut Spec)) -> Result<wire::LaunchPlan, Error> {
    let case = Case::new();
    let mut spec = case.build()?.spec;
    change(&mut spec);
    plan(
        &spec,
        &Launch {
            id: ID,
            rootfs: &case.rootfs,
            log_path: None,
            stdin: false,
            stdin_once: false,
        },
    )
}

fn linux(spec: &mut Spec) -> &mut Linux {
    spec.linux_mut().as_mut().unwrap()
}

#[test]
fn edits_of_the_spec_are_in_the_plan() {
    let made = planned(|spec| {
        let mut device = LinuxDevice::default();
        device
            .set_path("/dev/gpu0".into())
            .set_typ(Type::C)
            .set_major(195)
            .set_minor(0)
            .set_gid(Some(44));
        let mut null = device.clone();
        null.set_path("/dev/null".into());
        let mut ptmx = device.clone();
        ptmx.set_path("/dev/ptmx".into());
        linux(spec)
            .set_devices(Some(vec![device, null, ptmx]))
            .set_rootfs_propagation(Some("rslave".into()));
        let process = spec.process_mut().as_mut().unwrap();
        process.env_mut().as_mut().unwrap().push("GPU=all".into());
    })
    .unwrap();
    let gpu = made.devices.iter().find(|d| d.path == "/dev/gpu0").unwrap();
    assert_eq!((gpu.major, gpu.minor, gpu.mode, gpu.gid), (195, 0, 0o666, 44));
    let null: Vec<u32> = made
        .devices
        .iter()
        .filter(|d| d.path == "/dev/null")
        .map(|d| d.major)
        .collect();
    assert_eq!(null, [195]);
    assert!(!made.devices.iter().any(|d| d.path == "/dev/ptmx"));
    assert_eq!(made.rootfs_propagation(), wire::Propagation::Slave);
    assert!(made.process.unwrap().env.contains(&b"GPU=all".to_vec()));
    assert!(made.log.is_none());
}

#[test]
fn edits_that_the_launcher_cannot_do_are_refused() {
    type Change = fn(&mut Spec);
    let cases: [(&str, Kind, Change); 6] = [
        ("domainname", Kind::Unimplemented, |s| {
            let _ = s.set_domainname(Some("x".into()));
        }),
        ("user namespace", Kind::Unimplemented, |s| {
            namespace(s, LinuxNamespaceType::User)
        }),
        ("twice", Kind::Internal, |s| namespace(s, LinuxNamespaceType::Pid)),
        ("hostname", Kind::Internal, |s| {
            let _ = s.set_hostname(Some("x".into()));
        }),
        ("mount namespace", Kind::Internal, |s| {
            let _ = linux(s).set_namespaces(None);
        }),
        ("cgroupsPath", Kind::Internal, |s| {
            let _ = linux(s).set_cgroups_path(Some("a/b".into()));
        }),
    ];
    for (field, kind, change) in cases {
        let error = planned(change).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(field), "{error}");
    }
}

fn namespace(spec: &mut Spec, kind: LinuxNamespaceType) {
    let mut namespace = oci_spec::runtime::LinuxNamespace::default();
    namespace.set_typ(kind);
    linux(spec).namespaces_mut().as_mut().unwrap().push(namespace);
}
