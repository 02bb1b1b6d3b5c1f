//! RunPodSandbox: check, record the intent, namespaces, files, cgroup parent,
//! network, record ready.
//!
//! There is no stack of undo steps: the intent is recorded before anything is
//! acquired, and taking a sandbox down works on one that is half made. A failure
//! here, a crash here and a removal later are the same code.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    cgroup_parents, container_events,
    error::{Context, Error, io},
    node::Node,
    runtime_handler, sandbox_files,
    sandbox_ports::ports,
    sandbox_remove,
};
use crate::{
    launcher::Ranges,
    network::{Dns, PodNetwork, PortMapping, netns},
    pod::{Sandbox, SandboxEvent, SandboxRecord, SandboxState, Stage, Step, Timeline, new_id},
    proto::cri::{self, ContainerEventType, NamespaceMode},
    spec,
};

const VERB: &str = "run sandbox";

pub async fn run(
    node: &Arc<Node>,
    request: cri::RunPodSandboxRequest,
    limit: Option<Duration>,
) -> Result<cri::RunPodSandboxResponse, Error> {
    let config = request
        .config
        .ok_or_else(|| invalid("the request has no config"))?;
    let name = name(&config)?;
    let asked = Asked::check(node, &config)?;
    runtime_handler::check(node, &request.runtime_handler, asked.user.is_some()).await?;
    let (made, wanted) = (node.clone(), config.clone());
    let key = format!("{VERB} {name}");
    let taken = name.clone();
    let id = node
        .operate(key, limit, move |stage| {
            make(made, taken, wanted, asked, request.runtime_handler, stage)
        })
        .await?;
    // The operation that was joined, or the sandbox that is there, may be of another request.
    let sandbox = node.pods.sandbox(&id)?;
    if *sandbox.config() != config {
        return Err(exists(name, id));
    }
    Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id })
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::Invalid {
        verb: VERB,
        message: message.into(),
    }
}

fn exists(name: String, id: String) -> Error {
    Error::Exists {
        what: "sandbox",
        name,
        id,
        remedy: "remove it, or ask with another attempt number or uid",
    }
}

/// "NAME_NAMESPACE_UID_ATTEMPT", as the peers build it.
pub fn name(config: &cri::PodSandboxConfig) -> Result<String, Error> {
    let m = config
        .metadata
        .as_ref()
        .ok_or_else(|| invalid("config.metadata is missing"))?;
    for (field, value) in [("name", &m.name), ("namespace", &m.namespace), ("uid", &m.uid)] {
        if value.is_empty() {
            return Err(invalid(format!("config.metadata.{field} is empty")));
        }
    }
    Ok(format!("{}_{}_{}_{}", m.name, m.namespace, m.uid, m.attempt))
}

/// The request, checked.
#[derive(Debug)]
struct Asked {
    own_network: bool,
    own_ipc: bool,
    user: Option<Ranges>,
    sysctls: BTreeMap<String, String>,
    ports: Vec<PortMapping>,
    /// A path.
    cgroup_parent: String,
}

impl Asked {
    fn check(node: &Node, config: &cri::PodSandboxConfig) -> Result<Asked, Error> {
        let linux = config.linux.clone().unwrap_or_default();
        let security = linux.security_context.unwrap_or_default();
        let labels = spec::check_selinux(security.selinux_options.as_ref());
        labels.step("sandbox", &name(config)?, "check the request")?;
        let options = security.namespace_options.unwrap_or_default();
        let own_network = own(options.network(), "network")?;
        let own_ipc = own(options.ipc(), "ipc")?;
        if options.pid() == NamespaceMode::Target {
            return Err(invalid("pid mode TARGET is for containers, not for a sandbox"));
        }
        let user = spec::user_ranges(&options, &node.host);
        let user = user.step("sandbox", &name(config)?, "check the request")?;
        check_hostname(&config.hostname)?;
        let mut sysctls = BTreeMap::new();
        for (key, value) in &linux.sysctls {
            check_sysctl(key, own_network, own_ipc)?;
            sysctls.insert(key.clone(), value.clone());
        }
        if !config.log_directory.is_empty() && !PathBuf::from(&config.log_directory).is_absolute() {
            return Err(invalid(format!(
                "log_directory {:?} is not absolute",
                config.log_directory
            )));
        }
        let cgroup_parent = node.cgroups.parent(&linux.cgroup_parent);
        let cgroup_parent = cgroup_parent.map_err(|error| invalid(error.to_string()))?;
        let ports = if own_network {
            ports(&config.port_mappings)?
        } else {
            Vec::new()
        };
        Ok(Asked {
            own_network,
            own_ipc,
            user,
            sysctls,
            ports,
            cgroup_parent,
        })
    }
}

