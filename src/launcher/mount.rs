//! The mounts of a plan: sources are opened as detached trees in the parent, before
//! anything of the container runs, and attached by the child in the plan's order.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::cgroup::{Cgroup, Layout};
use crate::proto::plan::{Mount, Propagation, mount::Kind};
use crate::sys::mount::{self as attributes, Attributes};

use super::Error;
use super::filesystem::{self, NODEV, NOEXEC, NOSUID, Parameter, RDONLY};
use super::image_volume::ImageVolume;
use super::overlay::Problem;
use super::path::{FOLLOW, Leaf, NO_LINKS, find_or_make};
use super::step::{At, Failure, Step, Walk};
use super::user_namespace::{Holder, Ranges};
use super::{device, plan};

/// linux/magic.h
const PROC_MAGIC: i64 = 0x9fa0;

#[derive(Debug)]
pub struct Prepared {
    target: CString,
    /// How the target is found.
    resolve: ResolveFlags,
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

/// What mounts are made with.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The container's; it exists already.
    pub cgroup: &'a Cgroup,
    /// Where the root will be.
    pub rootfs: &'a CStr,
    /// The SELinux label of its files; empty for none.
    pub label: &'a str,
    /// The container's user namespace and its ranges, when it has one.
    pub user: Option<(BorrowedFd<'a>, &'a Ranges)>,
    /// What is made in /dev: in a user namespace nobody can make a device node, so the
    /// file system comes with them.
    pub devices: &'a [device::Prepared],
    /// The pid namespace that a procfs is of, if not that of the process that makes it.
    pub pids: Option<BorrowedFd<'a>>,
}

