//! Layers of a root, or of an image volume, whose owners are shown through a user
//! namespace: on the disk they are those of the image, and no layer is copied or changed
//! for it (idmapped mounts, Linux 5.12; below an overlay 5.19).
//!
//! One mount of the folder that all layers have in common serves them all. It is
//! attached nowhere, but on kernels whose overlay takes no layers from such a mount
//! (before 6.15) it is on the root's mount point until the overlay is made.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};

use crate::sys::mount::{self, Attributes};

use super::filesystem::{self, RDONLY};
use super::plan;
use super::step::{At, Step, Walk};

#[derive(Debug)]
pub struct MappedLayers {
    tree: OwnedFd,
    /// What the tree is a mount of.
    folder: PathBuf,
    /// Where it is attached.
    attached: Option<CString>,
}

/// A detached, read-only mount of a folder that shows owners through `user`.
pub fn mapped(folder: &str, user: BorrowedFd<'_>) -> Walk<OwnedFd> {
    let name = plan::c_string(folder).at(Step::OpenLayer)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, name, flags).at(Step::OpenLayer)?;
    // Layers are shared with other containers: nothing may be written to them.
    let attributes = Attributes {
        set: RDONLY,
        clear: 0,
        propagation: mount::PRIVATE,
    };
    mount::set_attributes(tree.as_fd(), attributes, false).at(Step::Overlay)?;
    mount::map_owners(tree.as_fd(), user, false).at(Step::MapLayers)?;
    Ok(tree)
}

impl MappedLayers {
    pub fn open(layers: &[String], user: BorrowedFd<'_>) -> Walk<MappedLayers> {
        let folder = common_folder(layers);
        Ok(MappedLayers {
            tree: mapped(&folder.to_string_lossy(), user)?,
            folder,
            attached: None,
        })
    }

    /// The path of one of the layers, by which overlay finds it in the mount.
    pub fn path(&self, layer: &str) -> String {
        let relative = Path::new(layer)
            .strip_prefix(&self.folder)
            .unwrap_or(Path::new(""));
        format!("/proc/self/fd/{}/{}", self.tree.as_raw_fd(), relative.display())
    }

    /// Puts the mount on a folder, until this is dropped.
    pub fn attach(&mut self, at: &CStr) -> Walk<()> {
        let target = open(
            at,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .at(Step::OpenRoot)?;
        filesystem::attach(self.tree.as_fd(), target.as_fd()).at(Step::MapLayers)?;
        self.attached = Some(at.to_owned());
        Ok(())
    }
}

impl Drop for MappedLayers {
    fn drop(&mut self) {
        if let Some(at) = &self.attached {
            let _ = unmount(at.as_c_str(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

/// The folder that holds all layers, at any depth; a layer itself when it is the only one.
fn common_folder(layers: &[String]) -> PathBuf {
    let mut layers = layers.iter().map(Path::new);
    let mut common = layers.next().unwrap_or(Path::new("/"));
    for layer in layers {
        while !layer.starts_with(common) {
            common = common.parent().unwrap_or(Path::new("/"));
        }
    }
    common.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_layers_have_in_common() {
        let common = |layers: &[&str]| {
            let layers: Vec<String> = layers.iter().map(|layer| (*layer).to_owned()).collect();
            common_folder(&layers).to_str().unwrap().to_owned()
        };
        assert_eq!(common(&["/r/layers/a/fs", "/r/layers/b/fs"]), "/r/layers");
        assert_eq!(common(&["/r/layers/ab", "/r/layers/a"]), "/r/layers");
        assert_eq!(common(&["/r/a"]), "/r/a");
        assert_eq!(common(&["/a", "/b"]), "/");
    }
}
