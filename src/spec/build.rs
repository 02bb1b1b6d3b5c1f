//! The order of merges: which part of a request, of an image and of this node
//! makes which part of the spec.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Linux, Process, Root, Spec};

use super::{
    Built, Error, Inputs, Launch, SandboxInit, Volume, apparmor, capability, cdi, context, devices,
    hidden_paths,
    host::Host,
    mounts, namespaces, oci, plan, process,
    resources::{self, oom_score_adj},
    seccomp, selinux, signal, user, user_namespace,
};
use crate::proto::{
    cri::{self, LinuxContainerResources, LinuxContainerSecurityContext},
    plan as wire,
};

/// The version of the runtime spec whose fields are used.
const SPEC_VERSION: &str = "1.2.0";
/// The folder of the bundle where the root is mounted.
const ROOT: &str = "rootfs";
/// As the kubelet and containerd have it for what keeps a pod's namespaces.
const SANDBOX_OOM_SCORE_ADJ: i32 = -998;
const SANDBOX_CPU_SHARES: u64 = 2;

/// Makes the spec and the plan of a container: reads the host, changes nothing.
/// Host paths of mounts must be there: see [`super::prepare_host_paths`].
pub fn build(inputs: &Inputs<'_>) -> Result<Built, Error> {
    let request = inputs.request;
    let default = LinuxContainerSecurityContext::default();
    let security = context(request).unwrap_or(&default);
    let mut warnings = Vec::new();
    check_privilege(inputs, security)?;

    // Who and what runs.
    let identity = user::resolve(inputs)?;
    user_namespace::check_ids(inputs, identity.uid, &identity.groups)?;
    let made = process::process(inputs, &identity)?;
    let mut process = made.process;
    let asked = request.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    // What it may do.
    // Whoever is root of a user namespace has all of them there.
    let held = match inputs.sandbox.user {
        Some(_) => crate::sys::capability::known(),
        None => inputs.host.capabilities,
    };
    let capabilities = capability::of_request(security, held)?;
    let bounding = capability::bounding(Some(&capabilities));
    let seccomp = seccomp::of_request(security, bounding, inputs.host)?;
    let pod = inputs.sandbox.config.linux.as_ref();
    let pod = pod.and_then(|linux| linux.security_context.as_ref());
    let labels = selinux::labels(
        inputs.host.selinux.as_ref(),
        [
            security.selinux_options.as_ref(),
            pod.and_then(|pod| pod.selinux_options.as_ref()),
        ],
        &inputs.sandbox.selinux_level,
        security.privileged,
    )?;
    process
        .set_capabilities(Some(capabilities))
        .set_no_new_privileges(Some(security.no_new_privs))
        .set_selinux_label(Some(labels.process).filter(|label| !label.is_empty()))
        .set_apparmor_profile(apparmor::profile(security, inputs.host, &mut warnings)?)
        .set_oom_score_adj(oom_score_adj(asked, inputs.host)?);
    // What it sees.
    let mounts = mounts::mounts(inputs)?;
    let devices = devices::devices(inputs)?;
    let (masked, readonly) = hidden_paths::hidden(security)?;
    // What it may use.
    let no_limits = LinuxContainerResources::default();
    let mut limits = resources::to_oci(asked.unwrap_or(&no_limits), inputs.host)?;
    limits.set_devices(Some(devices.rules));

    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces::namespaces(inputs)?))
        .set_devices(Some(devices.nodes))
        .set_resources(Some(limits))
        .set_cgroups_path(Some(inputs.cgroup.into()))
        .set_rootfs_propagation(mounts.rootfs_propagation.map(str::to_owned))
        .set_mount_label(Some(labels.mount).filter(|label| !label.is_empty()))
        .set_masked_paths(Some(masked))
        .set_readonly_paths(Some(readonly))
        .set_seccomp(seccomp);
    if let Some((uids, gids)) = user_namespace::mappings(inputs) {
        linux.set_uid_mappings(Some(uids)).set_gid_mappings(Some(gids));
    }
    let mut annotations = handed_on(inputs);
    annotations.extend(made.annotations);
    annotations.extend(cri_annotations(inputs));
    let mut spec = assemble(
        process,
        linux,
        security.readonly_rootfs,
        mounts.mounts,
        annotations,
    );

    // Last, for it edits what all of the above has made.
    cdi::apply(&mut spec, request, &inputs.host.cdi_spec_dirs)?;

    let log_directory = inputs.sandbox.config.log_directory.as_str();
    let log_path = process::log_path(log_directory, request)?.map(PathBuf::from);
    let launch = Launch {
        id: inputs.id,
        rootfs: inputs.rootfs,
        log_path: log_path.as_deref(),
        stdin: request.stdin,
        stdin_once: request.stdin && request.stdin_once,
    };
    let plan = plan::plan(&spec, &launch)?;
    if let Some(runtime) = inputs.handler.oci {
        oci::adapt(&mut spec, inputs, runtime)?;
    }
    Ok(Built {
        plan,
        stop_signal: signal::stop_signal(request, &inputs.image.stop_signal, &mut warnings)?,
        user: cri::LinuxContainerUser {
            uid: identity.uid.into(),
            gid: identity.gid.into(),
            supplemental_groups: groups(&spec),
        },
        relabel: relabelled(inputs, &mounts.volumes),
        volumes: mounts.volumes,
        log_path,
        warnings,
        spec,
    })
}

