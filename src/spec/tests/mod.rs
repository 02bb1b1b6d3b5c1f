//! What the tests of this module share.

mod build;
mod runc;

use std::path::PathBuf;

use super::*;
use crate::proto::cri::{
    ContainerConfig, ContainerMetadata, LinuxContainerConfig, LinuxContainerSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
};

/// A node with everything, so that tests do not depend on the one they run on.
pub(crate) fn host() -> Host {
    Host {
        unified: true,
        v2_controllers: ["cpu", "memory", "pids", "hugetlb"].map(str::to_owned).to_vec(),
        capabilities: (1 << 41) - 1,
        kernel: (6, 18),
        user_namespaces: true,
        apparmor: false,
        selinux: None,
        swap_limit: true,
        hugetlb: true,
        oom_score_adj_min: -1000,
        nofile: (1_048_576, 1_048_576),
        seccomp_profile_root: "/var/lib/kubelet/seccomp".into(),
        cdi_spec_dirs: Vec::new(),
    }
}

/// All that [`Inputs`] borrows: a usual container of a usual pod.
pub(crate) struct Case {
    pub sandbox: SandboxView,
    pub request: ContainerConfig,
    pub image: ImageView,
    pub rootfs: RootfsView,
    pub passwd: String,
    pub group: String,
    pub host: Host,
    pub volume_images: Vec<super::VolumeImage>,
    pub cgroup: String,
}

/// 64 hex digits.
pub(crate) const ID: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

impl Case {
    pub fn new() -> Case {
        Case {
            sandbox: SandboxView {
                id: "5a".repeat(32),
                config: PodSandboxConfig {
                    metadata: Some(PodSandboxMetadata {
                        name: "pod-1".into(),
                        uid: "uid-1".into(),
                        namespace: "default".into(),
                        attempt: 0,
                    }),
                    log_directory: "/var/log/pods/default_pod-1_uid-1".into(),
                    ..Default::default()
                },
                hostname: "pod-1".into(),
                net_ns: Some("/sb/ns/net".into()),
                ipc_ns: Some("/sb/ns/ipc".into()),
                uts_ns: Some("/sb/ns/uts".into()),
                shm: Some("/sb/shm".into()),
                resolv_conf: Some("/sb/resolv.conf".into()),
                hostname_file: Some("/sb/hostname".into()),
                ..Default::default()
            },
            request: ContainerConfig {
                metadata: Some(ContainerMetadata {
                    name: "app".into(),
                    attempt: 0,
                }),
                log_path: "app/0.log".into(),
                linux: Some(LinuxContainerConfig {
                    security_context: Some(LinuxContainerSecurityContext {
                        namespace_options: Some(NamespaceOption {
                            pid: NamespaceMode::Container.into(),
                            ..Default::default()
                        }),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            },
            image: ImageView {
                name: "example.test/app:1".into(),
                cmd: vec!["/bin/app".into()],
                ..Default::default()
            },
            rootfs: RootfsView {
                lower: vec!["/layers/2".into(), "/layers/1".into()],
                upper: "/containers/c/upper".into(),
                work: "/containers/c/work".into(),
            },
            passwd: "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n".into(),
            group: "root:x:0:\napp:x:1000:\nextra:x:2000:app\n".into(),
            volume_images: Vec::new(),
            cgroup: format!("/berth/pod1/{ID}"),
            host: host(),
        }
    }

    /// The request's security context.
    pub fn context(&mut self) -> &mut LinuxContainerSecurityContext {
        let linux = self.request.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    /// Calls `work` with these inputs.
    pub fn with<T>(&self, work: impl FnOnce(&Inputs<'_>) -> T) -> T {
        let read = |path: &str| {
            let text = match path {
                "/etc/passwd" => &self.passwd,
                "/etc/group" => &self.group,
                other => panic!("nobody should read {other}"),
            };
            Ok(Some(text.clone().into_bytes()))
        };
        work(&Inputs {
            id: ID,
            cgroup: &self.cgroup,
            sandbox: &self.sandbox,
            request: &self.request,
            image: &self.image,
            rootfs: &self.rootfs,
            read_image_file: &read,
            volumes_dir: &PathBuf::from("/containers/c/volumes"),
            volume_images: &self.volume_images,
            handler: &HandlerView::default(),
            host: &self.host,
        })
    }

    pub fn build(&self) -> Result<Built, Error> {
        self.with(build)
    }
}
