//! A container's bundle: config.json, which is the true spec also after an update, and
//! the mount point of the root.

use std::{fs, path::Path};

use rustix::{io::Errno, mount::UnmountFlags};

use super::{
    error::{Error, io},
    node::Node,
};
use crate::spec::Spec;

const NAME: &str = "config.json";

/// Takes away a mount of layers that a shim which was killed may have left on the root's
/// mount point: on kernels before 6.15 it is there for a moment (`launcher/mapped_layers`).
/// Nothing may be removed through it. What is not mounted is no error.
pub fn unmount_layers(bundle: &Path, id: &str) -> Result<(), Error> {
    let path = bundle.join("rootfs");
    loop {
        match rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(e) => return Err(io("container", id, "unmount", &path)(e.into())),
        }
    }
}

fn damaged(id: &str, step: &'static str, e: &serde_json::Error) -> Error {
    Error::Left {
        what: "container",
        id: id.into(),
        step,
        message: e.to_string(),
    }
}

pub fn read_spec(node: &Node, id: &str) -> Result<Spec, Error> {
    let path = node.paths.bundle(id).join(NAME);
    let text = fs::read(&path).map_err(io("container", id, "read", &path))?;
    serde_json::from_slice(&text).map_err(|e| damaged(id, "read config.json", &e))
}

/// Whole or not at all.
pub fn write_spec(node: &Node, id: &str, spec: &Spec) -> Result<(), Error> {
    let path = node.paths.bundle(id).join(NAME);
    let making = path.with_extension("making");
    let text = serde_json::to_vec(spec).map_err(|e| damaged(id, "write config.json", &e))?;
    fs::write(&making, text).map_err(io("container", id, "write", &making))?;
    fs::rename(&making, &path).map_err(io("container", id, "write", &path))
}
