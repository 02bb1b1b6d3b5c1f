use std::fs;

use oci_spec::runtime::{LinuxDeviceType, Spec};

use super::*;
use crate::{
    kind::{HasKind, Kind},
    proto::cri::CdiDevice,
    spec::{Built, tests::Case},
};

struct Folders(tempfile::TempDir);

impl Folders {
    fn new() -> Folders {
        let folders = Folders(tempfile::tempdir().unwrap());
        for path in folders.list() {
            fs::create_dir(path).unwrap();
        }
        folders
    }

    fn list(&self) -> Vec<PathBuf> {
        vec![self.0.path().join("etc"), self.0.path().join("run")]
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    fn build(&self, devices: &[&str]) -> Result<Built, Error> {
        let mut case = Case::new();
        case.host.cdi_spec_dirs = self.list();
        case.request.cdi_devices = devices.iter().map(|d| CdiDevice { name: (*d).into() }).collect();
        case.build()
    }

    fn refused(&self, devices: &[&str]) -> String {
        self.build(devices).unwrap_err().to_string()
    }
}

/// A file with one device "0" of kind "a.test/gpu".
fn with(edits: &str) -> String {
    format!(
        "{{\"cdiVersion\":\"0.6.0\",\"kind\":\"a.test/gpu\",\"devices\":[{{\"name\":\"0\",\"containerEdits\":{edits}}}]}}"
    )
}

fn env(spec: &Spec) -> Vec<String> {
    spec.process().as_ref().unwrap().env().clone().unwrap()
}

#[test]
fn every_edit_of_a_yaml_file_is_in_the_spec() {
    let folders = Folders::new();
    folders.write(
        "etc/a.yaml",
        "cdiVersion: 0.7.0\nkind: a.test/gpu\ncontainerEdits:\n  env: [ALL=1]\ndevices:\n- name: zero\n  containerEdits:\n    env: [\"PATH=/gpu\"]\n    deviceNodes:\n    - {path: /dev/gpu0, hostPath: /dev/zero, permissions: rw, uid: 7, gid: 8, fileMode: 416}\n    - {path: /dev/full}\n    mounts:\n    - {hostPath: /tmp, containerPath: /gpu/lib, options: [ro, nosuid, bind]}\n    - {hostPath: tmpfs, containerPath: /gpu, type: tmpfs, options: [size=1m]}\n    hooks:\n    - {hookName: createContainer, path: /bin/true, args: [true, a], env: [A=1], timeout: 3}\n    - {hookName: poststop, path: /bin/false}\n    additionalGids: [0, 44]\n",
    );
    let built = folders.build(&["a.test/gpu=zero"]).unwrap();
    let spec = &built.spec;
    let env = env(spec);
    assert!(env.contains(&"ALL=1".to_owned()), "{env:?}");
    let paths: Vec<_> = env.iter().filter(|entry| entry.starts_with("PATH=")).collect();
    assert_eq!(paths, ["PATH=/gpu"]);
    let nodes = spec.linux().as_ref().unwrap().devices().clone().unwrap();
    let gpu = nodes
        .iter()
        .find(|node| node.path() == Path::new("/dev/gpu0"))
        .unwrap();
    assert_eq!((gpu.typ(), gpu.major(), gpu.minor()), (LinuxDeviceType::C, 1, 5));
    assert_eq!(
        (gpu.file_mode(), gpu.uid(), gpu.gid()),
        (Some(0o640), Some(7), Some(8))
    );
    let rules = spec
        .linux()
        .as_ref()
        .unwrap()
        .resources()
        .as_ref()
        .unwrap()
        .devices()
        .clone()
        .unwrap();
    let access: Vec<_> = rules
        .iter()
        .rev()
        .take(2)
        .map(|rule| (rule.major(), rule.minor(), rule.access().clone().unwrap()))
        .collect();
    assert_eq!(
        access,
        [(Some(1), Some(7), "rwm".into()), (Some(1), Some(5), "rw".into())]
    );
    // The mount below comes after the one above it, whatever their order in the file.
    let targets: Vec<_> = built
        .plan
        .mounts
        .iter()
        .map(|mount| mount.target.as_str())
        .collect();
    let at = |target: &str| targets.iter().position(|known| *known == target).unwrap();
    assert!(at("/gpu") < at("/gpu/lib"), "{targets:?}");
    let hooks = built.plan.hooks.as_ref().unwrap();
    assert_eq!(hooks.create_container[0].args, ["true", "a"]);
    assert_eq!((hooks.create_container[0].timeout, hooks.prestart.len()), (3, 0));
    assert_eq!(crate::spec::later_hooks(spec).unwrap().poststop.len(), 1);
    assert_eq!(built.user.supplemental_groups.last(), Some(&44));
    assert!(!built.plan.process.unwrap().groups.contains(&0) || built.user.gid == 0);
}

#[test]
fn edits_of_the_file_are_applied_once() {
    let folders = Folders::new();
    folders.write(
        "etc/a.json",
        r#"{"cdiVersion":"1.0.0","kind":"a.test/gpu","containerEdits":{"hooks":[{"hookName":"prestart","path":"/bin/true"}]},"devices":[{"name":"0","containerEdits":{"env":["A=0"]}},{"name":"1","containerEdits":{"env":["A=1"]}}]}"#,
    );
    let built = folders
        .build(&["a.test/gpu=0", "a.test/gpu=1", "a.test/gpu=0"])
        .unwrap();
    assert_eq!(built.plan.hooks.as_ref().unwrap().prestart.len(), 1);
    assert!(env(&built.spec).contains(&"A=1".to_owned()));
}

#[test]
fn annotations_of_the_request_ask_too() {
    let folders = Folders::new();
    folders.write("etc/a.json", &with(r#"{"env":["A=0"]}"#));
    let mut case = Case::new();
    case.host.cdi_spec_dirs = folders.list();
    case.request
        .annotations
        .insert("cdi.k8s.io/plugin".into(), "a.test/gpu=0".into());
    assert!(env(&case.build().unwrap().spec).contains(&"A=0".to_owned()));
    // Those of a pod are the user's, and give nothing.
    let mut case = Case::new();
    case.host.cdi_spec_dirs = folders.list();
    case.sandbox
        .config
        .annotations
        .insert("cdi.k8s.io/plugin".into(), "a.test/gpu=0".into());
    assert!(!env(&case.build().unwrap().spec).contains(&"A=0".to_owned()));
}

#[test]
fn a_later_folder_wins_and_one_folder_conflicts_with_itself() {
    let folders = Folders::new();
    folders.write("etc/a.json", &with(r#"{"env":["A=etc"]}"#));
    folders.write("run/a.json", &with(r#"{"env":["A=run"]}"#));
    let built = folders.build(&["a.test/gpu=0"]).unwrap();
    assert!(env(&built.spec).contains(&"A=run".to_owned()));
    folders.write("run/b.json", &with("{}"));
    let message = folders.refused(&["a.test/gpu=0"]);
    assert!(
        message.contains("run/a.json and") && message.contains("run/b.json"),
        "{message}"
    );
}

#[test]
fn what_is_not_there_names_device_folders_and_damaged_files() {
    let folders = Folders::new();
    folders.write("run/bad.json", "{");
    let error = folders.build(&["a.test/gpu=9"]).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    let message = error.to_string();
    for part in ["a.test/gpu=9", "/etc", "/run", "bad.json"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    for name in [
        "gpu", "a/gpu", "/gpu=0", "a/=0", "a/gpu=", "1a/gpu=0", "a/g pu=0", "a/gpu=-x",
    ] {
        assert_eq!(
            folders.build(&[name]).unwrap_err().kind(),
            Kind::InvalidArgument,
            "{name}"
        );
    }
}

#[test]
fn what_is_not_done_is_refused_with_a_reason() {
    for (edits, reason) in [
        (r#"{"intelRdt":{"closID":"x"}}"#, "intelRdt"),
        (
            r#"{"netDevices":[{"hostInterfaceName":"eth0","name":"a"}]}"#,
            "netDevices",
        ),
        (r#"{"hooks":[{"hookName":"later","path":"/bin/true"}]}"#, "later"),
        (
            r#"{"hooks":[{"hookName":"prestart","path":"true"}]}"#,
            "not absolute",
        ),
        (r#"{"env":["=x"]}"#, "KEY=value"),
        (
            r#"{"deviceNodes":[{"path":"/dev/none","hostPath":"/dev/absent-device"}]}"#,
            "absent-device",
        ),
        (
            r#"{"deviceNodes":[{"path":"/dev/none","hostPath":"/etc/passwd"}]}"#,
            "not a device",
        ),
        (
            r#"{"deviceNodes":[{"path":"/dev/null","permissions":"x"}]}"#,
            "permissions",
        ),
        (
            r#"{"mounts":[{"hostPath":"/tmp","containerPath":"/proc/x"}]}"#,
            "/proc",
        ),
        (
            r#"{"mounts":[{"hostPath":"/tmp","containerPath":"rel"}]}"#,
            "absolute",
        ),
        (r#"{"unknown":1}"#, "unknown"),
    ] {
        let folders = Folders::new();
        folders.write("etc/a.json", &with(edits));
        let message = folders.refused(&["a.test/gpu=0"]);
        assert!(message.contains(reason), "{edits}: {message}");
    }
    let folders = Folders::new();
    folders.write("etc/a.json", &with("{}").replace("0.6.0", "2.0.0"));
    assert!(folders.refused(&["a.test/gpu=0"]).contains("cdiVersion"));
}

#[test]
fn a_file_that_others_can_write_says_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let folders = Folders::new();
    folders.write("etc/a.json", &with("{}"));
    let path = folders.0.path().join("etc/a.json");
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(folders.refused(&["a.test/gpu=0"]).contains("chown"));
}
