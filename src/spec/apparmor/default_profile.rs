//! The profile of containers that ask for the runtime's default one: what it says, and
//! putting it into the kernel, which takes the parser of the distribution.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
};

use super::loaded;
use crate::spec::Error;

/// Its name. One for all instances on a node, for it says the same for all.
pub const NAME: &str = "berth-default";

/// Where distributions have the parser.
const PARSERS: [&str; 3] = [
    "/sbin/apparmor_parser",
    "/usr/sbin/apparmor_parser",
    "/usr/bin/apparmor_parser",
];

/// The kernel forgets a profile whose name is written here.
const REMOVE: &str = "/sys/kernel/security/apparmor/.remove";

/// Namespaces, capabilities and seccomp say what a container may do to others; this
/// says what it may not do to the kernel though it is root: write what is not of a
/// namespace in /proc and /sys, read the firmware and the machine's power meters
/// (CVE-2020-8694), mount. Signals and traces stay among containers.
///
/// A pattern's `*` stops at a slash, `**` does not (apparmor.d(5)).
const TEXT: &str = r"profile berth-default flags=(attach_disconnected,mediate_deleted) {
  capability,
  file,
  network,
  umount,

  signal (receive) peer=unconfined,
  # OCI runtimes, which newer distributions label.
  signal (receive) peer={runc,crun},
  signal (send, receive) peer=berth-default,
  ptrace (read, readby, trace, tracedby) peer=berth-default,

  deny mount,

  # Of /proc: not what is no process's, and of the sysctls only those of namespaces.
  deny /proc/* wkl,
  deny /proc/{acpi,asound,bus,driver,dynamic_debug,fs,irq,mpt,pressure,scsi,tty}/** wkl,
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwklx,
  deny /proc/sys/[^fkn]** wkl,
  deny /proc/sys/fs/[^m]** wkl,
  deny /proc/sys/fs/mo** wkl,
  deny /proc/sys/kernel/[^ms]** wkl,
  deny /proc/sys/kernel/m[^s]** wkl,
  deny /proc/sys/kernel/s[^eh]** wkl,
  deny /proc/sys/kernel/sec** wkl,

  # Of /sys: the cgroups alone.
  deny /sys/[^f]** wkl,
  deny /sys/firmware/** rwklx,
  deny /sys/fs/[^c]** wkl,
  deny /sys/fs/c[^g]** wkl,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
";

/// Has the kernel know the profile, if it does not yet; whether it does then. Without
/// a parser it cannot. Blocks for as long as the parser compiles, once.
///
/// # Errors
/// What the parser said.
pub fn ensure() -> Result<bool, Error> {
    // Two containers that begin together are to compile it once.
    static LOADING: Mutex<()> = Mutex::new(());
    if loaded(NAME)? {
        return Ok(true);
    }
    let _one = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if loaded(NAME)? {
        return Ok(true);
    }
    let Some(parser) = PARSERS.iter().map(Path::new).find(|path| path.exists()) else {
        return Ok(false);
    };
    parse(parser)?;
    tracing::info!(profile = NAME, "AppArmor profile is loaded");
    loaded(NAME)
}

fn parse(parser: &Path) -> Result<(), Error> {
    let failed = |source| Error::io("load an AppArmor profile with", parser)(source);
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut input| input.write_all(TEXT.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return written.map_err(failed);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(io::Error::other(format!(
        "{NAME}: {}: {}",
        output.status,
        said.trim()
    ))))
}

/// Has the kernel forget the profile; processes that run in it go on without one.
/// Nothing when it does not know it.
///
/// # Errors
/// The file and the errno.
pub fn unload() -> Result<(), Error> {
    if !loaded(NAME)? {
        return Ok(());
    }
    match fs::write(REMOVE, NAME) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove an AppArmor profile with", REMOVE)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parser of this machine reads it; without one nothing is looked at.
    #[test]
    fn the_profile_is_well_formed() {
        assert!(TEXT.starts_with(&format!("profile {NAME} ")));
        let Some(parser) = PARSERS.iter().find(|path| Path::new(path).exists()) else {
            eprintln!("skipped: there is no apparmor_parser");
            return;
        };
        let mut child = Command::new(parser)
            .args(["--preprocess", "--skip-kernel-load", "--skip-cache"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(TEXT.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
