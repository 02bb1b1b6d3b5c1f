//! CreateContainer: check, record the intent, layers, spec, bundle, shim, and an
//! init that has its root and waits.
//!
//! As with sandboxes, a failure half-way and a removal later are the same code:
//! [`container_remove::erase`] works on whatever there is.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    bundle, container_events, container_exit, container_remove,
    error::{Context, Error, io},
    node::Node,
    sandbox_files, sandbox_init,
};
use crate::{
    image::{Image, copy_up, relabel, view},
    kind::Kind,
    pod::{
        Container, ContainerEvent, ContainerRecord, ContainerState, Sandbox, SandboxState, Stage, new_id, now,
    },
    proto::cri::{self, ContainerEventType, NamespaceMode},
    runtime::Shim,
    spec::{self, Built},
};

const VERB: &str = "create container";

/// Most bytes of an image's /etc/passwd or /etc/group that are read.
const USER_FILE_LIMIT: u64 = 10 << 20;

pub async fn create(
    node: &Arc<Node>,
    request: cri::CreateContainerRequest,
    limit: Option<Duration>,
) -> Result<cri::CreateContainerResponse, Error> {
    let config = request
        .config
        .ok_or_else(|| invalid("the request has no config"))?;
    let sandbox = node.pods.sandbox(&request.pod_sandbox_id)?;
    let name = name(&config, &sandbox)?;
    let key = format!("{VERB} {name}");
    let (at, wanted, taken) = (node.clone(), config.clone(), name.clone());
    let id = node
        .operate(key, limit, move |stage| async move {
            make(&at, taken, sandbox, wanted, &stage).await
        })
        .await?;
    // The operation that was joined, or the container that is there, may be of another request.
    if *node.pods.container(&id)?.config() != config {
        return Err(exists(name, id));
    }
    Ok(cri::CreateContainerResponse { container_id: id })
}

fn invalid(message: impl Into<String>) -> Error {
    Error::Invalid {
        verb: VERB,
        message: message.into(),
    }
}

fn exists(name: String, id: String) -> Error {
    Error::Exists {
        what: "container",
        name,
        id,
        remedy: "remove it, or ask with another attempt number",
    }
}

/// "CONTAINER_POD_NAMESPACE_UID_ATTEMPT", as the peers build it.
fn name(config: &cri::ContainerConfig, sandbox: &Sandbox) -> Result<String, Error> {
    let m = config
        .metadata
        .as_ref()
        .ok_or_else(|| invalid("config.metadata is missing"))?;
    if m.name.is_empty() {
        return Err(invalid("config.metadata.name is empty"));
    }
    let pod = sandbox.config().metadata.clone().unwrap_or_default();
    // The pod's attempt is in it too: after a pod was made anew, the old one's
    // containers may still be there.
    Ok(format!(
        "{}_{}_{}_{}_{}_{}",
        m.name, pod.name, pod.namespace, pod.uid, pod.attempt, m.attempt
    ))
}

