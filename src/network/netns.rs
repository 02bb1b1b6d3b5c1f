//! A pod's namespaces, pinned as files: no process holds them.
//!
//! A short-lived thread moves itself into new namespaces, sets them up from
//! within and bind mounts each on a file; that is one line per namespace in the
//! node's mount table, and they live until it is unmounted.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use rustix::mount::UnmountFlags;

use super::{
    host::{self, in_thread, inside, open_netns, sysctl_path, write_sysctl},
    netlink::{self, LOOPBACK, Netlink},
};
use crate::{
    failpoint,
    kind::{HasKind, Kind},
    launcher::{Holder, Ranges},
    sys::{namespace, unshare::unshare},
};

/// Magic number of the file system of namespaces, linux/magic.h.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// Whether a namespace is pinned at the path.
pub fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC)
}

/// The namespaces a pod wants of its own.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub net: bool,
    pub ipc: bool,
    pub uts: bool,
    /// A user namespace with these ranges, which the others belong to.
    pub user: Option<&'a Ranges>,
    /// Written when `uts`; empty: left as inherited.
    pub hostname: &'a str,
    /// Keys as the kubelet gives them ("net.core.somaxconn"; slashes too).
    pub sysctls: &'a BTreeMap<String, String>,
}

/// The namespace a sysctl belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Net,
    Ipc,
}

/// Errors of making and removing namespaces.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Step(#[from] host::Error),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error(
        "sysctl {key} is not one of a namespace that the pod has of its own: it would change the whole node"
    )]
    SysctlOfNode { key: String },
    #[error("sysctl {key} is not in the pod's namespace on this kernel: remove it from the pod")]
    SysctlMissing { key: String },
    #[error("sysctl {key}: the kernel refuses the value {value:?}: {source}")]
    SysctlValue {
        key: String,
        value: String,
        source: io::Error,
    },
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::SysctlOfNode { .. } | Error::SysctlMissing { .. } | Error::SysctlValue { .. } => {
                Kind::InvalidArgument
            }
            Error::Step(e) if e.source.raw_os_error() == Some(libc::ENOSPC) => Kind::ResourceExhausted,
            Error::Step(_) | Error::Netlink(_) => Kind::Internal,
        }
    }
}

/// What a pod with a network of its own gets unless it asks otherwise, as
/// containerd gives it: ports below 1024 and ping need no capability.
const DEFAULT_SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// Makes the asked namespaces and pins each as `dir/{net,ipc,uts}`; `dir` must
/// exist. Writes hostname and sysctls and sets `lo` up. What an earlier attempt
/// left there is removed first; after an error nothing is left.
pub fn create(dir: &Path, want: &Wanted<'_>) -> Result<(), Error> {
    remove(dir)?;
    let sysctls = parse_sysctls(want)?;
    if !(want.net || want.ipc || want.uts || want.user.is_some()) {
        return Ok(());
    }
    let made = in_thread(dir, || {
        let failed = |e: io::Error| host::Error::new("make namespaces for", dir, e);
        match want.user {
            None => unshare(want.net, want.ipc, want.uts).map_err(failed)?,
            Some(ranges) => pin_user(dir, want, ranges)?,
        }
        set_up(want, &sysctls)?;
        for (name, wanted) in pins(want) {
            if wanted {
                failpoint::reach_part("pin namespace", name);
                pin(name, &dir.join(name))?;
            }
        }
        Ok(())
    });
    if made.is_err() {
        // The first error is the one to tell.
        let _ = remove(dir);
    }
    made
}

/// Pins a user namespace, and moves the calling thread into the others, which belong to it.
fn pin_user(dir: &Path, want: &Wanted<'_>, ranges: &Ranges) -> Result<(), host::Error> {
    let failed = |step, e: rustix::io::Errno| host::Error::new(step, dir.join("user"), io::Error::from(e));
    let wanted = [
        (want.net, namespace::NETWORK),
        (want.ipc, namespace::IPC),
        (want.uts, namespace::UTS),
    ];
    let kinds = wanted
        .iter()
        .filter(|(wanted, _)| *wanted)
        .fold(0, |kinds, (_, kind)| kinds | kind);
    let holder = Holder::new(kinds, ranges).map_err(|e| failed("make the user namespace", e))?;
    if kinds != 0 {
        namespace::join(holder.pidfd(), kinds)
            .map_err(|e| failed("enter the namespaces of the user namespace", e))?;
    }
    pin_file(&holder.path("user"), &dir.join("user"))
}

/// Writes the sysctls that are of the pod's link ("net.ipv4.conf.eth0.rp_filter"),
/// which [`create`] had to leave: call it when the pod has its network.
pub fn finish(dir: &Path, want: &Wanted<'_>) -> Result<(), Error> {
    let sysctls = parse_sysctls(want)?;
    let late: Vec<&Sysctl<'_>> = sysctls.iter().filter(|sysctl| sysctl.late).collect();
    if late.is_empty() {
        return Ok(());
    }
    let path = dir.join("net");
    let netns = open_netns(&path)?;
    inside(&netns, &path, || {
        late.iter().try_for_each(|sysctl| write(sysctl, want))
    })
}

