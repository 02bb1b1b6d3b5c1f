//! CreateContainer: check, record the intent, layers, spec, bundle, shim, and an
//! init that has its root and waits.
//!
//! As with sandboxes, a failure half-way and a removal later are the same code:
//! [`container_remove::erase`] works on whatever there is.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use super::{
    container_bundle::Bundle,
    container_events, container_exit, container_remove,
    error::{Context, Error, io},
    node::Node,
    pid_namespaces::PidNamespaces,
};
use crate::{
    failpoint,
    image::Image,
    kind::Kind,
    pod::{
        Container, ContainerEvent, ContainerRecord, ContainerState, Sandbox, SandboxState, Stage, Step,
        Timeline, new_id,
    },
    proto::cri::{self, ContainerEventType},
    runtime::{Shim, cgroup_driver},
    spec,
};

const VERB: &str = "create container";

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
        match found.state() {
            // Half made, and could not be taken back then.
            ContainerState::Making | ContainerState::Removing => {
                stage.set("finish a removal");
                container_remove::erase(node, &found).await?;
            }
            // A retry of a call that was answered to nobody, whatever became of the
            // container meanwhile; `create` compares the requests.
            ContainerState::Created | ContainerState::Running | ContainerState::Exited => {
                return Ok(found.id.clone());
            }
        }
    }
    let spec = config.image.clone().unwrap_or_default();
    let image = find_image(node, &spec.image).await?;
    // The kubelet asks by id, and says beside it how the user named the image.
    let named = match &spec.user_specified_image {
        name if name.is_empty() => &spec.image,
        name => name,
    };
    let volumes = volume_images(node, &config).await?;
    let id = new_id();
    let cgroup = cgroup_driver::path(&sandbox.record().cgroup_parent, &id);
    let handler = node.handlers.get(&sandbox.record().handler)?;
    let runtime = handler.runtime(cgroup_driver::is_scope(&cgroup)).await?;
    let record = ContainerRecord {
        state: ContainerState::Making,
        created_at: node.pods.container_creation(&name),
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
        cgroup,
        pid: 0,
        resources: None,
        runtime,
        // Until its spec is made.
        later_hooks: true,
        timeline: Timeline::default(),
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

async fn find_image(node: &Node, asked: &str) -> Result<Arc<Image>, Error> {
    if asked.is_empty() {
        return Err(invalid("config.image.image is empty"));
    }
    node.images.find(asked).await?.ok_or_else(|| Error::Wrong {
        what: "image",
        id: asked.into(),
        kind: Kind::NotFound,
        message: "is not on this node: pull it first".into(),
    })
}

/// The images that the request mounts, and at which of its mounts.
async fn volume_images(
    node: &Node,
    config: &cri::ContainerConfig,
) -> Result<Vec<(usize, Arc<Image>)>, Error> {
    let mut found = Vec::new();
    for (index, mount) in config.mounts.iter().enumerate() {
        let Some(asked) = &mount.image else { continue };
        if asked.image.is_empty() {
            let message = format!("config.mounts[{:?}].image names no image", mount.container_path);
            return Err(invalid(message));
        }
        let image = node
            .images
            .find(&asked.image)
            .await?
            .ok_or_else(|| Error::Wrong {
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
    let namespaces = PidNamespaces::find(node, sandbox, &config).await?;
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
    let (spec, spawn) = (Step::begin("spec"), Step::begin("shim"));
    let ((built, spec), (shim, spawn)) = tokio::join!(
        async { (tokio::task::spawn_blocking(move || job.make()).await, spec.end()) },
        async { (Shim::spawn(&node.shim, id, &bundle).await, spawn.end()) }
    );
    failpoint::reach("create container: shim");
    let shim = shim.step("container", id, "start the shim");
    let built = built.map_err(|e| Error::Left {
        what: "container",
        id: id.into(),
        step: "make the bundle",
        message: e.to_string(),
    });
    let (shim, mut built) = match (shim, built.and_then(|built| built)) {
        (Ok(shim), Ok(built)) => (shim, built),
        (Ok(shim), Err(error)) => {
            discard(&shim, id).await;
            return Err(error);
        }
        (Err(error), _) => return Err(error),
    };
    built.plan.surroundings = Some(node.surroundings.told());
    for warning in &built.warnings {
        tracing::warn!(container = %id, warning);
    }
    let init = Step::begin("init");
    let made = async {
        stage.set("make the scope");
        let limits = built.plan.cgroup.as_ref().and_then(|c| c.resources.as_ref());
        let path = container.record().cgroup;
        // An OCI runtime has systemd make it by itself.
        let _hold = match container.record().runtime {
            Some(_) => None,
            None => {
                let scope = node.cgroups.make(node.shim.program(), &path, limits).await;
                scope.step("container", id, "make its scope")?
            }
        };
        stage.set("make the init");
        let made = shim.create(&built.plan, &bundle).await;
        made.step("container", id, "make the init")
    };
    let pid = match made.await {
        Ok(pid) => pid,
        Err(error) => {
            discard(&shim, id).await;
            return Err(error);
        }
    };
    failpoint::reach("create container: record");
    let init = init.end();
    let user = built.user;
    let number = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
    let created = container.advance(&node.store, ContainerEvent::Made, |record| {
        record.pid = pid;
        record.stop_signal = built.stop_signal;
        record.later_hooks = built.spec.hooks().is_some();
        record.log_path = built.log_path.unwrap_or_default();
        record.uid = number(user.uid);
        record.gid = number(user.gid);
        record.groups = user.supplemental_groups.iter().map(|g| number(*g)).collect();
        for step in [spec, spawn, init] {
            record.timeline.push(step);
        }
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
