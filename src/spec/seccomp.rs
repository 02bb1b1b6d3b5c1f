//! Seccomp: which profile a container gets, and the profile as rules.
//!
//! Profiles are files in the format of OCI and Docker. What depends on the
//! container's capabilities, the architecture or the kernel is decided here; the
//! outcome is in config.json, so what the file says later changes nothing.

use std::{
    fs,
    io::Read,
    path::{Component, Path, PathBuf},
    sync::LazyLock,
};

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};
use serde::Deserialize;

use super::{
    Error, capability,
    host::{Host, parse_version},
};
use crate::proto::cri::{LinuxContainerSecurityContext, SecurityProfile, security_profile::ProfileType};

/// The default profile: the calls that ordinary programs need, as in the other runtimes.
/// Read once: reading it takes longer than a container's whole spec otherwise does.
static DEFAULT_PROFILE: LazyLock<Result<Profile, String>> =
    LazyLock::new(|| Profile::read(include_str!("seccomp_default.json")));

/// A profile larger than this is not one.
const MAX_PROFILE_BYTES: u64 = 4 << 20;

/// The architecture in Docker's and in seccomp's words.
const NATIVE: (&str, Arch) = if cfg!(target_arch = "x86_64") {
    ("amd64", Arch::ScmpArchX86_64)
} else if cfg!(target_arch = "aarch64") {
    ("arm64", Arch::ScmpArchAarch64)
} else if cfg!(target_arch = "riscv64") {
    ("riscv64", Arch::ScmpArchRiscv64)
} else if cfg!(target_arch = "s390x") {
    ("s390x", Arch::ScmpArchS390x)
} else {
    ("", Arch::ScmpArchNative)
};

/// The rules for a request; `None`: unconfined, which is also what a request
/// without any profile gets, and every privileged one.
pub(super) fn of_request(
    context: &LinuxContainerSecurityContext,
    bounding: u64,
    host: &Host,
) -> Result<Option<LinuxSeccomp>, Error> {
    if context.privileged {
        return Ok(None);
    }
    let (field, choice) = choose(context)?;
    let rules = |profile: &Profile| profile.resolve(bounding, host.kernel);
    let (name, rules) = match choice {
        Choice::Unconfined => return Ok(None),
        Choice::Default => {
            let known = DEFAULT_PROFILE.as_ref().map_err(Clone::clone);
            ("default".to_owned(), known.and_then(rules))
        }
        Choice::File(reference) => {
            let path = locate(&reference, &host.seccomp_profile_root)
                .map_err(|message| Error::invalid(field, format!("{reference:?} {message}")))?;
            let text = read(&path)?;
            let read = Profile::read(&text);
            (
                path.display().to_string(),
                read.and_then(|profile| rules(&profile)),
            )
        }
    };
    rules.map(Some).map_err(|message| Error::Seccomp {
        profile: name,
        message,
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Default,
    Unconfined,
    File(String),
}

/// `seccomp` of the request, else its deprecated `seccomp_profile_path`.
#[expect(deprecated, reason = "old clients still set the deprecated field")]
fn choose(context: &LinuxContainerSecurityContext) -> Result<(&'static str, Choice), Error> {
    let field = "linux.security_context.seccomp";
    if let Some(profile) = &context.seccomp {
        return Ok((field, of_profile(field, profile)?));
    }
    let field = "linux.security_context.seccomp_profile_path";
    let choice = match context.seccomp_profile_path.as_str() {
        "" | "unconfined" => Choice::Unconfined,
        "runtime/default" | "docker/default" => Choice::Default,
        path => match path.strip_prefix("localhost/") {
            Some(reference) => Choice::File(reference.to_owned()),
            None => {
                return Err(Error::invalid(
                    field,
                    format!("{path:?} is none of runtime/default, unconfined and localhost/PATH"),
                ));
            }
        },
    };
    Ok((field, choice))
}

fn of_profile(field: &str, profile: &SecurityProfile) -> Result<Choice, Error> {
    let kind = ProfileType::try_from(profile.profile_type)
        .map_err(|_| Error::invalid(field, format!("{} is not a profile type", profile.profile_type)))?;
    let reference = profile.localhost_ref.as_str();
    match kind {
        ProfileType::Localhost if reference.is_empty() => {
            Err(Error::invalid(field, "type Localhost needs localhost_ref"))
        }
        ProfileType::Localhost => {
            let reference = reference.strip_prefix("localhost/").unwrap_or(reference);
            Ok(Choice::File(reference.to_owned()))
        }
        _ if !reference.is_empty() => Err(Error::invalid(
            field,
            "localhost_ref is only possible with type Localhost",
        )),
        ProfileType::RuntimeDefault => Ok(Choice::Default),
        ProfileType::Unconfined => Ok(Choice::Unconfined),
    }
}

/// An absolute path, or a name below the folder of profiles.
fn locate(reference: &str, root: &Path) -> Result<PathBuf, &'static str> {
    let path = Path::new(reference);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    if reference.is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err("is neither an absolute path nor a name below runtime.seccomp_profile_root");
    }
    Ok(root.join(path))
}