/// Unpins whatever is in `dir`. Idempotent; the namespaces themselves go when
/// the last process in them has gone.
pub fn remove(dir: &Path) -> Result<(), Error> {
    for name in ["net", "ipc", "uts", "user"] {
        let path = dir.join(name);
        // Detached: a process that has the file open must not keep it in place.
        // More than once: an attempt that died may have been repeated over it.
        loop {
            match rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
                Err(e) => return Err(host::Error::new("unpin namespace", path, e).into()),
            }
        }
        failpoint::reach_part("unpin namespace", name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(host::Error::new("remove namespace file", path, e).into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// The namespace that a sysctl belongs to. None: it is one of the whole node,
/// and a pod may not have it. The list is the kubelet's of namespaced sysctls.
pub fn sysctl_scope(key: &str) -> Option<Scope> {
    let parts = sysctl_parts(key)?;
    match parts.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["net", _, ..] => Some(Scope::Net),
        ["kernel", name] if *name == "sem" || name.starts_with("shm") || name.starts_with("msg") => {
            Some(Scope::Ipc)
        }
        ["fs", "mqueue", _] => Some(Scope::Ipc),
        _ => None,
    }
}

/// The parts of a key. As sysctl(8) has it, the first separator tells which one
/// separates; the other is then a dot inside a name ("net.ipv4.conf.eth0/7.mtu").
fn sysctl_parts(key: &str) -> Option<Vec<String>> {
    let separator = key.find(['.', '/']).and_then(|at| key.get(at..=at))?;
    let parts: Vec<String> = key.split(separator).map(|part| part.replace('/', ".")).collect();
    let plain = |part: &String| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    parts.iter().all(plain).then_some(parts)
}

struct Sysctl<'a> {
    key: &'a str,
    path: PathBuf,
    value: &'a str,
    /// Of a link that the namespace does not have at first.
    late: bool,
}

fn parse_sysctls<'a>(want: &Wanted<'a>) -> Result<Vec<Sysctl<'a>>, Error> {
    let mut all = Vec::new();
    let defaults = DEFAULT_SYSCTLS.iter().filter(|_| want.net).copied();
    let asked = want
        .sysctls
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()));
    for (key, value) in defaults.chain(asked) {
        let own = match sysctl_scope(key) {
            Some(Scope::Net) => want.net,
            Some(Scope::Ipc) => want.ipc,
            None => false,
        };
        let refuse = || Error::SysctlOfNode { key: key.to_owned() };
        let parts = if own {
            sysctl_parts(key).ok_or_else(refuse)?
        } else {
            return Err(refuse());
        };
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let path = sysctl_path(&parts);
        let late = matches!(parts.as_slice(), ["net", _, "conf" | "neigh", link, ..]
            if !matches!(*link, "all" | "default" | "lo"));
        all.push(Sysctl {
            key,
            path,
            value,
            late,
        });
    }
    Ok(all)
}

/// In the new namespaces.
fn set_up(want: &Wanted<'_>, sysctls: &[Sysctl<'_>]) -> Result<(), Error> {
    if want.uts && !want.hostname.is_empty() {
        rustix::system::sethostname(want.hostname.as_bytes())
            .map_err(|e| host::Error::new("set hostname", want.hostname, e))?;
    }
    for sysctl in sysctls.iter().filter(|sysctl| !sysctl.late) {
        write(sysctl, want)?;
    }
    if want.net {
        Netlink::open()?.set_up("lo", LOOPBACK)?;
    }
    Ok(())
}

fn write(sysctl: &Sysctl<'_>, want: &Wanted<'_>) -> Result<(), Error> {
    let key = sysctl.key.to_owned();
    let mut written = write_sysctl(&sysctl.path, sysctl.value);
    if let (Err(error), Some(ranges)) = (&written, want.user)
        && error.source.kind() == io::ErrorKind::PermissionDenied
    {
        written = as_root_of(ranges, || write_sysctl(&sysctl.path, sysctl.value));
    }
    match written {
        Ok(()) => Ok(()),
        // A kernel without the default's file has not the restriction either.
        Err(e) if e.is_missing() && !want.sysctls.contains_key(&key) => Ok(()),
        Err(e) if e.is_missing() => Err(Error::SysctlMissing { key }),
        Err(e) => Err(Error::SysctlValue {
            key,
            value: sysctl.value.to_owned(),
            source: e.source,
        }),
    }
}

fn pins(want: &Wanted<'_>) -> [(&'static str, bool); 3] {
    [("net", want.net), ("ipc", want.ipc), ("uts", want.uts)]
}

/// Does something as the root of the user namespace, for the calling thread only: newer
/// kernels let nobody else write the sysctls of an ipc namespace, the node's root neither.
fn as_root_of(ranges: &Ranges, work: impl FnOnce() -> Result<(), host::Error>) -> Result<(), host::Error> {
    let become_user = |uid: u32| {
        let (root, uid) = (rustix::thread::Uid::ROOT, rustix::thread::Uid::from_raw(uid));
        rustix::thread::set_thread_res_uid(root, uid, root)
            .map_err(|e| host::Error::new("become the root of", "the user namespace", e))
    };
    become_user(ranges.host_uid(0).unwrap_or(0))?;
    let done = work();
    become_user(0)?;
    done
}

fn pin(name: &str, path: &Path) -> Result<(), host::Error> {
    pin_file(&format!("/proc/thread-self/ns/{name}"), path)
}

fn pin_file(namespace: &str, path: &Path) -> Result<(), host::Error> {
    fs::File::create_new(path).map_err(|e| host::Error::new("make namespace file", path, e))?;
    rustix::mount::mount_bind(namespace, path).map_err(|e| host::Error::new("pin namespace", path, e))
}