/// Whether a sandbox's namespace is its own.
fn own(mode: NamespaceMode, which: &str) -> Result<bool, Error> {
    match mode {
        NamespaceMode::Pod => Ok(true),
        NamespaceMode::Node => Ok(false),
        NamespaceMode::Container | NamespaceMode::Target => Err(invalid(format!(
            "{which} mode {} is not for a sandbox; use POD or NODE",
            mode.as_str_name()
        ))),
    }
}

/// sethostname(2): at most 64 bytes.
fn check_hostname(name: &str) -> Result<(), Error> {
    if name.len() > 64 || name.bytes().any(|c| c == 0 || c == b'\n' || c == b'/') {
        return Err(invalid(format!(
            "hostname {name:?} is longer than 64 bytes or has odd characters"
        )));
    }
    Ok(())
}

/// Only sysctls of a namespace that is the pod's own.
fn check_sysctl(key: &str, own_network: bool, own_ipc: bool) -> Result<(), Error> {
    let refused = |why: &str| Err(invalid(format!("sysctl {key:?} is refused: {why}")));
    match netns::sysctl_scope(key) {
        None => refused("it is not of a namespace, it would change the whole node"),
        Some(netns::Scope::Net) if !own_network => refused("the pod uses the node's network"),
        Some(netns::Scope::Ipc) if !own_ipc => refused("the pod uses the node's ipc namespace"),
        Some(_) => Ok(()),
    }
}

async fn make(
    node: Arc<Node>,
    name: String,
    config: cri::PodSandboxConfig,
    asked: Asked,
    handler: String,
    stage: Stage,
) -> Result<String, Error> {
    if let Some(found) = node.pods.sandbox_named(&name) {
        match found.state() {
            // A retry of a call that was answered to nobody; `run` compares the requests.
            SandboxState::Ready => return Ok(found.id.clone()),
            // Half made, and could not be taken back then.
            SandboxState::Removing => {
                stage.set("finish a removal");
                let _gate = found.gate.write().await;
                if node.pods.sandbox(&found.id).is_ok() {
                    sandbox_remove::erase(&node, &found).await?;
                }
            }
            _ => return Err(exists(name, found.id.clone())),
        }
    }
    let linux = config.linux.clone().unwrap_or_default();
    let hostname = if !config.hostname.is_empty() {
        config.hostname.clone()
    } else {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    };
    let mut namespaces = Vec::new();
    if asked.own_network {
        namespaces.extend(["net".to_owned(), "uts".to_owned()]);
    }
    if asked.own_ipc {
        namespaces.push("ipc".to_owned());
    }
    if asked.user.is_some() {
        namespaces.push("user".to_owned());
    }
    let record = SandboxRecord {
        state: SandboxState::Making,
        created_at: node.pods.sandbox_creation(&name),
        handler,
        namespaces,
        attachment: None,
        cgroup_parent: asked.cgroup_parent.clone(),
        cgroups_made: Vec::new(),
        init: false,
        hostname,
        selinux_level: selinux_level(&node, &linux),
        overhead: None,
        resources: None,
        timeline: Timeline::default(),
    };
    let id = new_id();
    let sandbox = Arc::new(Sandbox::new(id.clone(), name, config, record));
    let named = Step::begin("name");
    sandbox.record_new(&node.store)?;
    node.pods.add_sandbox(sandbox.clone());
    match acquire(&node, &sandbox, asked, &stage, named.end()).await {
        Ok(()) => {
            tracing::info!(sandbox = %id, name = %sandbox.name, "sandbox is ready");
            Ok(id)
        }
        Err(error) => {
            stage.set("take back what was made");
            if let Err(left) = sandbox_remove::erase(&node, &sandbox).await {
                tracing::error!(sandbox = %id, %left, "kept as not ready, the next stop or remove finishes it");
            }
            Err(error)
        }
    }
}

/// The level that the pod asks for, or one that no other pod has.
fn selinux_level(node: &Node, linux: &cri::LinuxPodSandboxConfig) -> String {
    if node.host.selinux.is_none() {
        return String::new();
    }
    let asked = linux
        .security_context
        .as_ref()
        .and_then(|s| s.selinux_options.as_ref());
    if let Some(asked) = asked.filter(|asked| !asked.level.is_empty()) {
        return asked.level.clone();
    }
    let taken = node
        .pods
        .sandboxes()
        .iter()
        .map(|other| other.record().selinux_level)
        .collect();
    spec::new_level(&taken, random)
}

fn random() -> u16 {
    let mut bytes = [0u8; 2];
    // As for ids: the kernel's generator does not fail.
    getrandom::fill(&mut bytes).unwrap_or_else(|e| panic!("getrandom: {e}"));
    u16::from_ne_bytes(bytes)
}

/// The SELinux label of what the pod's containers share; empty without SELinux.
fn label(node: &Node, sandbox: &Sandbox) -> Result<String, Error> {
    let config = sandbox.config();
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let asked = security.and_then(|s| s.selinux_options.as_ref());
    spec::pod_label(node.host.selinux.as_ref(), asked, &sandbox.record().selinux_level).step(
        "sandbox",
        &sandbox.id,
        "make its SELinux label",
    )
}

