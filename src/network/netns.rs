//! A pod's namespaces, pinned as files: no process holds them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The namespaces a pod wants of its own.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub net: bool,
    pub ipc: bool,
    pub uts: bool,
    /// Written when `uts`; empty: left as inherited.
    pub hostname: &'a str,
    /// Keys as the kubelet gives them ("net.core.somaxconn", slashes too).
    pub sysctls: &'a BTreeMap<String, String>,
}

/// The namespace a sysctl belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Net,
    Ipc,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step} {path}: {source}")]
    Io {
        step: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Makes the asked namespaces and pins each as `dir/{net,ipc,uts}`. `dir` must exist.
pub fn create(_dir: &Path, _want: &Wanted<'_>) -> Result<(), Error> {
    todo!()
}

/// Unpins whatever is in `dir`. Idempotent.
pub fn remove(_dir: &Path) -> Result<(), Error> {
    todo!()
}

/// None: the sysctl belongs to the whole node, and a pod may not have it.
pub fn sysctl_scope(_key: &str) -> Option<Scope> {
    todo!()
}
