//! The root file system of a container: made detached, so that the host's mount
//! table never sees it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsOpenFlags, MountFlags, OpenTreeFlags, fsconfig_set_flag, fsconfig_set_string, fsopen, open_tree,
};

use crate::proto::plan::Rootfs;
use crate::sys::mount::{self, Attributes};

use super::filesystem::{self, NODEV, NOEXEC, NOSUID, RDONLY, complaint};
use super::mapped_layers::{MappedLayers, mapped};
use super::step::{At, Failure, Step, Walk};
use super::{Error, plan};

/// A root that is ready to be attached in the child.
#[derive(Debug)]
pub enum Root {
    Detached(OwnedFd),
    /// For kernels without `lowerdir+` (before 6.8): mounted by the child, whose
    /// working folder is `folder`, so that the names of many layers fit into the one page that mount(2) takes.
    Legacy {
        folder: CString,
        options: CString,
    },
}

/// fsconfig takes no longer string.
const FSCONFIG_MAX: usize = 255;
/// mount(2) takes one page of options.
const OPTIONS_MAX: usize = 4095;

/// How [`prepare`] makes an overlay; tests force the old way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Newest,
    /// Mapped layers are attached for a moment.
    #[cfg(test)]
    Attached,
    #[cfg(test)]
    Legacy,
}

/// The user namespace through which the owners of layers are shown, and a folder where
/// their mount can be for a moment.
#[derive(Clone, Copy, Debug)]
pub struct Mapping<'a> {
    pub user: BorrowedFd<'a>,
    pub mount_point: &'a CStr,
}

/// What `prepare` fails with: a plan that is wrong, or a step.
#[derive(Debug)]
pub enum Problem {
    Plan(Error),
    Step(Failure),
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::Step(failure)
    }
}

/// An empty read-only tmpfs, the root of a sandbox's init.
pub fn empty() -> Walk<Root> {
    let size = filesystem::parameter("size=4k")
        .into_iter()
        .chain(filesystem::parameter("mode=555"));
    let parameters: Vec<_> = size.collect();
    filesystem::make(
        c"tmpfs",
        c"berth",
        &parameters,
        RDONLY | NOSUID | NODEV | NOEXEC,
        Step::Overlay,
    )
    .map(Root::Detached)
}

pub fn prepare(rootfs: &Rootfs, way: Way, mapping: Option<Mapping<'_>>) -> Result<Root, Problem> {
    let bad = |field: &str, reason: &str| Problem::Plan(Error::plan(field, reason));
    if rootfs.lower.is_empty() {
        return Err(bad("rootfs.lower", "there is no layer"));
    }
    if rootfs.upper.is_empty() != rootfs.work.is_empty() {
        return Err(bad("rootfs.work", "upper and work go together"));
    }
    let named = [("rootfs.upper", &rootfs.upper), ("rootfs.work", &rootfs.work)];
    let lower = rootfs.lower.iter().map(|layer| ("rootfs.lower", layer));
    for (field, path) in lower.chain(named) {
        if (!path.is_empty() && !path.starts_with('/')) || path.contains('\0') {
            return Err(bad(field, &format!("{path:?} is not an absolute path")));
        }
    }
    if rootfs.upper.is_empty() && rootfs.lower.len() == 1 {
        return Ok(single(rootfs, mapping)?);
    }
    if let Some(mapping) = mapping {
        let old = || bad("namespaces", "layers in a user namespace need Linux 6.7");
        return over_mapped(rootfs, way, mapping)?.ok_or_else(old);
    }
    if way == Way::Newest
        && let Some(root) = detached(rootfs, None)?
    {
        return Ok(root);
    }
    legacy(rootfs)
}

/// None: this kernel cannot take layers one by one.
fn over_mapped(rootfs: &Rootfs, way: Way, mapping: Mapping<'_>) -> Walk<Option<Root>> {
    let mut layers = MappedLayers::open(&rootfs.lower, mapping.user)?;
    if way == Way::Newest {
        match detached(rootfs, Some(&layers)) {
            Err(failure) if failure.errno == Errno::INVAL => {}
            made => return made,
        }
    }
    layers.attach(mapping.mount_point)?;
    detached(rootfs, Some(&layers))
}

/// One layer and nothing to write to: overlay wants two, so the layer itself is it.
fn single(rootfs: &Rootfs, mapping: Option<Mapping<'_>>) -> Walk<Root> {
    let layer = rootfs.lower.first().map_or("", |layer| layer);
    if let Some(mapping) = mapping {
        return mapped(layer, mapping.user).map(Root::Detached);
    }
    let layer = plan::c_string(layer).at(Step::OpenLayer)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, layer, flags).at(Step::OpenLayer)?;
    // The layer is shared with other containers: nothing may be written to it.
    let attributes = Attributes {
        set: RDONLY,
        clear: 0,
        propagation: mount::PRIVATE,
    };
    mount::set_attributes(tree.as_fd(), attributes, false).at(Step::Overlay)?;
    Ok(Root::Detached(tree))
}

