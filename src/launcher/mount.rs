//! The mounts of a plan: sources are opened as detached trees in the parent, before
//! anything of the container runs, and attached by the child in the plan's order.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::cgroup::{Cgroup, Layout};
use crate::proto::plan::{Mount, Propagation, mount::Kind};
use crate::sys::mount::{self as attributes, Attributes};

use super::Error;
use super::filesystem::{self, NODEV, NOEXEC, NOSUID, Parameter, RDONLY};
use super::image_volume::ImageVolume;
use super::overlay::Problem;
use super::path::{FOLLOW, Leaf, find_or_make};
use super::plan;
use super::step::{At, Failure, Step, Walk};

#[derive(Debug)]
pub struct Prepared {
    target: CString,
    source: Source,
    set: u64,
    propagation: u64,
}

#[derive(Debug)]
enum Source {
    /// With its attributes and propagation set.
    Tree {
        tree: OwnedFd,
        leaf: Leaf,
    },
    FileSystem {
        kind: &'static CStr,
        source: CString,
        parameters: Vec<Parameter>,
    },
    Image(ImageVolume),
    /// cgroup v1: a tmpfs with the container's own cgroup of each hierarchy.
    Cgroups {
        trees: Vec<(CString, OwnedFd)>,
        links: Vec<(CString, CString)>,
        options: Vec<Parameter>,
    },
}

/// Opens what `mount` needs. `cgroup` exists already; `rootfs` is where the root will be.
pub fn prepare(index: usize, mount: &Mount, cgroup: &Cgroup, rootfs: &CStr) -> Result<Prepared, Problem> {
    let name = |field: &str| format!("mounts[{index}].{field}");
    let target = plan::path(&name("target"), &mount.target).map_err(Problem::Plan)?;
    let kind = Kind::try_from(mount.kind)
        .map_err(|_| Problem::Plan(Error::plan(name("kind"), format!("{} is unknown", mount.kind))))?;
    let propagation = propagation(mount.propagation, &name("propagation")).map_err(Problem::Plan)?;
    let source = match kind {
        Kind::Bind => bind(index, mount, propagation)?,
        Kind::Overlay => Source::Image(ImageVolume::prepare(index, mount, rootfs)?),
        Kind::Cgroup
            if !Layout::detect()
                .map_err(|e| Problem::Plan(e.into()))?
                .is_pure_v2() =>
        {
            cgroups(index, mount, cgroup)?
        }
        _ => file_system(index, mount, kind).map_err(Problem::Plan)?,
    };
    Ok(Prepared {
        target,
        source,
        set: mount.attr_set,
        propagation,
    })
}

pub fn propagation(value: i32, field: &str) -> Result<u64, Error> {
    match Propagation::try_from(value) {
        Ok(Propagation::Private) => Ok(attributes::PRIVATE),
        Ok(Propagation::Slave) => Ok(attributes::SLAVE),
        Ok(Propagation::Shared) => Ok(attributes::SHARED),
        Err(_) => Err(Error::plan(field, format!("{value} is unknown"))),
    }
}

/// A copy of the source's mounts that keeps their peer groups, so that what is slave
/// or shared afterwards is so towards the host.
fn bind(index: usize, mount: &Mount, propagation: u64) -> Walk<Source> {
    let source = plan::c_string(&mount.source).at_index(Step::OpenSource, index)?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if mount.bind_recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(CWD, source, flags).at_index(Step::OpenSource, index)?;
    let change = Attributes {
        set: 0,
        clear: 0,
        propagation,
    };
    attributes::set_attributes(tree.as_fd(), change, mount.bind_recursive)
        .at_index(Step::SourceAttributes, index)?;
    if mount.attr_set != 0 || mount.attr_clear != 0 {
        let change = Attributes {
            set: mount.attr_set,
            clear: mount.attr_clear,
            propagation: 0,
        };
        attributes::set_attributes(tree.as_fd(), change, mount.attr_recursive)
            .at_index(Step::SourceAttributes, index)?;
    }
    let stat = fstat(&tree).at_index(Step::OpenSource, index)?;
    let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Ok(Source::Tree {
        tree,
        leaf: if folder { Leaf::Folder } else { Leaf::File },
    })
}

fn file_system(index: usize, mount: &Mount, kind: Kind) -> Result<Source, Error> {
    let kind = match kind {
        Kind::Proc => c"proc",
        Kind::Sysfs => c"sysfs",
        Kind::Tmpfs => c"tmpfs",
        Kind::Devpts => c"devpts",
        Kind::Mqueue => c"mqueue",
        Kind::Cgroup | Kind::Bind | Kind::Overlay => c"cgroup2",
    };
    let mut parameters = Vec::new();
    for option in &mount.data {
        let field = format!("mounts[{index}].data");
        parameters.push(
            filesystem::parameter(option)
                .ok_or_else(|| Error::plan(field, format!("{option:?} contains a NUL byte")))?,
        );
    }
    let source = if mount.source.is_empty() {
        kind.to_owned()
    } else {
        plan::field(&format!("mounts[{index}].source"), mount.source.as_str())?
    };
    Ok(Source::FileSystem {
        kind,
        source,
        parameters,
    })
}

