//! Turns a plan into what the child needs: C strings, descriptors, arrays. All
//! allocation of a launch is here, before clone.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::proto::plan::{LaunchPlan, mount::Kind};

use super::filesystem::{Parameter, parameter};
use super::namespace::Namespaces;
use super::overlay::{self, Problem, Root, Way};
use super::sandbox_init::NOBODY;
use super::step::{At, Step};
use super::user_namespace::Ranges;
use super::{Error, Stdio, device, hook, mount, namespace, plan, process};

/// The mount point of the root in a bare mount namespace.
const BARE_ROOT: &CStr = c"/root";

#[derive(Debug)]
pub struct Prepared {
    pub namespaces: Namespaces,
    pub hostname: Option<CString>,
    /// The folder that is the mount point of the root: on the node, or [`BARE_ROOT`].
    pub rootfs: CString,
    pub root: Root,
    pub readonly_root: bool,
    pub root_propagation: u64,
    pub mounts: Vec<mount::Prepared>,
    pub devices: Vec<device::Prepared>,
    /// /dev is the container's, not a folder of the host.
    pub own_dev: bool,
    pub kcore: bool,
    pub masked: Vec<CString>,
    pub mask_options: Vec<Parameter>,
    pub readonly: Vec<CString>,
    /// File below procfs, and value.
    pub sysctls: Vec<(CString, CString)>,
    /// None: the sandbox's init.
    pub process: Option<process::Prepared>,
    pub oom_score_adj: Option<i32>,
    /// The user of a sandbox's init.
    pub nobody: u32,
    pub stdio: [OwnedFd; 3],
    /// Of the v1 cgroups that the child joins.
    pub tasks: Vec<OwnedFd>,
    /// Hooks run between the mounts and the change of the root.
    pub waits_for_hooks: bool,
    /// Descriptors that the child keeps, in rising order.
    pub keep: Vec<RawFd>,
}

/// What can be said of a plan before anything is made.
#[derive(Debug)]
pub struct Checked {
    namespaces: Namespaces,
    /// Of its user namespace, when it has one.
    user: Option<Ranges>,
    process: Option<process::Prepared>,
    devices: Vec<device::Prepared>,
    masked: Vec<CString>,
    readonly: Vec<CString>,
    sysctls: Vec<(CString, CString)>,
    root_propagation: u64,
}

pub fn check(plan: &LaunchPlan) -> Result<Checked, Problem> {
    let namespaces = namespace::prepare(&plan.namespaces)?;
    let user = ranges(plan, &namespaces).map_err(Problem::Plan)?;
    let process = match (&plan.process, plan.sandbox_init) {
        (_, true) => None,
        (Some(process), false) => Some(process::prepare(process, user.as_ref()).map_err(Problem::Plan)?),
        (None, false) => return Err(Problem::Plan(Error::plan("process", "it is missing"))),
    };
    let paths = |field: &str, paths: &[String]| {
        paths
            .iter()
            .map(|path| plan::path(field, path))
            .collect::<Result<Vec<_>, _>>()
            .map_err(Problem::Plan)
    };
    let devices = plan
        .devices
        .iter()
        .enumerate()
        .map(|(index, device)| device::prepare(index, device));
    Ok(Checked {
        namespaces,
        user,
        process,
        devices: devices.collect::<Result<_, _>>().map_err(Problem::Plan)?,
        masked: paths("masked_paths", &plan.masked_paths)?,
        readonly: paths("readonly_paths", &plan.readonly_paths)?,
        sysctls: sysctls(plan).map_err(Problem::Plan)?,
        root_propagation: mount::propagation(plan.rootfs_propagation, "rootfs_propagation")
            .map_err(Problem::Plan)?,
    })
}

