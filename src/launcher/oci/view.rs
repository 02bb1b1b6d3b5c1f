//! The mounts that a runtime must find: the root in the bundle, image volumes, and
//! volumes whose mounts flow back to the host.
//!
//! They are made in a mount namespace that the run of `create` alone is in: it goes
//! with that run, when the container has its own. The host's mount table never shows
//! them, and a shim or runtime that is killed leaves none.
//!
//! Everything is a slave there, so that nothing flows to the host, for the state
//! folder mostly lies on a mount that is shared; and what is unmounted on the host is
//! not held. A volume that the host is to see mounts of (Bidirectional) is put upon
//! itself as a copy that was taken before, and so is still in the host's peer group.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, open};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};

use crate::proto::plan::{LaunchPlan, Propagation, mount::Kind};
use crate::sys::mount::{self, Attributes};
use crate::sys::namespace;

use super::super::filesystem;
use super::super::image_volume::ImageVolume;
use super::super::overlay::{self, Mapping, Problem, Root, Way};
use super::super::path::Leaf;
use super::super::plan::{c_string, field};
use super::super::step::{At, Step, Walk};
use super::super::{Error, VOLUMES};

#[derive(Debug)]
pub struct View<'a> {
    /// For the names of what fails.
    pub plan: &'a LaunchPlan,
    root: Root,
    rootfs: CString,
    volumes: Vec<Volume>,
    shared: Vec<Shared>,
}

#[derive(Debug)]
struct Volume {
    index: usize,
    image: ImageVolume,
    /// Where config.json has it.
    place: CString,
}

#[derive(Debug)]
struct Shared {
    index: usize,
    tree: OwnedFd,
    source: CString,
}

impl<'a> View<'a> {
    pub fn prepare(
        plan: &'a LaunchPlan,
        bundle: &Path,
        user: Option<BorrowedFd<'_>>,
    ) -> Result<View<'a>, Problem> {
        let text = |name: &str, path: &Path| field(name, path.as_os_str().as_bytes());
        let rootfs = text("bundle", &bundle.join("rootfs")).map_err(Problem::Plan)?;
        make_folder(&rootfs)?;
        let mapping = user.map(|user| Mapping {
            user,
            mount_point: &rootfs,
        });
        let Some(wanted) = &plan.rootfs else {
            return Err(Problem::Plan(Error::plan("rootfs", "it is missing")));
        };
        let root = overlay::prepare(wanted, Way::Newest, mapping)?;
        let (mut volumes, mut shared) = (Vec::new(), Vec::new());
        for (index, mount) in plan.mounts.iter().enumerate() {
            match mount.kind() {
                Kind::Overlay => {
                    let folder = bundle.join(VOLUMES);
                    make_folder(&text("bundle", &folder).map_err(Problem::Plan)?)?;
                    volumes.push(Volume {
                        index,
                        image: ImageVolume::prepare(index, mount, &rootfs, &wanted.mount_label, user)?,
                        place: text("bundle", &folder.join(index.to_string())).map_err(Problem::Plan)?,
                    });
                }
                Kind::Bind if mount.propagation() == Propagation::Shared => {
                    let source = c_string(&mount.source).at_index(Step::OpenSource, index)?;
                    let flags = OpenTreeFlags::OPEN_TREE_CLONE
                        | OpenTreeFlags::OPEN_TREE_CLOEXEC
                        | OpenTreeFlags::AT_RECURSIVE;
                    let tree = open_tree(CWD, source.as_c_str(), flags).at_index(Step::OpenSource, index)?;
                    shared.push(Shared { index, tree, source });
                }
                _ => {}
            }
        }
        Ok(View {
            plan,
            root,
            rootfs,
            volumes,
            shared,
        })
    }

    /// In the child, when it has a mount namespace of its own ([`isolate`]): no
    /// allocation, no lock, no log.
    pub fn mount(&self) -> Walk<()> {
        for shared in &self.shared {
            attach(shared.tree.as_fd(), &shared.source).at_index(Step::Attach, shared.index)?;
        }
        let root = self.root.attach(&self.rootfs)?;
        for volume in &self.volumes {
            let (tree, leaf) = volume.image.attach(root.as_fd(), volume.index)?;
            match leaf {
                Leaf::Folder => make_folder(&volume.place)?,
                Leaf::File => {
                    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    open(volume.place.as_c_str(), flags, Mode::from_raw_mode(0o600))
                        .at_index(Step::MakeTarget, volume.index)?;
                }
            }
            attach(tree.as_fd(), &volume.place).at_index(Step::Attach, volume.index)?;
        }
        Ok(())
    }
}

/// In the child: its own mount namespace. Without the v2 hierarchy that is mounted at
/// `hidden`: where controllers are v1's, it is the shim that puts processes into both,
/// and there are runtimes that refuse such a node (crun when v2 has a controller).
pub fn isolate(hidden: Option<&CStr>) -> Walk<()> {
    namespace::unshare(namespace::MOUNT).at(Step::View)?;
    let slave = Attributes {
        set: 0,
        clear: 0,
        propagation: mount::SLAVE,
    };
    mount::set_attributes_at(CWD, c"/", slave, true).at(Step::CutPropagation)?;
    match hidden.map(|path| unmount(path, UnmountFlags::DETACH)) {
        None => Ok(()),
        Some(unmounted) => unmounted.at(Step::View),
    }
}

fn make_folder(path: &CStr) -> Walk<()> {
    match mkdirat(CWD, path, Mode::RWXU) {
        Err(Errno::EXIST) => Ok(()),
        answer => answer.at(Step::OpenRoot),
    }
}

fn attach(tree: BorrowedFd<'_>, at: &CStr) -> Result<(), Errno> {
    let target = open(at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    filesystem::attach(tree, target.as_fd())
}
