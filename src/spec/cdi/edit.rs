//! What a specification says, done to the OCI spec.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Hook, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Mount, Spec};

use super::format::{self, DeviceNode, Edits};
use crate::spec::{devices::Node, mounts};

const PERMISSIONS: &str = "rwm";

/// Applies edits. The message names the field of the specification.
pub(super) fn apply(spec: &mut Spec, edits: &Edits) -> Result<(), String> {
    // What Berth does not do is refused before anything is edited.
    if edits.intel_rdt.is_some() {
        return Err("intelRdt: classes of the Intel RDT are not supported; remove them".into());
    }
    if !edits.net_devices.is_empty() {
        return Err(
            "netDevices: moving network devices of the host is not supported; use a CNI plugin".into(),
        );
    }
    environment(spec, &edits.env)?;
    for node in &edits.device_nodes {
        device(spec, node).map_err(|message| format!("deviceNodes[{:?}]: {message}", node.path))?;
    }
    for mount in &edits.mounts {
        add_mount(spec, mount).map_err(|message| format!("mounts[{:?}]: {message}", mount.container_path))?;
    }
    for hook in &edits.hooks {
        add_hook(spec, hook).map_err(|message| format!("hooks[{:?}]: {message}", hook.hook_name))?;
    }
    groups(spec, &edits.additional_gids);
    Ok(())
}

/// A variable that is there already gets the new value.
fn environment(spec: &mut Spec, entries: &[String]) -> Result<(), String> {
    let Some(process) = spec.process_mut() else {
        return Err("the container has no process".into());
    };
    let list = process.env_mut().get_or_insert_default();
    for entry in entries {
        let key = match entry.split_once('=') {
            Some((key, _)) if !key.is_empty() && !entry.contains('\0') => key,
            _ => return Err(format!("env: {entry:?} is not KEY=value")),
        };
        list.retain(|known| known.split_once('=').is_none_or(|(name, _)| name != key));
        list.push(entry.clone());
    }
    Ok(())
}

fn device(spec: &mut Spec, node: &DeviceNode) -> Result<(), String> {
    let target = absolute("path", &node.path)?;
    let source = match node.host_path.as_str() {
        "" => PathBuf::from(&node.path),
        path => PathBuf::from(absolute("hostPath", path)?),
    };
    if !node.permissions.chars().all(|c| PERMISSIONS.contains(c)) {
        return Err(format!(
            "permissions {:?} are not made of r, w and m",
            node.permissions
        ));
    }
    let asked = match node.kind.as_str() {
        "" => None,
        "b" => Some(LinuxDeviceType::B),
        "c" | "u" => Some(LinuxDeviceType::C),
        "p" => Some(LinuxDeviceType::P),
        other => return Err(format!("type {other:?} is none of b, c, u, p")),
    };
    // As the reference implementation: the host is asked for what is left out, and a
    // type without numbers must be the host's.
    let complete =
        asked.is_some() && (node.major != 0 || node.minor != 0 || asked == Some(LinuxDeviceType::P));
    let host = if complete && node.file_mode.is_some() {
        None
    } else {
        on_host(&source, complete)?
    };
    let mut made = LinuxDevice::default();
    let kind = match (asked, &host) {
        (Some(asked), Some(host)) if asked != host.kind => {
            return Err(format!(
                "{} is no {asked:?} device on this host",
                source.display()
            ));
        }
        (Some(asked), _) => asked,
        (None, Some(host)) => host.kind,
        (None, None) => return Err(format!("{} is not there", source.display())),
    };
    let (major, minor) = match &host {
        Some(host) if node.major == 0 && node.minor == 0 => (host.major.into(), host.minor.into()),
        _ => (node.major, node.minor),
    };
    let process = spec.process().as_ref().map(|process| process.user());
    let or_user = |asked: Option<u32>, own: Option<u32>| asked.or(own.filter(|id| *id > 0));
    made.set_path(PathBuf::from(&target))
        .set_typ(kind)
        .set_major(major)
        .set_minor(minor)
        .set_file_mode(node.file_mode.or(host.as_ref().map(|host| host.mode)))
        .set_uid(or_user(node.uid, process.map(oci_spec::runtime::User::uid)))
        .set_gid(or_user(node.gid, process.map(oci_spec::runtime::User::gid)));
    let Some(linux) = spec.linux_mut() else {
        return Err("the container has no linux part".into());
    };
    let nodes = linux.devices_mut().get_or_insert_default();
    nodes.retain(|known| known.path() != made.path());
    nodes.push(made);
    if kind != LinuxDeviceType::P {
        let access = if node.permissions.is_empty() {
            PERMISSIONS
        } else {
            &node.permissions
        };
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(kind))
            .set_major(Some(major))
            .set_minor(Some(minor))
            .set_access(Some(access.to_owned()));
        let limits = linux.resources_mut().get_or_insert_with(LinuxResources::default);
        limits.devices_mut().get_or_insert_default().push(rule);
    }
    Ok(())
}

