//! SELinux labels of containers: one for its processes, and one for what it may touch.
//!
//! The types are the policy's own for containers. What keeps pods apart is the level: a
//! pair of categories that no other pod of the node has, unless the pod names its own.

use std::{collections::BTreeSet, fs, path::Path};

use super::Error;
use crate::proto::cri::SeLinuxOption;

/// What the node's policy has for containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    pub process: Label,
    pub file: Label,
}

/// A security context, "user:role:type:level".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    user: String,
    role: String,
    kind: String,
    level: String,
}

/// The labels of one container. Empty: none, that of the launcher stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    pub process: String,
    pub mount: String,
}

/// Categories of the usual policies: c0 to c1023.
const CATEGORIES: u16 = 1024;
const FIELD: &str = "linux.security_context.selinux_options";

impl Label {
    /// None: not a context.
    fn parse(text: &str) -> Option<Label> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let label = Label {
            user: parts.next()?,
            role: parts.next()?,
            kind: parts.next()?,
            level: parts.next().unwrap_or_else(|| "s0".to_owned()),
        };
        let all = [&label.user, &label.role, &label.kind, &label.level];
        (!all.iter().any(|part| part.is_empty())).then_some(label)
    }

    fn text(&self) -> String {
        format!("{}:{}:{}:{}", self.user, self.role, self.kind, self.level)
    }
}

impl Defaults {
    /// Of /etc/selinux/POLICY/contexts/lxc_contexts, where every container tool looks;
    /// without it, those that policies for containers agree on.
    pub fn read(etc: &Path) -> Defaults {
        let policy = fs::read_to_string(etc.join("config")).unwrap_or_default();
        let policy = setting(&policy, "SELINUXTYPE").unwrap_or("targeted").to_owned();
        let contexts = etc.join(policy).join("contexts/lxc_contexts");
        let contexts = fs::read_to_string(contexts).unwrap_or_default();
        let label = |key: &str, otherwise: &str| {
            let (user, role) = ("system_u", if key == "file" { "object_r" } else { "system_r" });
            setting(&contexts, key)
                .and_then(Label::parse)
                .unwrap_or_else(|| Label {
                    user: user.to_owned(),
                    role: role.to_owned(),
                    kind: otherwise.to_owned(),
                    level: "s0".to_owned(),
                })
        };
        Defaults {
            process: label("process", "container_t"),
            file: label("file", "container_file_t"),
        }
    }
}

/// The value of `key = value` or `key = "value"`.
fn setting<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches('"'))
    })
}

/// A level that none of `taken` is: two categories, by `random` numbers.
pub fn new_level(taken: &BTreeSet<String>, mut random: impl FnMut() -> u16) -> String {
    loop {
        let (a, b) = (random() % CATEGORIES, random() % CATEGORIES);
        let level = format!("s0:c{},c{}", a.min(b), a.max(b));
        // There are half a million pairs, and a node has some hundred pods.
        if a != b && !taken.contains(&level) {
            return level;
        }
    }
}

/// Whether every part of the options can be a part of a context: they end up in the
/// options of mounts too.
pub fn check_selinux(options: Option<&SeLinuxOption>) -> Result<(), Error> {
    let Some(options) = options else {
        return Ok(());
    };
    for (name, value, more) in [
        ("user", &options.user, ""),
        ("role", &options.role, ""),
        ("type", &options.r#type, ""),
        ("level", &options.level, ":,"),
    ] {
        let good = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c) || more.contains(c);
        if let Some(odd) = value.chars().find(|c| !good(*c)) {
            return Err(Error::invalid(
                format!("{FIELD}.{name}"),
                format!("{value:?} has {odd:?}, which no context has"),
            ));
        }
    }
    Ok(())
}

