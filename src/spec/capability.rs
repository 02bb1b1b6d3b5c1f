//! Capability sets: names of requests and specs, bits of the plan.

use std::collections::HashSet;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use super::Error;
use crate::proto::{cri, plan as wire};

/// By number, capabilities(7); index 0 is CAP_CHOWN.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when its request says nothing: the set that containerd
/// and Docker give.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bit of a capability, "NET_ADMIN" or "CAP_NET_ADMIN" in any case.
pub(super) fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES
        .iter()
        .position(|known| *known == plain)
        .map(|number| 1 << number)
}

fn bits_of(capabilities: Option<&Capabilities>) -> u64 {
    let names = capabilities.into_iter().flatten().map(ToString::to_string);
    names.filter_map(|name| bit(&name)).fold(0, |set, bit| set | bit)
}

/// The names of a set, "CAP_" in front.
fn describe(set: u64) -> String {
    let names = NAMES
        .iter()
        .enumerate()
        .filter(|(number, _)| set & (1 << number) != 0);
    let names: Vec<String> = names.map(|(_, name)| format!("CAP_{name}")).collect();
    names.join(", ")
}

fn set_of(bits: u64) -> Capabilities {
    let names = NAMES
        .iter()
        .enumerate()
        .filter(|(number, _)| bits & (1 << number) != 0);
    names
        .filter_map(|(_, name)| name.parse::<Capability>().ok())
        .collect::<HashSet<_>>()
}

/// The sets of a request, in this order: ALL added, ALL dropped, each added, each
/// dropped; so that "add ALL, drop CHOWN" and "drop ALL, add CHOWN" mean what they say.
/// `held` are those that the container can be given.
///
/// Inheritable stays empty but for ambient ones (CVE-2022-24769). For a user other
/// than root the kernel empties permitted and effective at the exec, unless ambient.
pub(super) fn of_request(
    context: &cri::LinuxContainerSecurityContext,
    held: u64,
) -> Result<LinuxCapabilities, Error> {
    if context.privileged {
        return Ok(sets(held, 0));
    }
    let none = cri::Capability::default();
    let asked = context.capabilities.as_ref().unwrap_or(&none);
    const FIELD: &str = "linux.security_context.capabilities";
    let add = Named::parse(&format!("{FIELD}.add_capabilities"), &asked.add_capabilities)?;
    let drop = Named::parse(&format!("{FIELD}.drop_capabilities"), &asked.drop_capabilities)?;
    let ambient_field = format!("{FIELD}.add_ambient_capabilities");
    let ambient = Named::parse(&ambient_field, &asked.add_ambient_capabilities)?;
    let ambient = if ambient.all { held } else { ambient.bits };

    let missing = (add.bits | ambient) & !held;
    if missing != 0 {
        return Err(Error::precondition(
            format!("{FIELD}.add_capabilities"),
            format!(
                "berthd itself does not hold {}, so it cannot give it away",
                describe(missing)
            ),
        ));
    }
    // A default that the agent lacks is no error: nobody asked for it.
    let mut set = DEFAULT
        .iter()
        .filter_map(|name| bit(name))
        .fold(0, |set, bit| set | bit);
    if add.all {
        set = held;
    }
    if drop.all {
        set = 0;
    }
    set = ((set | add.bits | ambient) & !drop.bits) & held;
    if ambient & !set != 0 {
        return Err(Error::invalid(
            ambient_field,
            format!("{} is dropped by drop_capabilities", describe(ambient & !set)),
        ));
    }
    Ok(sets(set, ambient))
}

fn sets(bits: u64, ambient: u64) -> LinuxCapabilities {
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(set_of(bits)))
        .set_permitted(Some(set_of(bits)))
        .set_effective(Some(set_of(bits)))
        .set_inheritable((ambient != 0).then(|| set_of(ambient)))
        .set_ambient((ambient != 0).then(|| set_of(ambient)));
    capabilities
}

/// Names of one list.
struct Named {
    all: bool,
    bits: u64,
}

impl Named {
    fn parse(field: &str, names: &[String]) -> Result<Named, Error> {
        let mut named = Named { all: false, bits: 0 };
        for name in names {
            if name.eq_ignore_ascii_case("ALL") {
                named.all = true;
            } else {
                named.bits |= bit(name).ok_or_else(|| {
                    Error::invalid(
                        field,
                        format!("{name:?} is not a capability; see capabilities(7)"),
                    )
                })?;
            }
        }
        Ok(named)
    }
}