async fn make(
    node: &Arc<Node>,
    name: String,
    sandbox: Arc<Sandbox>,
    config: cri::ContainerConfig,
    stage: &Stage,
) -> Result<String, Error> {
    stage.set("wait for the sandbox");
    let _gate = sandbox.gate.read().await;
    if sandbox.state() != SandboxState::Ready {
        return Err(Error::Wrong {
            what: "sandbox",
            id: sandbox.id.clone(),
            kind: Kind::FailedPrecondition,
            message: format!("is {}: no container can be created in it", sandbox.state().name()),
        });
    }
    if let Some(found) = node.pods.container_named(&name) {
        // A retry of a call that was answered to nobody; `create` compares the requests.
        return match found.state() {
            ContainerState::Created => Ok(found.id.clone()),
            _ => Err(exists(name, found.id.clone())),
        };
    }
    let spec = config.image.clone().unwrap_or_default();
    let image = find_image(node, &spec.image)?;
    // The kubelet asks by id, and says beside it how the user named the image.
    let named = match &spec.user_specified_image {
        name if name.is_empty() => &spec.image,
        name => name,
    };
    let volumes = volume_images(node, &config)?;
    let id = new_id();
    let record = ContainerRecord {
        state: ContainerState::Making,
        created_at: now(),
        started_at: 0,
        exit: None,
        image_id: image.id.clone(),
        image_ref: image.digest_name(named).to_owned(),
        volume_images: volumes
            .iter()
            .map(|(mount, image)| (*mount, image.id.clone()))
            .collect(),
        log_path: PathBuf::new(),
        stop_signal: 15,
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        cgroup: sandbox_init::spec_cgroup(&sandbox.record().cgroup_parent, &id),
        pid: 0,
        resources: None,
    };
    let container = Arc::new(Container::new(
        id.clone(),
        name,
        sandbox.id.clone(),
        config,
        record,
    ));
    container.record_new(&node.store)?;
    node.pods.add_container(container.clone());
    match acquire(node, &sandbox, &container, &image, stage).await {
        Ok(()) => {
            tracing::info!(container = %id, name = %container.name, image = %named, "container is created");
            Ok(id)
        }
        Err(error) => {
            stage.set("take back what was made");
            if let Err(left) = container_remove::erase(node, &container).await {
                tracing::error!(container = %id, %left, "the next removal of its sandbox finishes it");
            }
            Err(error)
        }
    }
}

fn find_image(node: &Node, asked: &str) -> Result<Arc<Image>, Error> {
    if asked.is_empty() {
        return Err(invalid("config.image.image is empty"));
    }
    node.images.find(asked)?.ok_or_else(|| Error::Wrong {
        what: "image",
        id: asked.into(),
        kind: Kind::NotFound,
        message: "is not on this node: pull it first".into(),
    })
}

/// The images that the request mounts, and at which of its mounts.
fn volume_images(node: &Node, config: &cri::ContainerConfig) -> Result<Vec<(usize, Arc<Image>)>, Error> {
    let mut found = Vec::new();
    for (index, mount) in config.mounts.iter().enumerate() {
        let Some(asked) = &mount.image else { continue };
        if asked.image.is_empty() {
            let message = format!("config.mounts[{:?}].image names no image", mount.container_path);
            return Err(invalid(message));
        }
        let image = node.images.find(&asked.image)?.ok_or_else(|| Error::Wrong {
            what: "image",
            id: asked.image.clone(),
            kind: Kind::NotFound,
            message: format!(
                "is not on this node, and is to be mounted at {:?}: pull it first",
                mount.container_path
            ),
        })?;
        found.push((index, image));
    }
    Ok(found)
}

/// Acquires everything that a container has.
async fn acquire(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    image: &Arc<Image>,
    stage: &Stage,
) -> Result<(), Error> {
    let id = container.id.as_str();
    stage.set("find the pid namespace");
    let config = container.config();
    let namespaces = pid_namespaces(node, sandbox, &config).await?;
    stage.set("make the bundle");
    let layers = node
        .images
        .use_layers(&image.id, id)
        .step("container", id, "use the image's layers")?;
    let volumes = container
        .record()
        .volume_images
        .into_iter()
        .map(|(mount, image)| {
            let layers = node.images.use_layers(&image, id);
            let layers = layers.step("container", id, "use the layers of an image volume")?;
            Ok(spec::VolumeImage { mount, layers })
        });
    let job = Bundle {
        volume_images: volumes.collect::<Result<_, Error>>()?,
        node: node.clone(),
        sandbox: sandbox.clone(),
        container: container.clone(),
        image: image.clone(),
        layers,
        namespaces,
    };
    let bundle = node.paths.bundle(id);
    fs::create_dir_all(bundle.join("rootfs")).map_err(io("container", id, "make folder", &bundle))?;
    // The shim starts while the bundle is made: neither needs the other.
    let (built, shim) = tokio::join!(
        tokio::task::spawn_blocking(move || job.make()),
        Shim::spawn(&node.shim, id, &bundle)
    );
    let shim = shim.step("container", id, "start the shim");
    let built = built.map_err(|e| Error::Left {
        what: "container",
        id: id.into(),
        step: "make the bundle",
        message: e.to_string(),
    });
    let (shim, built) = match (shim, built.and_then(|built| built)) {
        (Ok(shim), Ok(built)) => (shim, built),
        (Ok(shim), Err(error)) => {
            discard(&shim, id).await;
            return Err(error);
        }
        (Err(error), _) => return Err(error),
    };
    for warning in &built.warnings {
        tracing::warn!(container = %id, warning);
    }
    stage.set("make the init");
    let pid = match shim
        .create(&built.plan, &bundle)
        .await
        .step("container", id, "make the init")
    {
        Ok(pid) => pid,
        Err(error) => {
            discard(&shim, id).await;
            return Err(error);
        }
    };
    let user = built.user;
    let number = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
    let created = container.advance(&node.store, ContainerEvent::Made, |record| {
        record.pid = pid;
        record.stop_signal = built.stop_signal;
        record.log_path = built.log_path.unwrap_or_default();
        record.uid = number(user.uid);
        record.gid = number(user.gid);
        record.groups = user.supplemental_groups.iter().map(|g| number(*g)).collect();
    });
    if let Err(error) = created {
        discard(&shim, id).await;
        return Err(error.into());
    }
    container_events::tell(node, container, ContainerEventType::ContainerCreatedEvent);
    container_exit::watch(node, container, shim);
    Ok(())
}