/// `optional`: all that must be known is.
fn on_host(path: &Path, optional: bool) -> Result<Option<Node>, String> {
    match std::fs::metadata(path) {
        Ok(found) => match Node::of(&found, path.to_owned()) {
            Some(node) => Ok(Some(node)),
            None => Err(format!("{} is not a device", path.display())),
        },
        Err(_) if optional => Ok(None),
        Err(e) => Err(format!("look at {}: {e}", path.display())),
    }
}

fn absolute(field: &str, path: &str) -> Result<String, String> {
    if !path.starts_with('/') || path.contains('\0') || mounts::clean(path) == "/" {
        return Err(format!("{field} {path:?} is not the absolute path of a file"));
    }
    Ok(mounts::clean(path))
}

fn add_mount(spec: &mut Spec, asked: &format::Mount) -> Result<(), String> {
    let target = absolute("containerPath", &asked.container_path)?;
    mounts::check_proc(&target, Path::new(&asked.host_path))?;
    let kind = if asked.kind.is_empty() {
        "bind"
    } else {
        &asked.kind
    };
    let mut options = asked.options.clone();
    // A bind mount brings what is mounted below its source, unless it says otherwise.
    if kind == "bind" && !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("rbind".into());
    }
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(&target))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(&asked.host_path)))
        .set_options(Some(options));
    let list = spec.mounts_mut().get_or_insert_default();
    list.retain(|known| known.destination() != mount.destination());
    list.push(mount);
    // Stable: a mount never hides one that was there for a path below it.
    list.sort_by_key(|mount| mount.destination().components().count());
    Ok(())
}

fn add_hook(spec: &mut Spec, asked: &format::Hook) -> Result<(), String> {
    if !asked.path.is_absolute() {
        return Err(format!("path {} is not absolute", asked.path.display()));
    }
    if asked.env.iter().any(|entry| !entry.contains('=')) {
        return Err("env is not made of KEY=value".into());
    }
    if asked.timeout.is_some_and(|seconds| seconds <= 0) {
        return Err("timeout is not above zero".into());
    }
    let mut hook = Hook::default();
    hook.set_path(asked.path.clone())
        .set_args(Some(asked.args.clone()))
        .set_env(Some(asked.env.clone()))
        .set_timeout(asked.timeout);
    let hooks = spec.hooks_mut().get_or_insert_default();
    let list = match asked.hook_name.as_str() {
        "prestart" => hooks.prestart_mut(),
        "createRuntime" => hooks.create_runtime_mut(),
        "createContainer" => hooks.create_container_mut(),
        "startContainer" => hooks.start_container_mut(),
        "poststart" => hooks.poststart_mut(),
        "poststop" => hooks.poststop_mut(),
        _ => {
            return Err(
                "is none of prestart, createRuntime, createContainer, startContainer, poststart, poststop"
                    .into(),
            );
        }
    };
    list.get_or_insert_default().push(hook);
    Ok(())
}

/// Group 0 is not given away like this, as in the reference implementation.
fn groups(spec: &mut Spec, asked: &[u32]) {
    if let Some(process) = spec.process_mut() {
        let list = process.user_mut().additional_gids_mut().get_or_insert_default();
        for group in asked.iter().filter(|group| **group != 0) {
            if !list.contains(group) {
                list.push(*group);
            }
        }
    }
}

/// The annotations of a spec as the state of hooks has them.
pub(in crate::spec) fn annotations(spec: &Spec) -> String {
    let none = HashMap::new();
    let all = spec.annotations().as_ref().unwrap_or(&none);
    serde_json::to_string(all).unwrap_or_default()
}
