//! AppArmor, and paths that are hidden or read-only.
//!
//! Without AppArmor in the kernel the default profile is none, and a profile asked
//! for by name is an error.

use std::fs;

use super::{Error, host::Host};
use crate::proto::cri::{LinuxContainerSecurityContext, security_profile::ProfileType};

/// The kernel's list of loaded profiles, "name (mode)" a line.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Profiles that may stand for the default one: ours, and containerd's on a node
/// that has it already.
const DEFAULT_PROFILES: [&str; 2] = ["berth-default", "cri-containerd.apparmor.d"];

const CONTEXT: &str = "linux.security_context";

/// The AppArmor profile to run in; `None` for none.
pub(super) fn apparmor(
    context: &LinuxContainerSecurityContext,
    host: &Host,
    warnings: &mut Vec<String>,
) -> Result<Option<String>, Error> {
    let (field, kind, name) = asked(context)?;
    if !host.apparmor {
        return match kind {
            ProfileType::Localhost => Err(Error::precondition(
                field,
                format!(
                    "profile {name:?} was asked for, but this kernel has no AppArmor; set it to unconfined"
                ),
            )),
            ProfileType::RuntimeDefault | ProfileType::Unconfined => Ok(None),
        };
    }
    match kind {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault if context.privileged => Ok(None),
        ProfileType::RuntimeDefault => {
            let loaded = loaded()?;
            let found = DEFAULT_PROFILES
                .iter()
                .find(|profile| is_loaded(&loaded, profile));
            if found.is_none() {
                warnings.push(format!(
                    "AppArmor profile {:?} is not loaded, so the container runs without one; load it with apparmor_parser",
                    DEFAULT_PROFILES[0]
                ));
            }
            Ok(found.map(|profile| (*profile).to_owned()))
        }
        ProfileType::Localhost if is_loaded(&loaded()?, &name) => Ok(Some(name)),
        ProfileType::Localhost => Err(Error::precondition(
            field,
            format!("AppArmor profile {name:?} is not loaded; load it with apparmor_parser"),
        )),
    }
}

/// `apparmor` of the request, else its deprecated `apparmor_profile`; nothing is
/// the default.
#[expect(deprecated, reason = "old clients still set the deprecated field")]
fn asked(context: &LinuxContainerSecurityContext) -> Result<(String, ProfileType, String), Error> {
    let field = format!("{CONTEXT}.apparmor");
    if let Some(profile) = &context.apparmor {
        let kind = ProfileType::try_from(profile.profile_type)
            .map_err(|_| Error::invalid(&field, format!("{} is not a profile type", profile.profile_type)))?;
        let name = profile.localhost_ref.as_str();
        if (kind == ProfileType::Localhost) == name.is_empty() {
            return Err(Error::invalid(
                field,
                "localhost_ref belongs to type Localhost, and to it alone",
            ));
        }
        return Ok((
            field,
            kind,
            name.strip_prefix("localhost/").unwrap_or(name).to_owned(),
        ));
    }
    let field = format!("{CONTEXT}.apparmor_profile");
    match context.apparmor_profile.as_str() {
        "" | "runtime/default" => Ok((field, ProfileType::RuntimeDefault, String::new())),
        "unconfined" => Ok((field, ProfileType::Unconfined, String::new())),
        text => match text.strip_prefix("localhost/") {
            Some(name) if !name.is_empty() => Ok((field, ProfileType::Localhost, name.to_owned())),
            _ => Err(Error::invalid(
                field,
                format!("{text:?} is none of runtime/default, unconfined and localhost/NAME"),
            )),
        },
    }
}

fn loaded() -> Result<String, Error> {
    fs::read_to_string(LOADED).map_err(Error::io("read the loaded AppArmor profiles", LOADED))
}

fn is_loaded(list: &str, profile: &str) -> bool {
    list.lines().any(|line| {
        line.strip_prefix(profile)
            .is_some_and(|rest| rest.starts_with(" ("))
    })
}

/// Paths to mask and paths to make read-only: just those given, and none for a
/// privileged container, though the kubelet sends them there too.
pub(super) fn hidden(context: &LinuxContainerSecurityContext) -> Result<(Vec<String>, Vec<String>), Error> {
    if context.privileged {
        return Ok((Vec::new(), Vec::new()));
    }
    let lists = [
        ("masked_paths", &context.masked_paths),
        ("readonly_paths", &context.readonly_paths),
    ];
    for (name, paths) in lists {
        if let Some(path) = paths
            .iter()
            .find(|path| !path.starts_with('/') || path.contains('\0'))
        {
            return Err(Error::invalid(
                format!("{CONTEXT}.{name}"),
                format!("{path:?} is not an absolute path"),
            ));
        }
    }
    Ok((context.masked_paths.clone(), context.readonly_paths.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kind::{HasKind, Kind},
        proto::cri::SecurityProfile,
        spec::tests::host,
    };

    fn context(kind: ProfileType, name: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext {
            apparmor: Some(SecurityProfile {
                profile_type: kind.into(),
                localhost_ref: name.into(),
            }),
            ..Default::default()
        }
    }

    #[expect(deprecated, reason = "old clients still set it")]
    fn deprecated(text: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext {
            apparmor_profile: text.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_kernel_without_apparmor() {
        use ProfileType::{Localhost, RuntimeDefault, Unconfined};
        for (context, expected) in [
            (deprecated(""), None),
            (deprecated("runtime/default"), None),
            (deprecated("unconfined"), None),
            (deprecated("localhost/mine"), Some(Kind::FailedPrecondition)),
            (deprecated("mine"), Some(Kind::InvalidArgument)),
            (context(RuntimeDefault, ""), None),
            (context(Unconfined, ""), None),
            (context(Localhost, "mine"), Some(Kind::FailedPrecondition)),
            (context(Localhost, ""), Some(Kind::InvalidArgument)),
            (context(Unconfined, "mine"), Some(Kind::InvalidArgument)),
        ] {
            let made = apparmor(&context, &host(), &mut Vec::new());
            assert_eq!(made.as_ref().err().map(HasKind::kind), expected, "{context:?}");
            assert!(made.is_err() || made.unwrap().is_none());
        }
    }

    #[test]
    fn the_list_of_loaded_profiles() {
        let list = "berth-default (enforce)\nberth-default//child (enforce)\n";
        assert!(is_loaded(list, "berth-default"));
        assert!(is_loaded(list, "berth-default//child"));
        assert!(!is_loaded(list, "berth"));
    }

    #[test]
    fn masked_and_read_only_paths() {
        let mut asked = LinuxContainerSecurityContext {
            masked_paths: vec!["/proc/kcore".into()],
            readonly_paths: vec!["/proc/sys".into()],
            ..Default::default()
        };
        let expected = (asked.masked_paths.clone(), asked.readonly_paths.clone());
        assert_eq!(hidden(&asked).unwrap(), expected);
        asked.privileged = true;
        assert_eq!(hidden(&asked).unwrap(), (Vec::new(), Vec::new()));
        asked.privileged = false;
        asked.masked_paths.push("proc".into());
        assert!(hidden(&asked).is_err());
    }
}