/// Ends a shim whose container does not come to be.
async fn discard(shim: &Shim, id: &str) {
    if let Err(error) = shim.delete().await {
        tracing::debug!(container = %id, %error, "end the shim");
    }
}

/// PID namespaces that a container may join.
#[derive(Debug, Default)]
struct PidNamespaces {
    shared: Option<PathBuf>,
    target: Option<PathBuf>,
}

async fn pid_namespaces(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    config: &cri::ContainerConfig,
) -> Result<PidNamespaces, Error> {
    let own = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let pod = sandbox.config();
    let pod = pod.linux.as_ref().and_then(|l| l.security_context.as_ref());
    // A request without options has those of its sandbox, as in `spec`.
    let options = own
        .and_then(|s| s.namespace_options.clone())
        .or_else(|| pod.and_then(|s| s.namespace_options.clone()))
        .unwrap_or_default();
    match options.pid() {
        NamespaceMode::Pod => Ok(PidNamespaces {
            shared: Some(sandbox_init::ensure(node, sandbox).await?),
            target: None,
        }),
        NamespaceMode::Target => {
            let target = node.pods.container(&options.target_id)?;
            let pid = target.record().pid;
            if target.sandbox != sandbox.id || target.state() != ContainerState::Running || pid == 0 {
                return Err(Error::Wrong {
                    what: "container",
                    id: options.target_id,
                    kind: Kind::FailedPrecondition,
                    message: format!(
                        "cannot be the target of a pid namespace: it must run in sandbox {}",
                        sandbox.id
                    ),
                });
            }
            Ok(PidNamespaces {
                shared: None,
                target: Some(format!("/proc/{pid}/ns/pid").into()),
            })
        }
        NamespaceMode::Container | NamespaceMode::Node => Ok(PidNamespaces::default()),
    }
}

/// Makes the folders of a container: the writable layer, the volumes, config.json.
struct Bundle {
    node: Arc<Node>,
    sandbox: Arc<Sandbox>,
    container: Arc<Container>,
    image: Arc<Image>,
    layers: Vec<PathBuf>,
    volume_images: Vec<spec::VolumeImage>,
    namespaces: PidNamespaces,
}

impl Bundle {
    /// Blocks.
    fn make(self) -> Result<Built, Error> {
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
        let inputs = spec::Inputs {
            id,
            sandbox: &sandbox,
            request: &config,
            image: &image_view(&self.image, &config),
            rootfs: &rootfs,
            read_image_file: &read,
            volumes_dir: &layer.join("volumes"),
            volume_images: &self.volume_images,
            host: &self.node.host,
        };
        spec::prepare_host_paths(&config).step("container", id, "make the host paths of its mounts")?;
        let built = spec::build(&inputs).step("container", id, "build the spec")?;
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
            cgroup_parent: record.cgroup_parent,
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
