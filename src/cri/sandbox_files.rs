//! The files of a sandbox that its containers see: /etc/resolv.conf,
//! /etc/hostname, /etc/hosts and /dev/shm.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};

use super::error::{Error, io};
use crate::{image::relabel, proto::cri};

/// Size of a pod's /dev/shm, the peers' default.
const SHM_OPTIONS: &str = "mode=1777,size=67108864";

pub fn resolv_conf(sandbox: &Path) -> PathBuf {
    sandbox.join("resolv.conf")
}

pub fn hostname(sandbox: &Path) -> PathBuf {
    sandbox.join("hostname")
}

pub fn hosts(sandbox: &Path) -> PathBuf {
    sandbox.join("hosts")
}

pub fn shm(sandbox: &Path) -> PathBuf {
    sandbox.join("shm")
}

/// Writes the files, and mounts the pod's shared memory when its ipc namespace
/// is its own. `label`: the SELinux label of all that, empty for none. Blocks.
pub fn write(
    folder: &Path,
    id: &str,
    config: &cri::PodSandboxConfig,
    name: &str,
    own_ipc: bool,
    label: &str,
) -> Result<(), Error> {
    let resolver = match &config.dns_config {
        Some(dns) => render(dns)?,
        // Nothing asked: the node's own resolver, as the peers do.
        None => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    let node_hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    for (path, text) in [
        (resolv_conf(folder), resolver),
        (hostname(folder), format!("{name}\n")),
        (hosts(folder), node_hosts),
    ] {
        fs::write(&path, text).map_err(io("sandbox", id, "write", &path))?;
        // Read by every user of the pod's containers, whatever our umask is.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(io(
            "sandbox",
            id,
            "set the mode of",
            &path,
        ))?;
        if !label.is_empty() {
            relabel::relabel(&path, label).map_err(io("sandbox", id, "set the SELinux label of", &path))?;
        }
    }
    if own_ipc {
        let path = shm(folder);
        fs::create_dir_all(&path).map_err(io("sandbox", id, "make folder", &path))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let context = if label.is_empty() {
            String::new()
        } else {
            format!(",context=\"{label}\"")
        };
        let options = format!("{SHM_OPTIONS}{context}");
        let options = std::ffi::CString::new(options)
            .map_err(|e| io("sandbox", id, "mount tmpfs at", &path)(e.into()))?;
        rustix::mount::mount("shm", &path, "tmpfs", flags, options.as_c_str())
            .map_err(|e| io("sandbox", id, "mount tmpfs at", &path)(e.into()))?;
    }
    Ok(())
}

/// Takes the shared memory away. What is not mounted is no error.
pub fn unmount_shm(folder: &Path, id: &str) -> Result<(), Error> {
    let path = shm(folder);
    loop {
        match rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: no mount point; a crash can have left two mounts, so ask until it says so.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(e) => return Err(io("sandbox", id, "unmount", &path)(e.into())),
        }
    }
}

/// resolv.conf(5). The request is refused rather than written when a value would
/// begin a line of its own.
fn render(dns: &cri::DnsConfig) -> Result<String, Error> {
    let values = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    if let Some(odd) = values.into_iter().find(|v| v.contains(['\n', '\r', '\0'])) {
        return Err(Error::Invalid {
            verb: "run sandbox",
            message: format!("dns_config has the odd value {odd:?}"),
        });
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_file() {
        let dns = cri::DnsConfig {
            servers: vec!["10.0.0.10".into(), "fd00::a".into()],
            searches: vec!["a.local".into(), "b.local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            render(&dns).unwrap(),
            "search a.local b.local\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
        let odd = cri::DnsConfig {
            servers: vec!["1.1.1.1\noptions evil".into()],
            ..Default::default()
        };
        assert!(render(&odd).is_err());
    }
}