/// The rest: opens the sources of mounts, makes the overlay.
pub fn prepare(
    plan: &LaunchPlan,
    checked: Checked,
    bundle: &Path,
    stdio: Stdio,
    cgroup: &Cgroup,
    way: Way,
) -> Result<Prepared, Problem> {
    let rootfs = bundle.join("rootfs");
    match mkdirat(CWD, &rootfs, Mode::RWXU) {
        Err(Errno::EXIST) => {}
        answer => answer.at(Step::OpenRoot)?,
    }
    let mount_point = plan::field("bundle", rootfs.as_os_str().as_bytes()).map_err(Problem::Plan)?;
    let user = checked.namespaces.user();
    let mapping = user.map(|user| overlay::Mapping {
        user,
        mount_point: &mount_point,
    });
    let (root, readonly_root) = match &plan.rootfs {
        _ if plan.sandbox_init => (overlay::empty()?, false),
        Some(rootfs) => (overlay::prepare(rootfs, way, mapping)?, rootfs.readonly),
        None => return Err(Problem::Plan(Error::plan("rootfs", "it is missing"))),
    };
    let mounts: &[_] = if plan.sandbox_init { &[] } else { &plan.mounts };
    let place = mount::Place {
        cgroup,
        rootfs: &mount_point,
        label: plan.rootfs.as_ref().map_or("", |rootfs| &rootfs.mount_label),
        user: user.zip(checked.user.as_ref()),
        devices: &checked.devices,
        pids: checked.namespaces.late_pids(),
    };
    let prepared_mounts = mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| mount::prepare(index, mount, place))
        .collect::<Result<_, _>>()?;
    // Those of a user namespace came with /dev.
    let made = user.is_some() && mounts.iter().any(mount::is_dev);
    let host_uid = checked.process.as_ref().map(|process| process.host_uid);
    let nobody = checked.user.as_ref().map_or(NOBODY, |ranges| {
        if ranges.host_uid(NOBODY).is_some() && ranges.host_gid(NOBODY).is_some() {
            NOBODY
        } else {
            0
        }
    });
    let mut prepared = Prepared {
        hostname: hostname(plan, &checked.namespaces).map_err(Problem::Plan)?,
        namespaces: checked.namespaces,
        root,
        readonly_root,
        root_propagation: checked.root_propagation,
        mounts: prepared_mounts,
        rootfs: mount_point,
        devices: if made { Vec::new() } else { checked.devices },
        own_dev: !mounts
            .iter()
            .any(|mount| mount.kind() == Kind::Bind && mount.target.trim_end_matches('/') == "/dev"),
        kcore: Path::new("/proc/kcore").exists(),
        masked: checked.masked,
        mask_options: ["size=4k", "mode=755"]
            .into_iter()
            .filter_map(parameter)
            .collect(),
        readonly: checked.readonly,
        sysctls: checked.sysctls,
        oom_score_adj: process::oom_score_adj(plan.process.as_ref().and_then(|p| p.oom_score_adj))
            .map_err(Problem::Plan)?,
        nobody,
        process: checked.process,
        waits_for_hooks: plan.hooks.as_ref().is_some_and(hook::any_before_pivot),
        stdio: stdio.into_array(host_uid.unwrap_or(0)).at(Step::Stdio)?,
        tasks: cgroup.tasks().map_err(|error| Problem::Plan(error.into()))?,
        keep: Vec::new(),
    };
    let bare = plan
        .surroundings
        .as_ref()
        .map_or("", |around| &around.bare_mounts);
    if prepared.needs_nothing_of_the_node() && prepared.namespaces.begin_with_mounts_of(bare) {
        prepared.rootfs = BARE_ROOT.to_owned();
    }
    let mut keep = Vec::new();
    prepared.namespaces.descriptors(&mut keep);
    keep.extend(prepared.root.descriptor());
    prepared
        .mounts
        .iter()
        .for_each(|mount| mount.descriptors(&mut keep));
    keep.extend(
        prepared
            .stdio
            .iter()
            .chain(&prepared.tasks)
            .map(AsRawFd::as_raw_fd),
    );
    prepared.keep = keep;
    Ok(prepared)
}

impl Prepared {
    /// The child mounts what was prepared, and no hook runs that has to find its program
    /// by a path of the node.
    fn needs_nothing_of_the_node(&self) -> bool {
        let detached = self.root.is_detached() && self.mounts.iter().all(mount::Prepared::is_detached);
        detached && !self.waits_for_hooks
    }

    /// The channel is made last.
    pub fn keep(&mut self, fd: RawFd) {
        self.keep.push(fd);
        self.keep.sort_unstable();
    }
}

/// The ranges of the user namespace that is joined.
fn ranges(plan: &LaunchPlan, namespaces: &Namespaces) -> Result<Option<Ranges>, Error> {
    let ranges = Ranges::of_plan(&plan.uids, &plan.gids);
    match (namespaces.user(), ranges.host_uid(0), ranges.host_gid(0)) {
        (None, _, _) if ranges == Ranges::default() => Ok(None),
        (Some(_), Some(_), Some(_)) => Ok(Some(ranges)),
        (None, _, _) => Err(Error::plan("uids", "there is no user namespace for these ranges")),
        (Some(_), _, _) => Err(Error::plan(
            "uids",
            "the user namespace has no root: ranges must hold user and group 0",
        )),
    }
}

fn hostname(plan: &LaunchPlan, namespaces: &Namespaces) -> Result<Option<CString>, Error> {
    if plan.hostname.is_empty() {
        return Ok(None);
    }
    if !namespaces.has_own_uts() {
        return Err(Error::plan(
            "hostname",
            "it would be set in a uts namespace that is not the container's own",
        ));
    }
    plan::field("hostname", plan.hostname.as_str()).map(Some)
}

/// In the order of their keys, which is that of [`super::error`]'s index. Keys have dots for slashes, as
/// sysctl(8) writes them; in "net/ipv4/conf/eth0.1/forwarding" the slash comes first and they change roles.
fn sysctls(plan: &LaunchPlan) -> Result<Vec<(CString, CString)>, Error> {
    let mut sorted: Vec<_> = plan.sysctls.iter().collect();
    sorted.sort_unstable();
    sorted
        .into_iter()
        .map(|(key, value)| {
            let field = format!("sysctls[{key:?}]");
            let slash_first = key
                .find(['.', '/'])
                .is_some_and(|at| key.get(at..=at) == Some("/"));
            let path = if slash_first {
                key.clone()
            } else {
                key.chars()
                    .map(|letter| match letter {
                        '.' => '/',
                        '/' => '.',
                        other => other,
                    })
                    .collect()
            };
            if path.split('/').any(|name| matches!(name, "" | "." | "..")) {
                return Err(Error::plan(field, "it is not the name of a sysctl"));
            }
            Ok((
                plan::field(&field, format!("sys/{path}"))?,
                plan::field(&field, value.as_str())?,
            ))
        })
        .collect()
}
