//! The AppArmor profile of a container.
//!
//! Without AppArmor in the kernel the default profile is none, and a profile asked
//! for by name is an error.

pub mod default_profile;

use std::{fs, io};

use super::{Error, host::Host};
use crate::proto::cri::{LinuxContainerSecurityContext, security_profile::ProfileType};

/// The kernel's list of loaded profiles, "name (mode)" a line.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

const CONTEXT: &str = "linux.security_context";

/// The AppArmor profile to run in; `None` for none.
pub(super) fn profile(
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
            if default_profile::ensure()? {
                return Ok(Some(default_profile::NAME.to_owned()));
            }
            warnings.push(format!(
                "AppArmor profile {:?} is not loaded and there is no apparmor_parser, so the container runs without one; \
                 install the package apparmor",
                default_profile::NAME
            ));
            Ok(None)
        }
        ProfileType::Localhost if loaded(&name)? => Ok(Some(name)),
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

/// Whether the kernel knows a profile.
fn loaded(profile: &str) -> Result<bool, Error> {
    match fs::read_to_string(LOADED) {
        Ok(list) => Ok(is_loaded(&list, profile)),
        // securityfs is not mounted: nobody has loaded any.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("read the loaded AppArmor profiles", LOADED)(error)),
    }
}

fn is_loaded(list: &str, profile: &str) -> bool {
    list.lines().any(|line| {
        line.strip_prefix(profile)
            .is_some_and(|rest| rest.starts_with(" ("))
    })
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
            let made = profile(&context, &host(), &mut Vec::new());
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
}