/// Acquires everything that a sandbox has, and makes it ready.
async fn acquire(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    asked: Asked,
    stage: &Stage,
    named: Step,
) -> Result<(), Error> {
    let id = sandbox.id.as_str();
    let mut steps = vec![named];
    stage.set("look at the cgroup parent");
    let step = Step::begin("cgroup parent");
    cgroup_parents::claim(node, sandbox).await?;
    steps.push(step.end());
    stage.set("make namespaces");
    let step = Step::begin("namespaces");
    let (maker, made) = (node.clone(), sandbox.clone());
    let (own_network, ports) = (asked.own_network, asked.ports.clone());
    let asked = Arc::new(asked);
    let first = asked.clone();
    blocking(id, move || prepare(&maker, &made, &first)).await?;
    steps.push(step.end());
    let mut attachment = None;
    if own_network {
        stage.set("attach the network");
        let step = Step::begin("network");
        let pod = pod_network(node, sandbox, ports);
        attachment = Some(
            node.network
                .attach(&pod)
                .await
                .step("sandbox", id, "attach the network")?,
        );
        let (finisher, done) = (node.clone(), sandbox.clone());
        if !asked.sysctls.is_empty() {
            stage.set("write the sysctls of its link");
            blocking(id, move || pin(&finisher, &done, &asked, netns::finish)).await?;
        }
        steps.push(step.end());
    }
    sandbox.advance(&node.store, SandboxEvent::Made, |record| {
        record.attachment = attachment;
        steps.into_iter().for_each(|step| record.timeline.push(step));
    })?;
    container_events::tell_of_sandbox(node, sandbox, ContainerEventType::ContainerCreatedEvent);
    container_events::tell_of_sandbox(node, sandbox, ContainerEventType::ContainerStartedEvent);
    Ok(())
}

/// Runs what blocks apart from the runtime's threads.
async fn blocking(id: &str, work: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| {
        Err(Error::Left {
            what: "sandbox",
            id: id.into(),
            step: "make namespaces",
            message: e.to_string(),
        })
    })
}

/// Has the namespaces of a sandbox made or finished. Blocks.
fn pin(
    node: &Node,
    sandbox: &Sandbox,
    asked: &Asked,
    act: fn(&Path, &netns::Wanted<'_>) -> Result<(), netns::Error>,
) -> Result<(), Error> {
    let wanted = netns::Wanted {
        net: asked.own_network,
        ipc: asked.own_ipc,
        uts: asked.own_network,
        user: asked.user.as_ref(),
        hostname: &sandbox.record().hostname,
        sysctls: &asked.sysctls,
    };
    act(&node.paths.namespaces(&sandbox.id), &wanted).step("sandbox", &sandbox.id, "make namespaces")
}

/// Folders, namespaces and files of a sandbox. Blocks.
fn prepare(node: &Node, sandbox: &Sandbox, asked: &Asked) -> Result<(), Error> {
    let id = sandbox.id.as_str();
    let pinned = node.paths.namespaces(id);
    std::fs::create_dir_all(&pinned).map_err(io("sandbox", id, "make folder", &pinned))?;
    pin(node, sandbox, asked, netns::create)?;
    let record = sandbox.record();
    sandbox_files::write(
        &node.paths.sandbox(id),
        id,
        &sandbox.config(),
        &record.hostname,
        asked.own_ipc,
        &label(node, sandbox)?,
    )?;
    let logs = &sandbox.config().log_directory;
    if !logs.is_empty() {
        std::fs::create_dir_all(logs).map_err(io("sandbox", id, "make log folder", logs.as_ref()))?;
    }
    Ok(())
}

fn pod_network(node: &Node, sandbox: &Sandbox, ports: Vec<PortMapping>) -> PodNetwork {
    let config = sandbox.config();
    let metadata = config.metadata.clone().unwrap_or_default();
    let dns = config.dns_config.clone().unwrap_or_default();
    PodNetwork {
        id: sandbox.id.clone(),
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        netns: node.paths.namespaces(&sandbox.id).join("net"),
        ports,
        dns: Dns {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        },
        cgroup_parent: sandbox.record().cgroup_parent,
        annotations: config.annotations.clone().into_iter().collect(),
        handler: node.handler(&sandbox.record().handler).to_owned(),
        pod_cidrs: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_need_all_their_parts() {
        let mut config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                uid: "u1".into(),
                namespace: "default".into(),
                attempt: 2,
            }),
            ..Default::default()
        };
        assert_eq!(name(&config).unwrap(), "web_default_u1_2");
        config.metadata.as_mut().unwrap().uid.clear();
        assert!(name(&config).unwrap_err().to_string().contains("metadata.uid"));
    }

    #[test]
    fn hostnames() {
        assert!(check_hostname("web-0").is_ok());
        assert!(check_hostname(&"a".repeat(65)).is_err());
        assert!(check_hostname("a\nb").is_err());
    }
}
