//! A spec for an OCI runtime instead of the launcher: config.json says where things
//! are that the launcher would have made by itself, and what the runtime cannot do is
//! refused, for it would ignore a good part of that.

use std::path::Path;

use oci_spec::runtime::{Mount, Spec};

use super::{Error, Inputs, OciView, image_volumes, process::ENV_ANNOTATION};
use crate::launcher::VOLUMES;

/// Runtimes refuse a later version of the spec than their own, and ignore what later
/// fields they do not know; what they must know is asked for by `features`.
const VERSION: &str = "1.0.2";

/// Changes the spec; its mounts keep their places.
pub(super) fn adapt(spec: &mut Spec, inputs: &Inputs<'_>, runtime: OciView<'_>) -> Result<(), Error> {
    let refused = |field: &str, message: &str| {
        Error::precondition(
            field,
            format!(
                "{message}, and runtime handler {:?} cannot do that",
                runtime.handler
            ),
        )
    };
    spec.set_version(VERSION.to_owned());
    let annotations = spec.annotations().iter().flatten();
    let raw = annotations.filter_map(|(key, _)| key.strip_prefix(ENV_ANNOTATION));
    if let Some(key) = raw.min() {
        return Err(refused("envs", &format!("the value of {key:?} is not UTF-8")));
    }
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        let field = format!("mounts[{}]", mount.destination().display());
        if mount.uid_mappings().is_some() && !runtime.id_mapped_mounts {
            return Err(refused(&field, "it is to show its owners in a user namespace"));
        }
        if mount.typ().as_deref() == Some("overlay") {
            *mount = of_image(mount, &runtime.bundle.join(VOLUMES).join(index.to_string()));
        }
        // What a runtime does not know it passes over, and some options take rights away.
        let is_bind = mount.typ().as_deref() == Some("bind");
        let known = |option: &&String| runtime.mount_options.contains(*option) || option.as_str() == "ridmap";
        let unknown = mount.options().iter().flatten().find(|option| !known(option));
        if let Some(option) = unknown.filter(|_| is_bind) {
            return Err(refused(&field, &format!("it has the option {option:?}")));
        }
    }
    if !inputs.host.unified
        && let Some(limits) = spec
            .linux_mut()
            .as_mut()
            .and_then(|linux| linux.resources_mut().as_mut())
    {
        // Of a v2 hierarchy beside v1, which the runtime does not see: the shim's to set.
        limits.set_unified(None).set_hugepage_limits(None);
    }
    if let (Some(path), Some(linux)) = (systemd_path(inputs.cgroup), spec.linux_mut()) {
        linux.set_cgroups_path(Some(path.into()));
    }
    Ok(())
}

/// The mount of an image volume that is found at `place` when the runtime runs.
fn of_image(mount: &Mount, place: &Path) -> Mount {
    let options = mount.options().iter().flatten();
    let mut kept = vec!["rbind".to_owned(), "rprivate".to_owned()];
    kept.extend(options.filter(|option| !image_volumes::is_own(option)).cloned());
    let mut bind = mount.clone();
    bind.set_typ(Some("bind".into()))
        .set_source(Some(place.into()))
        .set_options(Some(kept));
    bind
}

/// "SLICE:berth:ID", which names the scope SLICE/berth-ID.scope that `path` is of.
/// None: it is no scope.
fn systemd_path(path: &str) -> Option<String> {
    let (parent, scope) = path.rsplit_once('/')?;
    let (prefix, id) = scope.strip_suffix(".scope")?.split_once('-')?;
    let slice = parent.rsplit('/').next()?;
    Some(format!("{slice}:{prefix}:{id}"))
}

/// Whether an annotation is one of those that a pattern means: `*` is any number of
/// letters, `?` is one.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // Where the last `*` was, and how far it reached.
    let mut star = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(letter) if *letter == '?' || Some(letter) == text.get(seen) => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((before, reached)) = star else {
                    return false;
                };
                star = Some((before, reached + 1));
                at = before + 1;
                seen = reached + 1;
            }
        }
    }
    pattern.iter().skip(at).all(|letter| *letter == '*')
}

#[cfg(test)]
#[path = "tests/oci.rs"]
mod tests;