fn cgroups(index: usize, mount: &Mount, cgroup: &Cgroup) -> Walk<Source> {
    let mut trees = Vec::new();
    let mut links = Vec::new();
    for (name, folder) in cgroup.v1_folders() {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, folder, flags).at_index(Step::OpenSource, index)?;
        let change = Attributes {
            set: mount.attr_set,
            clear: 0,
            propagation: attributes::PRIVATE,
        };
        attributes::set_attributes(tree.as_fd(), change, false).at_index(Step::SourceAttributes, index)?;
        let c_name = plan::c_string(name).at_index(Step::OpenSource, index)?;
        // Mounted together: each controller is also found under its own name.
        for alone in name.split(',').filter(|alone| *alone != name) {
            links.push((
                plan::c_string(alone).at_index(Step::OpenSource, index)?,
                c_name.clone(),
            ));
        }
        trees.push((c_name, tree));
    }
    // World-readable: a tmpfs is 1777 otherwise.
    let options = filesystem::parameter("mode=755").into_iter().collect();
    Ok(Source::Cgroups {
        trees,
        links,
        options,
    })
}

impl Prepared {
    pub fn descriptors(&self, into: &mut Vec<RawFd>) {
        match &self.source {
            Source::Tree { tree, .. } => into.push(tree.as_raw_fd()),
            Source::FileSystem { .. } => {}
            Source::Image(volume) => into.extend(volume.descriptor()),
            Source::Cgroups { trees, .. } => into.extend(trees.iter().map(|(_, tree)| tree.as_raw_fd())),
        }
    }

    /// In the child.
    pub fn attach(&self, root: BorrowedFd<'_>, index: usize) -> Walk<()> {
        match &self.source {
            Source::Tree { tree, leaf } => {
                let target =
                    find_or_make(root, &self.target, *leaf, FOLLOW).at_index(Step::MakeTarget, index)?;
                filesystem::attach(tree.as_fd(), target.as_fd()).at_index(Step::Attach, index)
            }
            Source::Image(volume) => {
                let (tree, leaf) = volume.attach(index)?;
                let target =
                    find_or_make(root, &self.target, leaf, FOLLOW).at_index(Step::MakeTarget, index)?;
                filesystem::attach(tree.as_fd(), target.as_fd()).at_index(Step::Attach, index)
            }
            Source::FileSystem {
                kind,
                source,
                parameters,
            } => {
                let mount = filesystem::make(kind, source, parameters, self.set, Step::MakeFileSystem)
                    .map_err(|failure| numbered(failure, index))?;
                if self.propagation != attributes::PRIVATE {
                    let change = Attributes {
                        set: 0,
                        clear: 0,
                        propagation: self.propagation,
                    };
                    attributes::set_attributes(mount.as_fd(), change, false)
                        .at_index(Step::MountAttributes, index)?;
                }
                self.attach_folder(root, mount.as_fd(), index)
            }
            Source::Cgroups {
                trees,
                links,
                options,
            } => {
                let tmpfs = filesystem::make(
                    c"tmpfs",
                    c"cgroup",
                    options,
                    NOSUID | NODEV | NOEXEC,
                    Step::MakeFileSystem,
                )
                .map_err(|failure| numbered(failure, index))?;
                self.attach_folder(root, tmpfs.as_fd(), index)?;
                self.attach_cgroups(&tmpfs, trees, links)
                    .at_index(Step::Attach, index)
            }
        }
    }

    fn attach_folder(&self, root: BorrowedFd<'_>, mount: BorrowedFd<'_>, index: usize) -> Walk<()> {
        let target =
            find_or_make(root, &self.target, Leaf::Folder, FOLLOW).at_index(Step::MakeTarget, index)?;
        filesystem::attach(mount, target.as_fd()).at_index(Step::Attach, index)
    }

    fn attach_cgroups(
        &self,
        tmpfs: &OwnedFd,
        trees: &[(CString, OwnedFd)],
        links: &[(CString, CString)],
    ) -> Result<(), Errno> {
        for (name, tree) in trees {
            mkdirat(tmpfs, name.as_c_str(), Mode::from_raw_mode(0o755))?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = openat(tmpfs, name.as_c_str(), flags, Mode::empty())?;
            filesystem::attach(tree.as_fd(), target.as_fd())?;
        }
        for (name, target) in links {
            symlinkat(target.as_c_str(), tmpfs, name.as_c_str())?;
        }
        let change = Attributes {
            set: self.set & RDONLY,
            clear: 0,
            propagation: 0,
        };
        attributes::set_attributes(tmpfs.as_fd(), change, false)
    }
}

fn numbered(mut failure: Failure, index: usize) -> Failure {
    failure.index = u16::try_from(index).unwrap_or(u16::MAX);
    failure
}