fn read(path: &Path) -> Result<String, Error> {
    let step = "read the seccomp profile";
    let file = fs::File::open(path).map_err(Error::io(step, path))?;
    let mut text = String::new();
    let mut bounded = file.take(MAX_PROFILE_BYTES + 1);
    let length = bounded.read_to_string(&mut text).map_err(Error::io(step, path))?;
    if length as u64 > MAX_PROFILE_BYTES {
        return Err(Error::Seccomp {
            profile: path.display().to_string(),
            message: format!("is larger than {MAX_PROFILE_BYTES} bytes"),
        });
    }
    Ok(text)
}

/// A profile file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    /// Docker's: architectures by the native one.
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Option<Vec<String>>,
    /// Of old profiles: one name.
    name: Option<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    /// The rule is there only when all of these hold.
    includes: Option<Condition>,
    /// The rule is not there when one of these holds.
    excludes: Option<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    /// "4.8"
    min_kernel: Option<String>,
}

impl Profile {
    fn read(text: &str) -> Result<Profile, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    /// The rules that apply to a container with these capabilities on this kernel.
    fn resolve(&self, bounding: u64, kernel: (u32, u32)) -> Result<LinuxSeccomp, String> {
        if self.listener_path.as_ref().is_some_and(|path| !path.is_empty()) {
            return Err("listenerPath: notification of another process is not there yet".into());
        }
        let mut syscalls = Vec::new();
        for rule in self.syscalls.iter().flatten() {
            if rule.applies(bounding, kernel)? {
                syscalls.push(rule.to_oci()?);
            }
        }
        let mut made = LinuxSeccomp::default();
        made.set_default_action(self.default_action)
            .set_default_errno_ret(self.default_errno_ret)
            .set_architectures(self.architectures()?)
            .set_flags(self.flags.clone())
            .set_syscalls(Some(syscalls));
        Ok(made)
    }

    fn architectures(&self) -> Result<Option<Vec<Arch>>, String> {
        match (&self.architectures, &self.arch_map) {
            (Some(list), Some(map)) if !list.is_empty() && !map.is_empty() => {
                Err("architectures and archMap exclude each other".into())
            }
            (_, Some(map)) if !map.is_empty() => {
                let native = map.iter().find(|entry| entry.architecture == NATIVE.1);
                Ok(native.map(|entry| {
                    let others = entry.sub_architectures.iter().flatten().copied();
                    [entry.architecture].into_iter().chain(others).collect()
                }))
            }
            (list, _) => Ok(list.clone()),
        }
    }
}

impl Rule {
    fn applies(&self, bounding: u64, kernel: (u32, u32)) -> Result<bool, String> {
        let has = |name: &String| match capability::bit(name) {
            Some(bit) => Ok(bounding & bit != 0),
            None => Err(format!("{name:?} is not a capability")),
        };
        if let Some(only) = &self.includes {
            for name in only.caps.iter().flatten() {
                if !has(name)? {
                    return Ok(false);
                }
            }
            if only
                .arches
                .as_ref()
                .is_some_and(|list| !list.is_empty() && !list.iter().any(|a| a == NATIVE.0))
            {
                return Ok(false);
            }
            if only
                .min_kernel
                .as_ref()
                .is_some_and(|least| kernel < parse_version(least))
            {
                return Ok(false);
            }
        }
        if let Some(never) = &self.excludes {
            for name in never.caps.iter().flatten() {
                if has(name)? {
                    return Ok(false);
                }
            }
            if never.arches.iter().flatten().any(|arch| arch == NATIVE.0) {
                return Ok(false);
            }
            if never
                .min_kernel
                .as_ref()
                .is_some_and(|least| kernel >= parse_version(least))
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn to_oci(&self) -> Result<LinuxSyscall, String> {
        let names: Vec<String> = self.names.iter().flatten().chain(&self.name).cloned().collect();
        if names.is_empty() {
            return Err("a rule without names".into());
        }
        let mut made = LinuxSyscall::default();
        made.set_names(names)
            .set_action(self.action)
            .set_errno_ret(self.errno_ret)
            .set_args(self.args.clone().filter(|args| !args.is_empty()));
        Ok(made)
    }
}

#[cfg(test)]
#[path = "tests/seccomp.rs"]
mod tests;