/// The bounding set of a spec, by bits; what seccomp rules depend on.
pub(super) fn bounding(capabilities: Option<&LinuxCapabilities>) -> u64 {
    capabilities.map_or(0, |sets| bits_of(sets.bounding().as_ref()))
}

/// The sets of a plan. None given: all empty.
pub(super) fn plan(capabilities: Option<&LinuxCapabilities>) -> wire::Capabilities {
    let Some(sets) = capabilities else {
        return wire::Capabilities::default();
    };
    wire::Capabilities {
        bounding: bits_of(sets.bounding().as_ref()),
        effective: bits_of(sets.effective().as_ref()),
        permitted: bits_of(sets.permitted().as_ref()),
        inheritable: bits_of(sets.inheritable().as_ref()),
        ambient: bits_of(sets.ambient().as_ref()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{HasKind, Kind};

    fn bounding_of(add: &[&str], drop: &[&str], held: u64) -> Result<u64, Error> {
        let strings = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let context = cri::LinuxContainerSecurityContext {
            capabilities: Some(cri::Capability {
                add_capabilities: strings(add),
                drop_capabilities: strings(drop),
                add_ambient_capabilities: Vec::new(),
            }),
            ..Default::default()
        };
        Ok(bounding(Some(&of_request(&context, held)?)))
    }

    const ALL: u64 = (1 << 41) - 1;
    /// The value that containers of containerd show as CapBnd.
    const DEFAULT_BITS: u64 = 0xa804_25fb;

    #[test]
    fn every_name_is_known_to_the_spec_type() {
        for (number, name) in NAMES.iter().enumerate() {
            let capability: Capability = name.parse().unwrap();
            assert_eq!(bit(&capability.to_string()), Some(1 << number));
        }
        assert_eq!(set_of(ALL).len(), NAMES.len());
    }

    #[test]
    fn adding_and_dropping() {
        let (chown, admin, net_raw) = (1, 1 << 21, 1 << 13);
        for (add, drop, expected) in [
            (&[][..], &[][..], DEFAULT_BITS),
            (&["SYS_ADMIN"], &[], DEFAULT_BITS | admin),
            (
                &["cap_sys_admin"],
                &["Net_Raw"],
                (DEFAULT_BITS | admin) & !net_raw,
            ),
            (&["ALL"], &["CHOWN"], ALL & !chown),
            (&["CHOWN"], &["all"], chown),
            (&["ALL"], &["ALL"], 0),
            (&["CHOWN"], &["CHOWN"], DEFAULT_BITS & !chown),
        ] {
            assert_eq!(bounding_of(add, drop, ALL).unwrap(), expected, "{add:?} {drop:?}");
        }
    }

    #[test]
    fn what_the_agent_lacks() {
        let resource = 1 << 24;
        assert_eq!(
            bounding_of(&["ALL"], &[], ALL & !resource).unwrap(),
            ALL & !resource
        );
        assert_eq!(bounding_of(&[], &[], 1).unwrap(), 1);
        let error = bounding_of(&["SYS_RESOURCE"], &[], ALL & !resource).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("CAP_SYS_RESOURCE"), "{error}");
    }

    #[test]
    fn unknown_names_are_refused() {
        let error = bounding_of(&["CAP_FLY"], &[], ALL).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("CAP_FLY"), "{error}");
    }

    #[test]
    fn ambient_is_in_all_sets_and_nothing_else_is_inheritable() {
        let mut context = cri::LinuxContainerSecurityContext::default();
        let plain = plan(Some(&of_request(&context, ALL).unwrap()));
        assert_eq!((plain.inheritable, plain.ambient), (0, 0));
        assert_eq!(
            (plain.effective, plain.permitted),
            (plain.bounding, plain.bounding)
        );
        let mut asked = cri::Capability {
            add_ambient_capabilities: vec!["NET_ADMIN".into()],
            ..Default::default()
        };
        context.capabilities = Some(asked.clone());
        let ambient = plan(Some(&of_request(&context, ALL).unwrap()));
        assert_eq!((ambient.inheritable, ambient.ambient), (1 << 12, 1 << 12));
        assert_ne!(ambient.bounding & 1 << 12, 0);
        asked.drop_capabilities = vec!["NET_ADMIN".into()];
        context.capabilities = Some(asked);
        assert!(of_request(&context, ALL).is_err());
    }

    #[test]
    fn privileged_has_all_that_the_agent_holds() {
        let context = cri::LinuxContainerSecurityContext {
            privileged: true,
            capabilities: Some(cri::Capability {
                drop_capabilities: vec!["ALL".into()],
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(bounding(Some(&of_request(&context, ALL).unwrap())), ALL);
    }
}
