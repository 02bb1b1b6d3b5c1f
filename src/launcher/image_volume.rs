//! Image volumes: the layers of an image as a read-only file system of the container,
//! or a part of it.
//!
//! The overlay is made detached in the parent. The child puts it on top of the root for
//! a moment, clones the part that was asked for, and takes it away again: that works on
//! kernels that cannot clone from a mount which is attached nowhere (before 6.15), and
//! for overlays that only mount(2) can make (before 6.8).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{FileType, fstat};
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};
use rustix::process::{chdir, fchdir};

use crate::proto::plan::{Mount, Rootfs};
use crate::sys::mount::{self as attributes, Attributes};

use super::filesystem::RDONLY;
use super::overlay::{self, Mapping, Problem, Root, Way};
use super::path::{FOLLOW, Leaf, find};
use super::plan;
use super::step::{At, Failure, Step, Walk};

#[derive(Debug)]
pub struct ImageVolume {
    root: Root,
    /// Where it is put for a moment: the mount point of the container's root.
    rootfs: CString,
    /// Empty: all of it.
    sub_path: CString,
    change: Attributes,
}

impl ImageVolume {
    /// `label`: the SELinux label of its files; `user`: the user namespace that its
    /// owners are shown in.
    pub fn prepare(
        index: usize,
        mount: &Mount,
        rootfs: &CStr,
        label: &str,
        user: Option<BorrowedFd<'_>>,
    ) -> Result<ImageVolume, Problem> {
        let mut lower = mount.lower.clone();
        if !label.is_empty() && user.is_none() && lower.len() == 1 {
            // An overlay, which can have a label of its own, wants two: the mount point is empty.
            lower.push(rootfs.to_string_lossy().into_owned());
        }
        let layers = Rootfs {
            lower,
            readonly: true,
            mount_label: label.to_owned(),
            ..Rootfs::default()
        };
        let mapping = user.map(|user| Mapping {
            user,
            mount_point: rootfs,
        });
        let root = overlay::prepare(&layers, Way::Newest, mapping).map_err(|problem| match problem {
            Problem::Step(failure) => Problem::Step(Failure {
                step: Step::ImageVolume,
                index: u16::try_from(index).unwrap_or(u16::MAX),
                ..failure
            }),
            wrong => wrong,
        })?;
        Ok(ImageVolume {
            root,
            rootfs: rootfs.to_owned(),
            sub_path: plan::field(&format!("mounts[{index}].sub_path"), mount.sub_path.as_str())
                .map_err(Problem::Plan)?,
            change: Attributes {
                // Other containers stand on the same layers.
                set: mount.attr_set | RDONLY,
                clear: mount.attr_clear,
                propagation: attributes::PRIVATE,
            },
        })
    }

    /// See [`Root::is_detached`].
    pub fn is_detached(&self) -> bool {
        self.root.is_detached()
    }

    pub fn descriptor(&self) -> Option<RawFd> {
        self.root.descriptor()
    }

    /// In the child: a detached mount of what was asked for.
    pub fn attach(&self, root: BorrowedFd<'_>, index: usize) -> Walk<(OwnedFd, Leaf)> {
        let volume = self
            .root
            .attach_over(root, &self.rootfs)
            .map_err(|failure| Failure {
                step: Step::ImageVolume,
                index: u16::try_from(index).unwrap_or(u16::MAX),
                ..failure
            })?;
        let part = find(volume.as_fd(), &self.sub_path, FOLLOW).at_index(Step::SubPath, index)?;
        let folder = FileType::from_raw_mode(fstat(&part).at_index(Step::SubPath, index)?.st_mode)
            == FileType::Directory;
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(&part, c"", flags).at_index(Step::ImageVolume, index)?;
        attributes::set_attributes(tree.as_fd(), self.change, false)
            .at_index(Step::MountAttributes, index)?;
        fchdir(&volume).at_index(Step::ImageVolume, index)?;
        unmount(c".", UnmountFlags::DETACH).at_index(Step::ImageVolume, index)?;
        chdir(c"/").at_index(Step::ImageVolume, index)?;
        Ok((tree, if folder { Leaf::Folder } else { Leaf::File }))
    }
}
