//! config.json in a container's bundle: the true spec, also after an update.

use std::fs;

use super::{
    error::{Error, io},
    node::Node,
};
use crate::spec::Spec;

const NAME: &str = "config.json";

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
