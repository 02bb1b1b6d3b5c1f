//! The folders of a container: the writable layer, the volumes, config.json; and what
//! the spec is made from.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    bundle,
    error::{Context, Error, io},
    node::Node,
    pid_namespaces::PidNamespaces,
    sandbox_files,
};
use crate::{
    image::{Image, copy_up, relabel, view},
    pod::{Container, Sandbox},
    proto::cri,
    runtime::OciRuntime,
    spec::{self, Built},
};

/// Most bytes of an image's /etc/passwd or /etc/group that are read.
const USER_FILE_LIMIT: u64 = 10 << 20;

/// Makes the folders of a container.
pub struct Bundle {
    pub node: Arc<Node>,
    pub sandbox: Arc<Sandbox>,
    pub container: Arc<Container>,
    pub image: Arc<Image>,
    pub layers: Vec<PathBuf>,
    pub volume_images: Vec<spec::VolumeImage>,
    pub namespaces: PidNamespaces,
}

impl Bundle {
    /// Blocks.
    pub fn make(self) -> Result<Built, Error> {
        let id = self.container.id.as_str();
        let layer = self.node.paths.container(id);
        let rootfs = spec::RootfsView {
            lower: self.layers.clone(),
            upper: layer.join("upper"),
            work: layer.join("work"),
        };
        for folder in [&rootfs.upper, &rootfs.work] {
            fs::create_dir_all(folder).map_err(io("container", id, "make folder", folder))?;
        }
        // The upper folder is the container's "/". Layers are shown in a pod's user
        // namespace; what is written is the namespace's already.
        let sandbox = self.sandbox_view()?;
        if let Some(user) = &sandbox.user {
            let root = (user.ranges.host_uid(0), user.ranges.host_gid(0));
            std::os::unix::fs::chown(&rootfs.upper, root.0, root.1).map_err(io(
                "container",
                id,
                "set the owner of",
                &rootfs.upper,
            ))?;
        }
        fs::set_permissions(&rootfs.upper, fs::Permissions::from_mode(0o755)).map_err(io(
            "container",
            id,
            "set the mode of",
            &rootfs.upper,
        ))?;
        let config = self.container.config();
        let read =
            |path: &str| view::read_file(&self.layers, path, USER_FILE_LIMIT).map_err(std::io::Error::other);
        let runtime = self.container.record().runtime;
        let handler = self.node.handlers.get(&self.sandbox.record().handler)?;
        let bundle = self.node.paths.bundle(id);
        let can = handler.known().unwrap_or_default().features;
        let handler_view = spec::HandlerView {
            pod_annotations: &handler.settings.pod_annotations,
            container_annotations: &handler.settings.container_annotations,
            privileged_without_host_devices: handler.settings.privileged_without_host_devices,
            oci: runtime.as_ref().map(|runtime| spec::OciView {
                handler: &runtime.handler,
                bundle: &bundle,
                mount_options: &can.mount_options,
                id_mapped_mounts: can.id_mapped_mounts,
            }),
        };
        let inputs = spec::Inputs {
            id,
            cgroup: &self.container.record().cgroup,
            sandbox: &sandbox,
            request: &config,
            image: &image_view(&self.image, &config),
            rootfs: &rootfs,
            read_image_file: &read,
            volumes_dir: &layer.join("volumes"),
            volume_images: &self.volume_images,
            handler: &handler_view,
            host: &self.node.host,
        };
        spec::prepare_host_paths(&config).step("container", id, "make the host paths of its mounts")?;
        let mut built = spec::build(&inputs).step("container", id, "build the spec")?;
        built.plan.runtime = runtime.as_ref().map(OciRuntime::plan);
        self.volumes(&built)?;
        let label = built
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.mount_label().clone());
        for path in &built.relabel {
            relabel::relabel(path, label.as_deref().unwrap_or_default()).map_err(io(
                "container",
                id,
                "set the SELinux label of",
                path,
            ))?;
        }
        if let Some(folder) = built.log_path.as_deref().and_then(Path::parent) {
            fs::create_dir_all(folder).map_err(io("container", id, "make log folder", folder))?;
        }
        bundle::write_spec(&self.node, id, &built.spec)?;
        Ok(built)
    }

    /// A volume that the image declares begins with what the image has there.
    fn volumes(&self, built: &Built) -> Result<(), Error> {
        let id = self.container.id.as_str();
        for volume in &built.volumes {
            let folder = &volume.host_path;
            fs::create_dir_all(folder).map_err(io("container", id, "make volume", folder))?;
            copy_up::copy_up(&self.layers, &volume.container_path, folder).map_err(|e| Error::Left {
                what: "container",
                id: id.into(),
                step: "fill a volume of the image",
                message: e.to_string(),
            })?;
        }
        Ok(())
    }

    fn sandbox_view(&self) -> Result<spec::SandboxView, Error> {
        let record = self.sandbox.record();
        let folder = self.node.paths.sandbox(&self.sandbox.id);
        let pinned = self.node.paths.namespaces(&self.sandbox.id);
        let own = |name: &str| {
            record
                .namespaces
                .iter()
                .any(|n| n == name)
                .then(|| pinned.join(name))
        };
        Ok(spec::SandboxView {
            user: user_namespace(&self.node, &self.sandbox)?,
            id: self.sandbox.id.clone(),
            config: (*self.sandbox.config()).clone(),
            hostname: record.hostname.clone(),
            net_ns: own("net"),
            ipc_ns: own("ipc"),
            uts_ns: own("uts"),
            pid_ns: self.namespaces.shared.clone(),
            target_pid_ns: self.namespaces.target.clone(),
            shm: own("ipc").map(|_| sandbox_files::shm(&folder)),
            resolv_conf: Some(sandbox_files::resolv_conf(&folder)),
            hostname_file: Some(sandbox_files::hostname(&folder)),
            hosts: Some(sandbox_files::hosts(&folder)),
            selinux_level: record.selinux_level,
        })
    }
}

/// The user namespace of a sandbox, which was checked when it was made.
pub fn user_namespace(node: &Node, sandbox: &Sandbox) -> Result<Option<spec::UserNamespace>, Error> {
    let config = sandbox.config();
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let Some(options) = security.and_then(|s| s.namespace_options.as_ref()) else {
        return Ok(None);
    };
    let ranges = spec::user_ranges(options, &node.host);
    let ranges = ranges.step("sandbox", &sandbox.id, "read the ranges of its user namespace")?;
    Ok(ranges.map(|ranges| spec::UserNamespace {
        path: node.paths.namespaces(&sandbox.id).join("user"),
        ranges,
    }))
}

fn image_view(image: &Image, config: &cri::ContainerConfig) -> spec::ImageView {
    let asked = config.image.clone().unwrap_or_default();
    let c = &image.config;
    spec::ImageView {
        name: if asked.user_specified_image.is_empty() {
            asked.image
        } else {
            asked.user_specified_image
        },
        env: c.env.clone(),
        entrypoint: c.entrypoint.clone(),
        cmd: c.cmd.clone(),
        user: c.user.clone(),
        working_dir: c.working_dir.clone(),
        volumes: c.volumes.clone(),
        stop_signal: c.stop_signal.clone(),
    }
}