/// None: this kernel cannot take layers one by one.
fn detached(rootfs: &Rootfs, mapped: Option<&MappedLayers>) -> Walk<Option<Root>> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).at(Step::Overlay)?;
    let explained = |mut failure: Failure| {
        failure.detail = complaint(context.as_fd());
        failure
    };
    fsconfig_set_string(&context, "source", "overlay").at(Step::Overlay)?;
    // Long paths are given as descriptors, which live until the overlay has them.
    let mut opened = Vec::new();
    for (index, layer) in rootfs.lower.iter().enumerate() {
        let path = mapped.map_or_else(|| layer.clone(), |mapped| mapped.path(layer));
        let path = shorten(&path, &mut opened).at_index(Step::OpenLayer, index)?;
        match fsconfig_set_string(&context, "lowerdir+", path.as_str()) {
            Err(Errno::INVAL) if index == 0 => return Ok(None),
            answer => answer.at_index(Step::OpenLayer, index).map_err(explained)?,
        }
    }
    let set = |key: &str, value: &str| {
        fsconfig_set_string(&context, key, value)
            .at(Step::Overlay)
            .map_err(explained)
    };
    if !rootfs.upper.is_empty() {
        set(
            "upperdir",
            &shorten(&rootfs.upper, &mut opened).at(Step::Overlay)?,
        )?;
        set("workdir", &shorten(&rootfs.work, &mut opened).at(Step::Overlay)?)?;
        // No sync of the upper layer at unmount: it does not outlive the container.
        fsconfig_set_flag(&context, "volatile")
            .at(Step::Overlay)
            .map_err(explained)?;
    }
    if !rootfs.mount_label.is_empty() {
        set("context", &rootfs.mount_label)?;
    }
    // Where the kernel's default is on, an index would refuse layers that were copied. Not known to all kernels.
    let _ = fsconfig_set_string(&context, "index", "off");
    let mounted = filesystem::mount(&context, 0)
        .at(Step::Overlay)
        .map_err(explained)?;
    Ok(Some(Root::Detached(mounted)))
}

fn shorten(path: &str, opened: &mut Vec<OwnedFd>) -> Result<String, Errno> {
    if path.len() <= FSCONFIG_MAX {
        return Ok(path.to_owned());
    }
    let folder = open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let short = format!("/proc/self/fd/{}", folder.as_raw_fd());
    opened.push(folder);
    Ok(short)
}

fn legacy(rootfs: &Rootfs) -> Result<Root, Problem> {
    let first = Path::new(rootfs.lower.first().map_or("/", |layer| layer));
    let folder = first.parent().unwrap_or(Path::new("/"));
    let names: Vec<String> = rootfs
        .lower
        .iter()
        .map(|layer| {
            let relative = Path::new(layer).strip_prefix(folder).ok().and_then(Path::to_str);
            escape(relative.filter(|name| !name.is_empty()).unwrap_or(layer))
        })
        .collect();
    let mut options = format!("lowerdir={}", names.join(":"));
    if !rootfs.upper.is_empty() {
        let (upper, work) = (escape(&rootfs.upper), escape(&rootfs.work));
        options.push_str(&format!(",upperdir={upper},workdir={work},volatile"));
    }
    if !rootfs.mount_label.is_empty() {
        options.push_str(&format!(",context=\"{}\"", rootfs.mount_label));
    }
    if options.len() > OPTIONS_MAX {
        return Err(Problem::Plan(Error::plan(
            "rootfs.lower",
            format!(
                "{} layers are too many for this kernel; 6.8 takes 500",
                rootfs.lower.len()
            ),
        )));
    }
    Ok(Root::Legacy {
        folder: CString::new(folder.as_os_str().as_bytes())
            .map_err(|_| Failure::new(Step::OpenLayer, Errno::INVAL))?,
        options: plan::c_string(&options).at(Step::Overlay)?,
    })
}

/// Colon and comma separate, backslash escapes them.
fn escape(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for letter in path.chars() {
        if matches!(letter, ':' | ',' | '\\') {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

impl Root {
    pub fn descriptor(&self) -> Option<RawFd> {
        match self {
            Self::Detached(fd) => Some(fd.as_raw_fd()),
            Self::Legacy { .. } => None,
        }
    }

    /// Nothing of the node has to be in sight of the child for it.
    pub fn is_detached(&self) -> bool {
        matches!(self, Self::Detached(_))
    }

    /// In the child: puts it on top of the root of the container, and opens it.
    /// `rootfs` is where that is; in a user namespace no path leads there any more.
    pub fn attach_over(&self, root: BorrowedFd<'_>, rootfs: &CStr) -> Walk<OwnedFd> {
        match self {
            Self::Detached(fd) => {
                filesystem::attach(fd.as_fd(), root).at(Step::AttachRoot)?;
                rustix::io::fcntl_dupfd_cloexec(fd, 3).at(Step::OpenRoot)
            }
            Self::Legacy { .. } => self.attach(rootfs),
        }
    }

    /// In the child, in its own mount namespace: puts the root on the folder `rootfs`
    /// and opens it.
    pub fn attach(&self, rootfs: &std::ffi::CStr) -> Walk<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match self {
            Self::Detached(fd) => {
                let target = open(rootfs, flags, Mode::empty()).at(Step::OpenRoot)?;
                filesystem::attach(fd.as_fd(), target.as_fd()).at(Step::AttachRoot)?;
            }
            Self::Legacy { folder, options } => {
                rustix::process::chdir(folder.as_c_str()).at(Step::OpenLayer)?;
                rustix::mount::mount(
                    c"overlay",
                    rootfs,
                    c"overlay",
                    MountFlags::empty(),
                    options.as_c_str(),
                )
                .at(Step::AttachRoot)?;
            }
        }
        open(rootfs, flags, Mode::empty()).at(Step::OpenRoot)
    }
}