/// Opens what `mount` needs.
pub fn prepare(index: usize, mount: &Mount, place: Place<'_>) -> Result<Prepared, Problem> {
    let name = |field: &str| format!("mounts[{index}].{field}");
    let target = plan::path(&name("target"), &mount.target).map_err(Problem::Plan)?;
    let kind = Kind::try_from(mount.kind)
        .map_err(|_| Problem::Plan(Error::plan(name("kind"), format!("{} is unknown", mount.kind))))?;
    let propagation = propagation(mount.propagation, &name("propagation")).map_err(Problem::Plan)?;
    let source = match kind {
        Kind::Bind => bind(index, mount, propagation, place.user)?,
        Kind::Overlay => {
            let user = place.user.map(|(user, _)| user);
            Source::Image(ImageVolume::prepare(
                index,
                mount,
                place.rootfs,
                place.label,
                user,
            )?)
        }
        Kind::Tmpfs if is_dev(mount) && place.user.is_some() => dev(index, mount, place)?,
        Kind::Cgroup
            if !Layout::detect()
                .map_err(|e| Problem::Plan(e.into()))?
                .is_pure_v2() =>
        {
            cgroups(index, mount, place.cgroup)?
        }
        _ => file_system(index, mount, kind, place).map_err(Problem::Plan)?,
    };
    // What the kernel's own file systems are mounted on is no link: masks and read-only
    // paths are found by the same names later, when a link may lead elsewhere, and what
    // they should have covered would lie open (CVE-2019-19921 and 2023-27561 of runc).
    let resolve = match kind {
        Kind::Bind | Kind::Overlay => FOLLOW,
        Kind::Tmpfs if !is_dev(mount) => FOLLOW,
        _ => NO_LINKS,
    };
    Ok(Prepared {
        target,
        resolve,
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
fn bind(
    index: usize,
    mount: &Mount,
    propagation: u64,
    user: Option<(BorrowedFd<'_>, &Ranges)>,
) -> Walk<Source> {
    let source = plan::c_string(&mount.source).at_index(Step::OpenSource, index)?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if mount.bind_recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(CWD, source, flags).at_index(Step::OpenSource, index)?;
    map_owners(index, mount, tree.as_fd(), user)?;
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

/// Shows the owners as the mount wants it: mostly in the container's own namespace.
fn map_owners(
    index: usize,
    mount: &Mount,
    tree: BorrowedFd<'_>,
    user: Option<(BorrowedFd<'_>, &Ranges)>,
) -> Walk<()> {
    let wanted = Ranges::of_plan(&mount.uids, &mount.gids);
    if wanted == Ranges::default() {
        return Ok(());
    }
    if let Some((user, ranges)) = user
        && *ranges == wanted
    {
        return attributes::map_owners(tree, user, mount.bind_recursive).at_index(Step::MapOwners, index);
    }
    let made = Holder::new(0, &wanted).and_then(|holder| holder.open());
    let made = made.at_index(Step::UserNamespace, index)?;
    attributes::map_owners(tree, made.as_fd(), mount.bind_recursive).at_index(Step::MapOwners, index)
}

/// Whether it is the tmpfs that a container has for devices.
pub fn is_dev(mount: &Mount) -> bool {
    mount.kind() == Kind::Tmpfs && mount.target.trim_end_matches('/') == "/dev"
}

/// /dev of a container in a user namespace, with its nodes.
fn dev(index: usize, mount: &Mount, place: Place<'_>) -> Result<Source, Problem> {
    let Source::FileSystem {
        kind,
        source,
        parameters,
    } = file_system(index, mount, Kind::Tmpfs, place).map_err(Problem::Plan)?
    else {
        return Err(Problem::Step(Failure::new(Step::MakeFileSystem, Errno::INVAL)));
    };
    let ranges = place.user.map(|(_, ranges)| ranges.clone()).unwrap_or_default();
    let tree = filesystem::make(kind, &source, &parameters, mount.attr_set, Step::MakeFileSystem)
        .map_err(|failure| numbered(failure, index))?;
    for (index, device) in place.devices.iter().enumerate() {
        device
            .make_in_dev(tree.as_fd(), &ranges)
            .at_index(Step::MakeDevice, index)?;
    }
    device::own(tree.as_fd(), &ranges).at_index(Step::MakeFileSystem, index)?;
    Ok(Source::Tree {
        tree,
        leaf: Leaf::Folder,
    })
}

fn file_system(index: usize, mount: &Mount, kind: Kind, place: Place<'_>) -> Result<Source, Error> {
    // What else there is has labels of its own.
    let labelled = matches!(kind, Kind::Tmpfs | Kind::Devpts) && !place.label.is_empty();
    let context = labelled.then(|| format!("context={}", place.label));
    let pids = place.pids.filter(|_| kind == Kind::Proc);
    let kind = match kind {
        Kind::Proc => c"proc",
        Kind::Sysfs => c"sysfs",
        Kind::Tmpfs => c"tmpfs",
        Kind::Devpts => c"devpts",
        Kind::Mqueue => c"mqueue",
        Kind::Cgroup | Kind::Bind | Kind::Overlay => c"cgroup2",
    };
    let mut parameters = Vec::from_iter(pids.and_then(filesystem::pid_namespace));
    for option in mount.data.iter().chain(&context) {
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
    /// Nothing of the node has to be in sight of the child for it.
    pub fn is_detached(&self) -> bool {
        match &self.source {
            Source::Image(volume) => volume.is_detached(),
            Source::Tree { .. } | Source::FileSystem { .. } | Source::Cgroups { .. } => true,
        }
    }

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
            Source::Tree { tree, leaf } => self.attach_tree(root, tree.as_fd(), *leaf, index),
            Source::Image(volume) => {
                let (tree, leaf) = volume.attach(root, index)?;
                self.attach_tree(root, tree.as_fd(), leaf, index)
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
        self.attach_tree(root, mount, Leaf::Folder, index)
    }

    fn attach_tree(&self, root: BorrowedFd<'_>, tree: BorrowedFd<'_>, leaf: Leaf, index: usize) -> Walk<()> {
        let target =
            find_or_make(root, &self.target, leaf, self.resolve).at_index(Step::MakeTarget, index)?;
        self.check(root, target.as_fd())
            .at_index(Step::CheckTarget, index)?;
        filesystem::attach(tree, target.as_fd()).at_index(Step::Attach, index)
    }

    /// Where a link has led to. Whatever is mounted over the root is the root of those who
    /// join the mount namespace later, and is none of ours; what covers parts of procfs
    /// deceives them. By its name alone a target there was refused before.
    fn check(&self, root: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
        let (top, found) = (fstat(root)?, fstat(target)?);
        if (top.st_dev, top.st_ino) == (found.st_dev, found.st_ino) {
            return Err(Errno::BUSY);
        }
        let named = matches!(
            self.target.to_bytes().strip_prefix(b"/proc"),
            Some([] | [b'/', ..])
        );
        if !named && i128::from(fstatfs(target)?.f_type) == i128::from(PROC_MAGIC) {
            return Err(Errno::ACCESS);
        }
        Ok(())
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