/// What the container may only touch with its own label: volumes of its image, and mounts
/// whose request says so.
fn relabelled(inputs: &Inputs<'_>, volumes: &[Volume]) -> Vec<PathBuf> {
    if inputs.host.selinux.is_none() {
        return Vec::new();
    }
    let asked = inputs.request.mounts.iter().filter(|mount| mount.selinux_relabel);
    asked
        .filter(|mount| mount.image.is_none())
        .map(|mount| PathBuf::from(&mount.host_path))
        .chain(volumes.iter().map(|volume| volume.host_path.clone()))
        .collect()
}

/// As they are after all edits.
fn groups(spec: &Spec) -> Vec<i64> {
    let user = spec.process().as_ref().map(Process::user);
    let groups = user.and_then(|user| user.additional_gids().as_deref());
    groups
        .unwrap_or_default()
        .iter()
        .map(|group| i64::from(*group))
        .collect()
}

fn assemble(
    process: Process,
    linux: Linux,
    readonly: bool,
    mounts: Vec<oci_spec::runtime::Mount>,
    annotations: HashMap<String, String>,
) -> Spec {
    let mut root = Root::default();
    root.set_path(ROOT.into()).set_readonly(Some(readonly));
    let mut spec = Spec::default();
    spec.set_version(SPEC_VERSION.to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts))
        .set_process(Some(process))
        .set_hostname(None)
        .set_annotations(Some(annotations))
        .set_linux(Some(linux));
    spec
}

/// The kubelet makes a sandbox privileged when one of its containers is.
fn check_privilege(inputs: &Inputs<'_>, security: &LinuxContainerSecurityContext) -> Result<(), Error> {
    let pod = inputs
        .sandbox
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    if security.privileged && !pod.is_some_and(|pod| pod.privileged) {
        return Err(Error::invalid(
            "linux.security_context.privileged",
            format!(
                "sandbox {} is not privileged; set it there too",
                inputs.sandbox.id
            ),
        ));
    }
    Ok(())
}

/// The annotations of the pod and of the container that their handler lets through;
/// the container's win.
fn handed_on(inputs: &Inputs<'_>) -> HashMap<String, String> {
    let handler = inputs.handler;
    let pod = (&inputs.sandbox.config.annotations, handler.pod_annotations);
    let container = (&inputs.request.annotations, handler.container_annotations);
    let mut found = HashMap::new();
    for (annotations, patterns) in [pod, container] {
        let wanted = |key: &str| patterns.iter().any(|pattern| oci::matches(pattern, key));
        let known = annotations.iter().filter(|(key, _)| wanted(key));
        found.extend(known.map(|(key, value)| (key.clone(), value.clone())));
    }
    found
}

/// The annotations that hooks and handlers know from containerd.
fn cri_annotations(inputs: &Inputs<'_>) -> Vec<(String, String)> {
    let (sandbox, request) = (inputs.sandbox, inputs.request);
    let pod = sandbox.config.metadata.clone().unwrap_or_default();
    let name = request.metadata.clone().unwrap_or_default().name;
    [
        ("container-type", "container"),
        ("container-name", &name),
        ("image-name", &inputs.image.name),
        ("sandbox-id", &sandbox.id),
        ("sandbox-name", &pod.name),
        ("sandbox-namespace", &pod.namespace),
        ("sandbox-uid", &pod.uid),
    ]
    .into_iter()
    .map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value.to_owned()))
    .collect()
}

/// The plan of the init that holds the PID namespace of a sandbox: it needs no
/// image, and has no rights.
pub fn sandbox_plan(sandbox: &SandboxInit<'_>, host: &Host) -> Result<wire::LaunchPlan, Error> {
    use wire::namespace::Kind;
    let joined = [
        (Kind::Network, sandbox.net_ns),
        (Kind::Ipc, sandbox.ipc_ns),
        (Kind::Uts, sandbox.uts_ns),
        (Kind::User, sandbox.user.map(|user| user.path.as_path())),
    ];
    let new = [
        (Kind::Pid, Some(Path::new(""))),
        (Kind::Mount, Some(Path::new(""))),
    ];
    let mut list = Vec::new();
    for (kind, path) in new.into_iter().chain(joined) {
        let Some(path) = path else { continue };
        list.push(wire::Namespace {
            kind: kind.into(),
            path: plan::text("namespaces", path)?,
        });
    }
    let ranges = sandbox.user.map(|user| &user.ranges);
    let ids = |ranges: &[crate::launcher::Range]| {
        let id = |range: &crate::launcher::Range| wire::IdRange {
            container: range.container,
            host: range.host,
            length: range.length,
        };
        ranges.iter().map(id).collect()
    };
    Ok(wire::LaunchPlan {
        uids: ranges.map_or_else(Vec::new, |ranges| ids(&ranges.uids)),
        gids: ranges.map_or_else(Vec::new, |ranges| ids(&ranges.gids)),
        id: sandbox.id.to_owned(),
        namespaces: list,
        sandbox_init: true,
        process: Some(wire::Process {
            cwd: "/".into(),
            capabilities: Some(wire::Capabilities::default()),
            no_new_privs: true,
            oom_score_adj: Some(SANDBOX_OOM_SCORE_ADJ.max(host.oom_score_adj_min)),
            ..Default::default()
        }),
        cgroup: Some(wire::Cgroup {
            path: sandbox.cgroup.to_owned(),
            delegated: plan::is_scope(Path::new(sandbox.cgroup)),
            resources: Some(wire::Resources {
                cpu_shares: Some(SANDBOX_CPU_SHARES),
                ..Default::default()
            }),
        }),
        ..Default::default()
    })
}