/// The labels of a container: the policy's, changed by its request, else by its pod's.
/// A privileged one keeps the label of the launcher, and its files are its pod's.
pub(super) fn labels(
    defaults: Option<&Defaults>,
    asked: [Option<&SeLinuxOption>; 2],
    level: &str,
    privileged: bool,
) -> Result<Labels, Error> {
    let Some(defaults) = defaults else {
        return Ok(Labels::default());
    };
    let (mut process, mut file) = (defaults.process.clone(), defaults.file.clone());
    if !level.is_empty() {
        level.clone_into(&mut process.level);
    }
    // The container's own last, for it wins.
    for options in asked.into_iter().rev().flatten() {
        check_selinux(Some(options))?;
        for (value, part) in [
            (&options.user, &mut process.user),
            (&options.role, &mut process.role),
            (&options.r#type, &mut process.kind),
            (&options.level, &mut process.level),
        ] {
            if !value.is_empty() {
                value.clone_into(part);
            }
        }
        if !options.user.is_empty() {
            options.user.clone_into(&mut file.user);
        }
    }
    process.level.clone_into(&mut file.level);
    Ok(Labels {
        process: if privileged { String::new() } else { process.text() },
        mount: file.text(),
    })
}

/// The label of what a pod's containers share: its files, its shared memory.
pub fn pod_label(
    defaults: Option<&Defaults>,
    asked: Option<&SeLinuxOption>,
    level: &str,
) -> Result<String, Error> {
    labels(defaults, [None, asked], level, false).map(|labels| labels.mount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{HasKind, Kind};

    fn defaults() -> Defaults {
        Defaults::read(Path::new("/nonexistent"))
    }

    fn options(user: &str, role: &str, kind: &str, level: &str) -> SeLinuxOption {
        SeLinuxOption {
            user: user.into(),
            role: role.into(),
            r#type: kind.into(),
            level: level.into(),
        }
    }

    #[test]
    fn defaults_are_the_policys() {
        let etc = tempfile::tempdir().unwrap();
        let contexts = etc.path().join("mcs/contexts");
        fs::create_dir_all(&contexts).unwrap();
        fs::write(
            etc.path().join("config"),
            "# which\nSELINUX=enforcing\nSELINUXTYPE=mcs\n",
        )
        .unwrap();
        let text = "process = \"system_u:system_r:svirt_lxc_net_t:s0\"\nfile = \"system_u:object_r:lxc_file_t:s0\"\n";
        fs::write(contexts.join("lxc_contexts"), text).unwrap();
        let found = Defaults::read(etc.path());
        assert_eq!(found.process.text(), "system_u:system_r:svirt_lxc_net_t:s0");
        assert_eq!(found.file.text(), "system_u:object_r:lxc_file_t:s0");
        assert_eq!(defaults().process.text(), "system_u:system_r:container_t:s0");
        assert_eq!(defaults().file.text(), "system_u:object_r:container_file_t:s0");
    }

    #[test]
    fn the_container_wins_over_the_pod_and_the_pod_over_the_policy() {
        let of = |container: Option<&SeLinuxOption>, pod: Option<&SeLinuxOption>, privileged| {
            labels(Some(&defaults()), [container, pod], "s0:c1,c2", privileged).unwrap()
        };
        let plain = of(None, None, false);
        assert_eq!(plain.process, "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(plain.mount, "system_u:object_r:container_file_t:s0:c1,c2");
        let pod = options("user_u", "", "", "s0:c5,c6");
        let container = options("", "role_r", "spc_t", "");
        let both = of(Some(&container), Some(&pod), false);
        assert_eq!(both.process, "user_u:role_r:spc_t:s0:c5,c6");
        assert_eq!(both.mount, "user_u:object_r:container_file_t:s0:c5,c6");
        let own = of(Some(&options("", "", "", "s0-s0:c0.c1023")), Some(&pod), true);
        assert_eq!(own.process, "");
        assert_eq!(own.mount, "user_u:object_r:container_file_t:s0-s0:c0.c1023");
        assert_eq!(
            labels(None, [Some(&pod), None], "s0", false).unwrap(),
            Labels::default()
        );
    }

    #[test]
    fn levels_are_pairs_that_nobody_has() {
        let mut numbers = [7u16, 7, 7, 1030, 3, 2000].into_iter();
        let taken = BTreeSet::from(["s0:c6,c7".to_owned()]);
        // Twice the same is no pair; 1030 is category 6, and that pair is taken.
        let level = new_level(&taken, || numbers.next().unwrap());
        assert_eq!(level, "s0:c3,c976");
    }

    #[test]
    fn parts_that_are_no_part_of_a_context() {
        for (wrong, field) in [
            (options("a:b", "", "", ""), "user"),
            (options("", "a b", "", ""), "role"),
            (options("", "", "t,x", ""), "type"),
            (options("", "", "", "s0\",upperdir=/"), "level"),
        ] {
            let error = check_selinux(Some(&wrong)).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(field), "{error}");
        }
        assert!(check_selinux(Some(&options("", "", "", "s0:c1,c2"))).is_ok());
    }
}
