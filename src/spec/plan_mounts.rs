//! Mounts of the spec as the plan has them: words to bits. A word that is not
//! known is an error: it might have taken a right away.

use oci_spec::runtime::Mount;

use super::{
    Error, image_volumes,
    plan::{absent, id_ranges, propagation, text},
};
use crate::proto::plan::{self as wire, mount::Kind};

/// MOUNT_ATTR_*, uapi/linux/mount.h.
const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
/// The field of the three kinds of access times; 0 is relatime.
const ATIME: u64 = 0x70;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// Bits whose clearing gives rights.
const PROTECTING: u64 = RDONLY | NOSUID | NODEV | NOEXEC | NOSYMFOLLOW;

pub(super) fn plan(mount: &Mount) -> Result<wire::Mount, Error> {
    let field = format!("mounts[{}]", mount.destination().display());
    if !mount.destination().is_absolute() {
        return Err(Error::spec(field, "the destination is not absolute"));
    }
    let options = mount.options().as_deref().unwrap_or_default();
    let kind = kind(mount, options, &field)?;
    let uids = id_ranges(mount.uid_mappings().as_deref());
    let gids = id_ranges(mount.gid_mappings().as_deref());
    if uids.is_empty() != gids.is_empty() {
        return Err(Error::spec(field, "uidMappings and gidMappings go together"));
    }
    if kind != Kind::Bind && !uids.is_empty() {
        return Err(Error::spec(field, "uidMappings are only for bind mounts"));
    }
    let source = match (kind, mount.source()) {
        (Kind::Bind, Some(source)) if source.is_absolute() => text(&field, source)?,
        (Kind::Bind, _) => return Err(Error::spec(field, "a bind mount needs an absolute source")),
        _ => String::new(),
    };
    let mut words = Words::read(kind, options, &field)?;
    let volume = volume(kind, &mut words.data, &field)?;
    Ok(wire::Mount {
        kind: kind.into(),
        target: text(&field, mount.destination())?,
        source,
        attr_set: words.set,
        // A new file system has nothing to clear.
        attr_clear: if kind == Kind::Bind { words.clear } else { 0 },
        attr_recursive: words.recursive,
        bind_recursive: words.rbind,
        propagation: words.propagation.into(),
        data: words.data,
        lower: volume.lower,
        sub_path: volume.sub_path,
        uids,
        gids,
    })
}

/// Layers, and the part of them that is mounted.
#[derive(Default)]
struct Volume {
    lower: Vec<String>,
    sub_path: String,
}

fn volume(kind: Kind, data: &mut Vec<String>, field: &str) -> Result<Volume, Error> {
    let mut volume = Volume::default();
    if kind != Kind::Overlay {
        return Ok(volume);
    }
    for option in data.drain(..) {
        match option.split_once('=') {
            Some((image_volumes::LOWER, layers)) => volume.lower = image_volumes::layers(layers),
            Some((image_volumes::SUB_PATH, path)) => path.clone_into(&mut volume.sub_path),
            _ => return Err(Error::spec(field, format!("option {option:?} has no value"))),
        }
    }
    match volume.lower.as_slice() {
        [] => Err(Error::spec(field, "an overlay needs lowerdir")),
        _ => Ok(volume),
    }
}

fn kind(mount: &Mount, options: &[String], field: &str) -> Result<Kind, Error> {
    if options.iter().any(|option| option == "bind" || option == "rbind") {
        return Ok(Kind::Bind);
    }
    match mount.typ().as_deref().unwrap_or_default() {
        "bind" => Ok(Kind::Bind),
        "proc" => Ok(Kind::Proc),
        "sysfs" => Ok(Kind::Sysfs),
        "tmpfs" => Ok(Kind::Tmpfs),
        "devpts" => Ok(Kind::Devpts),
        "mqueue" => Ok(Kind::Mqueue),
        "overlay" => Ok(Kind::Overlay),
        "cgroup" | "cgroup2" => Ok(Kind::Cgroup),
        other => Err(absent(&format!("{field}.type {other:?}"))),
    }
}

/// What a list of options comes to.
#[derive(Default)]
struct Words {
    set: u64,
    clear: u64,
    recursive: bool,
    rbind: bool,
    propagation: wire::Propagation,
    data: Vec<String>,
}

impl Words {
    fn read(kind: Kind, options: &[String], field: &str) -> Result<Words, Error> {
        let mut words = Words::default();
        // Bits cleared for the top mount alone.
        let mut cleared_on_top = 0;
        for option in options {
            match option.as_str() {
                // Mapped as the mount is bound: with what is below, or alone.
                "idmap" | "ridmap" if kind == Kind::Bind => {}
                "bind" | "defaults" | "async" | "nomand" | "loud" => {}
                "rbind" => words.rbind = true,
                "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" => {
                    words.propagation = propagation(Some(option))?;
                }
                // A bind mount that is not to be read-only keeps what its source has: an
                // administrator's read-only mount stays one.
                "rw" if kind == Kind::Bind => words.set &= !RDONLY,
                name => {
                    if let Some(change) = Change::of(name) {
                        words.apply(change);
                        cleared_on_top |= change.off & PROTECTING;
                    } else if let Some(change) = name.strip_prefix('r').and_then(Change::of) {
                        if kind != Kind::Bind {
                            return Err(Error::spec(
                                field,
                                format!("option {name:?} is only for bind mounts"),
                            ));
                        }
                        words.apply(change);
                        words.recursive = true;
                    } else if is_data(kind, name) {
                        words.data.push(name.to_owned());
                    } else {
                        return Err(Error::spec(field, format!("option {name:?} is not known")));
                    }
                }
            }
        }
        if words.recursive && cleared_on_top & words.clear != 0 {
            return Err(Error::spec(
                field,
                "recursive options together with one that clears a flag of the top mount alone",
            ));
        }
        Ok(words)
    }

