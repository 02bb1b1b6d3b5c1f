//! Devices of the Container Device Interface: named in the request, described in
//! files of the node, done as edits of the OCI spec.
//!
//! Who may ask: the live request of the kubelet, by its field or by its annotations
//! (which older kubelets and device plugins use). [`Asked`] is made from a
//! [`ContainerConfig`] and from nothing else: the annotations of an image, of a pod
//! or of a checkpoint never name devices (CVE-2026-53492 of containerd).

mod edit;
mod folder;
mod format;
#[cfg(any(test, feature = "fuzz"))]
pub(super) mod fuzz;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::Error;
use crate::proto::cri::ContainerConfig;
use folder::Library;

pub(super) use edit::annotations;

/// Annotations of a container that ask for devices, separated by commas.
const ANNOTATION: &str = "cdi.k8s.io/";

/// A device as a request names it: "VENDOR/CLASS=DEVICE".
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    /// The field of the request.
    field: String,
    kind: String,
    device: String,
}

impl Asked {
    fn name(&self) -> String {
        format!("{}={}", self.kind, self.device)
    }

    fn parse(field: &str, name: &str) -> Result<Asked, Error> {
        let wrong = |message: String| Error::invalid(field, message);
        let Some((kind, device)) = name.split_once('=') else {
            return Err(wrong(format!("CDI device {name:?} is not VENDOR/CLASS=DEVICE")));
        };
        format::check_kind(kind).map_err(wrong)?;
        format::check_device(device).map_err(wrong)?;
        Ok(Asked {
            field: field.to_owned(),
            kind: kind.to_owned(),
            device: device.to_owned(),
        })
    }
}

/// The devices of a request, each once: newer kubelets name them in both places.
fn asked(request: &ContainerConfig) -> Result<Vec<Asked>, Error> {
    let by_field = request
        .cdi_devices
        .iter()
        .map(|device| ("CDI_devices", device.name.as_str()));
    let mut annotations: Vec<_> = request
        .annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION))
        .collect();
    annotations.sort();
    let by_annotation = annotations.into_iter().flat_map(|(key, value)| {
        let names = value.split(',').map(str::trim);
        names.map(move |name| (key.as_str(), name))
    });
    let mut list: Vec<Asked> = Vec::new();
    for (field, name) in by_field.chain(by_annotation) {
        let one = Asked::parse(field, name)?;
        if !list.iter().any(|known| known.name() == one.name()) {
            list.push(one);
        }
    }
    Ok(list)
}

/// Does to the spec what the files in `folders` say of the devices of the request.
/// The edits that a file has for all its devices are applied once, before those of
/// its first device.
pub(super) fn apply(spec: &mut Spec, request: &ContainerConfig, folders: &[PathBuf]) -> Result<(), Error> {
    let asked = asked(request)?;
    if asked.is_empty() {
        return Ok(());
    }
    let library = Library::read(folders);
    let resolved = asked
        .iter()
        .map(|one| Ok((one, library.find(one)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    let mut done: Vec<&Path> = Vec::new();
    for (asked, found) in resolved {
        let wrong = |message: String| {
            Error::precondition(
                &asked.field,
                format!(
                    "CDI device {} in {}: {message}",
                    asked.name(),
                    found.path.display()
                ),
            )
        };
        if !done.contains(&found.path) {
            done.push(found.path);
            edit::apply(spec, &found.file.container_edits).map_err(wrong)?;
        }
        edit::apply(spec, &found.device.container_edits).map_err(wrong)?;
    }
    Ok(())
}
