//! The user namespace of a pod: what a request may ask for, and what its containers
//! get of it.
//!
//! A pod has one range of users and one of groups, with root in them, as the kubelet
//! asks and both peers demand. What is asked for beyond that is refused.

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};

use super::{Error, Inputs, host::Host};
use crate::{
    launcher::{Range, Ranges},
    proto::cri::{IdMapping, NamespaceMode, NamespaceOption, UserNamespace},
};

const FIELD: &str = "linux.security_context.namespace_options";

/// The ranges that a sandbox asks for; `None`: it is to be in the node's namespace.
pub fn user_ranges(options: &NamespaceOption, host: &Host) -> Result<Option<Ranges>, Error> {
    let Some(asked) = &options.userns_options else {
        return Ok(None);
    };
    let Some(ranges) = ranges(asked)? else {
        return Ok(None);
    };
    for (name, mode) in [("pid", options.pid()), ("ipc", options.ipc())] {
        if mode == NamespaceMode::Node {
            return Err(Error::invalid(
                format!("{FIELD}.{name}"),
                "NODE is not possible in a pod with a user namespace, which has no rights there; \
                 set hostUsers: true, or leave the node's namespace",
            ));
        }
    }
    if !host.user_namespaces {
        return Err(Error::precondition(
            format!("{FIELD}.userns_options"),
            "this node has no user namespaces for pods: they need Linux 6.7, and \
             /proc/sys/user/max_user_namespaces above 0; set hostUsers: true in the pod",
        ));
    }
    Ok(Some(ranges))
}

fn ranges(asked: &UserNamespace) -> Result<Option<Ranges>, Error> {
    let field = format!("{FIELD}.userns_options");
    let mode = NamespaceMode::try_from(asked.mode)
        .map_err(|_| Error::invalid(&field, format!("{} is not a namespace mode", asked.mode)))?;
    match mode {
        NamespaceMode::Pod => Ok(Some(Ranges {
            uids: vec![range(&format!("{field}.uids"), &asked.uids)?],
            gids: vec![range(&format!("{field}.gids"), &asked.gids)?],
        })),
        NamespaceMode::Node if asked.uids.is_empty() && asked.gids.is_empty() => Ok(None),
        NamespaceMode::Node => Err(Error::invalid(field, "mappings are only possible with mode POD")),
        other => Err(Error::invalid(
            field,
            format!("mode {} is not possible; use POD or NODE", other.as_str_name()),
        )),
    }
}

/// The one range of a list.
fn range(field: &str, mappings: &[IdMapping]) -> Result<Range, Error> {
    let [mapping] = mappings else {
        return Err(Error::invalid(
            field,
            format!("{} mappings: exactly one is possible", mappings.len()),
        ));
    };
    if mapping.container_id != 0 {
        return Err(Error::invalid(
            field,
            format!(
                "begins at container id {}, and must begin at 0",
                mapping.container_id
            ),
        ));
    }
    // The last 32-bit id is "leave it" to the kernel's calls, and nobody's.
    let end = mapping.host_id.checked_add(mapping.length);
    if mapping.length == 0 || end.is_none() {
        return Err(Error::invalid(
            field,
            format!(
                "{} ids from host id {} are not possible: at least one, and none above 4294967294",
                mapping.length, mapping.host_id
            ),
        ));
    }
    Ok(Range {
        container: 0,
        host: mapping.host_id,
        length: mapping.length,
    })
}

/// A container is in the user namespace of its pod: its own request, when it says
/// something, must say the same.
pub(super) fn check(options: &NamespaceOption, inputs: &Inputs<'_>) -> Result<(), Error> {
    let Some(asked) = &options.userns_options else {
        return Ok(());
    };
    let pod = inputs.sandbox.user.as_ref().map(|user| &user.ranges);
    if ranges(asked)?.as_ref() == pod {
        return Ok(());
    }
    Err(Error::invalid(
        format!("{FIELD}.userns_options"),
        format!(
            "are not those of sandbox {}; leave them out, or set the same",
            inputs.sandbox.id
        ),
    ))
}

/// Ids of a process must be in the namespace.
pub(super) fn check_ids(inputs: &Inputs<'_>, uid: u32, groups: &[u32]) -> Result<(), Error> {
    let Some(user) = &inputs.sandbox.user else {
        return Ok(());
    };
    let lost = groups.iter().find(|gid| user.ranges.host_gid(**gid).is_none());
    let message = match (user.ranges.host_uid(uid), lost) {
        (Some(_), None) => return Ok(()),
        (None, _) => format!("user {uid} is outside of"),
        (_, Some(gid)) => format!("group {gid} is outside of"),
    };
    let length = user.ranges.uids.first().map_or(0, |range| range.length);
    Err(Error::invalid(
        "linux.security_context.run_as_user",
        format!(
            "{message} the pod's user namespace, which has ids below {length}; \
             choose another user, or set hostUsers: true"
        ),
    ))
}

/// The mappings of the pod as a spec has them: of users, and of groups.
pub(super) fn mappings(inputs: &Inputs<'_>) -> Option<(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>)> {
    let ranges = &inputs.sandbox.user.as_ref()?.ranges;
    Some((to_oci(&ranges.uids), to_oci(&ranges.gids)))
}

fn to_oci(ranges: &[Range]) -> Vec<LinuxIdMapping> {
    let mapping = |range: &Range| {
        LinuxIdMappingBuilder::default()
            .container_id(range.container)
            .host_id(range.host)
            .size(range.length)
            .build()
            .ok()
    };
    ranges.iter().filter_map(mapping).collect()
}

/// A bind mount of the pod's own things: their owners are shown in its namespace.
pub(super) fn own(mut mount: Mount, inputs: &Inputs<'_>) -> Mount {
    if let Some((uids, gids)) = mappings(inputs) {
        map(&mut mount, uids, gids);
    }
    mount
}

fn map(mount: &mut Mount, uids: Vec<LinuxIdMapping>, gids: Vec<LinuxIdMapping>) {
    let mut options = mount.options().clone().unwrap_or_default();
    options.push("ridmap".to_owned());
    mount
        .set_options(Some(options))
        .set_uid_mappings(Some(uids))
        .set_gid_mappings(Some(gids));
}

/// The mappings that a mount of the request asks for.
pub(super) fn of_request(
    mut mount: Mount,
    path: &str,
    uids: &[IdMapping],
    gids: &[IdMapping],
) -> Result<Mount, Error> {
    if uids.is_empty() && gids.is_empty() {
        return Ok(mount);
    }
    let field = |name: &str| format!("mounts[{path:?}].{name}");
    let range = |name: &str, mappings: &[IdMapping]| -> Result<_, Error> {
        if mappings.is_empty() {
            return Err(Error::invalid(
                field(name),
                "is empty: uidMappings and gidMappings go together",
            ));
        }
        let mut ranges = Vec::new();
        for mapping in mappings {
            if mapping.length == 0
                || mapping.host_id.checked_add(mapping.length).is_none()
                || mapping.container_id.checked_add(mapping.length).is_none()
            {
                return Err(Error::invalid(
                    field(name),
                    format!("{mapping:?} has no id, or one above 4294967294"),
                ));
            }
            ranges.push(Range {
                container: mapping.container_id,
                host: mapping.host_id,
                length: mapping.length,
            });
        }
        Ok(to_oci(&ranges))
    };
    let (uids, gids) = (range("uidMappings", uids)?, range("gidMappings", gids)?);
    map(&mut mount, uids, gids);
    Ok(mount)
}

#[cfg(test)]
#[path = "tests/user_namespace.rs"]
mod tests;