    fn apply(&mut self, change: Change) {
        self.set = (self.set & !change.off) | change.on;
        self.clear = (self.clear & !change.on) | change.off;
        // The kernel wants the whole field cleared to set one of its values.
        if (change.on | change.off) & ATIME != 0 {
            self.clear |= ATIME;
        }
    }
}

/// Bits that an option turns on and off.
#[derive(Clone, Copy)]
struct Change {
    on: u64,
    off: u64,
}

impl Change {
    fn of(option: &str) -> Option<Change> {
        let (on, off) = match option {
            "ro" => (RDONLY, 0),
            "rw" => (0, RDONLY),
            "nosuid" => (NOSUID, 0),
            "suid" => (0, NOSUID),
            "nodev" => (NODEV, 0),
            "dev" => (0, NODEV),
            "noexec" => (NOEXEC, 0),
            "exec" => (0, NOEXEC),
            "nosymfollow" => (NOSYMFOLLOW, 0),
            "symfollow" => (0, NOSYMFOLLOW),
            "nodiratime" => (NODIRATIME, 0),
            "diratime" => (0, NODIRATIME),
            "noatime" => (NOATIME, STRICTATIME),
            "strictatime" => (STRICTATIME, NOATIME),
            "relatime" | "atime" | "nostrictatime" => (0, NOATIME | STRICTATIME),
            _ => return None,
        };
        Some(Change { on, off })
    }
}

/// Options that the file system itself reads.
fn is_data(kind: Kind, option: &str) -> bool {
    let key = option.split_once('=').map_or(option, |(key, _)| key);
    let known: &[&str] = match kind {
        Kind::Tmpfs => &[
            "size",
            "nr_blocks",
            "nr_inodes",
            "mode",
            "uid",
            "gid",
            "mpol",
            "huge",
            "inode32",
            "inode64",
            "noswap",
        ],
        Kind::Devpts => &["newinstance", "ptmxmode", "mode", "uid", "gid", "max"],
        Kind::Proc => &["hidepid", "gid", "subset"],
        Kind::Overlay => &[image_volumes::LOWER, image_volumes::SUB_PATH],
        Kind::Bind | Kind::Sysfs | Kind::Mqueue | Kind::Cgroup => &[],
    };
    known.contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(kind: &str, options: &[&str]) -> Result<wire::Mount, Error> {
        let mut mount = Mount::default();
        mount
            .set_destination("/target".into())
            .set_typ(Some(kind.into()))
            .set_source(Some("/source".into()))
            .set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
        plan(&mount)
    }

    #[test]
    fn words_to_bits() {
        for (kind, options, set, clear, recursive) in [
            ("bind", &["rbind", "rprivate", "ro"][..], RDONLY, 0, false),
            ("bind", &["rbind", "rprivate", "rw"], 0, 0, false),
            ("bind", &["rbind", "rprivate", "rro"], RDONLY, 0, true),
            ("bind", &["rbind", "rrw"], 0, RDONLY, true),
            ("bind", &["rbind", "ro", "rw"], 0, 0, false),
            (
                "bind",
                &["bind", "nosuid", "nodev", "noexec"],
                NOSUID | NODEV | NOEXEC,
                0,
                false,
            ),
            ("bind", &["bind", "suid"], 0, NOSUID, false),
            ("bind", &["bind", "noatime"], NOATIME, ATIME, false),
            ("bind", &["bind", "relatime"], 0, ATIME, false),
            ("bind", &["rbind", "rro", "nosuid"], RDONLY | NOSUID, 0, true),
            ("bind", &["rbind", "rro", "rnodev"], RDONLY | NODEV, 0, true),
            (
                "tmpfs",
                &["nosuid", "strictatime", "mode=755", "size=65536k"],
                NOSUID | STRICTATIME,
                0,
                false,
            ),
            ("sysfs", &["ro", "rw"], 0, 0, false),
            ("cgroup", &["relatime", "ro"], RDONLY, 0, false),
        ] {
            let mount = planned(kind, options).unwrap();
            let found = (mount.attr_set, mount.attr_clear, mount.attr_recursive);
            assert_eq!(found, (set, clear, recursive), "{kind} {options:?}");
        }
    }

    #[test]
    fn kinds_data_and_propagation() {
        let mount = planned("tmpfs", &["mode=755", "size=1k", "nosuid"]).unwrap();
        assert_eq!(mount.data, ["mode=755", "size=1k"]);
        assert_eq!((mount.kind(), mount.source.as_str()), (Kind::Tmpfs, ""));
        let mount = planned("none", &["rbind", "rslave"]).unwrap();
        assert_eq!((mount.kind(), mount.source.as_str()), (Kind::Bind, "/source"));
        assert_eq!(
            (mount.propagation(), mount.bind_recursive),
            (wire::Propagation::Slave, true)
        );
        let mount = planned("devpts", &["newinstance", "ptmxmode=0666", "gid=5"]).unwrap();
        assert_eq!(mount.data, ["newinstance", "ptmxmode=0666", "gid=5"]);
    }

    #[test]
    fn what_cannot_be_planned() {
        for (kind, options) in [
            ("bind", &["rbind", "size=1k"][..]),
            ("bind", &["rbind", "unbindable"]),
            ("bind", &["rbind", "rro", "suid"]),
            ("tmpfs", &["rro"]),
            ("tmpfs", &["tmpcopyup"]),
            ("sysfs", &["mode=1"]),
            ("ext4", &["ro"]),
            ("", &[]),
        ] {
            assert!(planned(kind, options).is_err(), "{kind} {options:?}");
        }
    }
}
