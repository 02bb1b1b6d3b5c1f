//! A config.json of ours in the hands of another runtime: runc reads it and runs it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::*;
use crate::proto::cri::{Capability, Int64Value, KeyValue, Mount, SecurityProfile};

/// A bundle whose /usr is the host's, and a cgroup parent; both are gone with it.
struct Bundle {
    dir: tempfile::TempDir,
    name: String,
}

impl Bundle {
    fn new() -> Bundle {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        fs::create_dir_all(rootfs.join("usr")).unwrap();
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), rootfs.join(name)).unwrap();
        }
        let unique = dir.path().file_name().unwrap().to_string_lossy().replace('.', "");
        Bundle {
            name: format!("berth-spec-{unique}"),
            dir,
        }
    }

    fn run(&self, spec: &Spec) -> std::io::Result<Output> {
        spec.save(self.dir.path().join("config.json")).unwrap();
        self.runc(&["run", "--bundle", &self.dir.path().to_string_lossy(), &self.name])
    }

    fn runc(&self, arguments: &[&str]) -> std::io::Result<Output> {
        let mut command = Command::new("runc");
        command
            .arg("--root")
            .arg(self.dir.path().join("state"))
            .args(arguments)
            .output()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.runc(&["delete", "--force", &self.name]);
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let roots = hierarchies
            .map(|entry| entry.path())
            .chain([PathBuf::from("/sys/fs/cgroup")]);
        for root in roots {
            let _ = fs::remove_dir(root.join(&self.name).join(ID));
            let _ = fs::remove_dir(root.join(&self.name));
        }
    }
}

fn case(bundle: &Bundle) -> Case {
    let mut case = Case::new();
    case.host = Host::detect(&crate::config::Config::default()).unwrap();
    let node = NamespaceMode::Node.into();
    case.sandbox.net_ns = None;
    case.sandbox.ipc_ns = None;
    case.sandbox.uts_ns = None;
    case.sandbox.shm = None;
    case.sandbox.resolv_conf = None;
    case.sandbox.hostname_file = None;
    case.cgroup = format!("/{}/{ID}", bundle.name);
    case.context().namespace_options = Some(NamespaceOption {
        network: node,
        ipc: node,
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    });
    case.request.mounts = vec![Mount {
        container_path: "/usr".into(),
        host_path: "/usr".into(),
        readonly: true,
        ..Default::default()
    }];
    case.request.command = vec!["/bin/sh".into(), "-c".into(), "true".into()];
    case
}

#[test]
fn runs_as_we_say() {
    let bundle = Bundle::new();
    let mut case = case(&bundle);
    // What fails here fails for reasons of this machine.
    match bundle.run(&case.build().unwrap().spec) {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let reason = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                !reason.contains("config.json") && !reason.contains("json:"),
                "{reason}"
            );
            eprintln!("skipped: runc does not run a plain container here: {reason}");
            return;
        }
        Err(e) => {
            eprintln!("skipped: runc: {e}");
            return;
        }
    }
    let script = "id -u; id -g; id -G; pwd; echo $MODE $HOME; \
        grep -E '^(CapBnd|CapPrm|NoNewPrivs|Seccomp):' /proc/self/status; \
        cat /proc/self/oom_score_adj; touch /usr/x 2>/dev/null || echo read-only; ulimit -n";
    case.request.command = vec!["/bin/sh".into(), "-c".into(), script.into()];
    case.request.working_dir = "/usr/bin".into();
    case.request.envs = vec![KeyValue {
        key: "MODE".into(),
        value: b"test".to_vec(),
    }];
    case.request.linux.as_mut().unwrap().resources = Some(crate::proto::cri::LinuxContainerResources {
        oom_score_adj: 999,
        cpu_shares: 100,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let nofile = case.host.nofile.0;
    let context = case.context();
    context.run_as_user = Some(Int64Value { value: 1000 });
    context.supplemental_groups = vec![3000];
    context.no_new_privs = true;
    context.seccomp = Some(SecurityProfile::default());
    context.masked_paths = vec!["/proc/kcore".into()];
    context.readonly_paths = vec!["/proc/sys".into()];
    context.capabilities = Some(Capability {
        drop_capabilities: vec!["NET_RAW".into()],
        ..Default::default()
    });
    let built = case.build().unwrap();
    let output = bundle.run(&built.spec).unwrap();
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let caps = built.plan.process.unwrap().capabilities.unwrap().bounding;
    let bounding = format!("CapBnd:\t{caps:016x}");
    let limit = nofile.to_string();
    assert_eq!(
        lines,
        [
            "1000",
            "1000",
            "1000 2000 3000",
            "/usr/bin",
            "test /home/app",
            "CapPrm:\t0000000000000000",
            &bounding,
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "999",
            "read-only",
            &limit,
        ],
        "{errors}"
    );
    assert!(!Path::new("/usr/x").exists());
}
