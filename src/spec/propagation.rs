//! Whether a host path lies on a mount that passes mounts on.

use std::{fs, path::Path};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::Error;

const TABLE: &str = "/proc/self/mountinfo";

/// Succeeds when the mount that holds `path` has one of the propagation tags.
pub(super) fn check(path: &Path, tags: &[&str], wanted: &str, field: &str) -> Result<(), Error> {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)
        .map_err(|e| Error::io("find the mount of", path)(e.into()))?;
    let table = fs::read_to_string(TABLE).map_err(Error::io("read", TABLE))?;
    let Some(mount) = table
        .lines()
        .filter_map(Entry::parse)
        .find(|entry| entry.id == found.stx_mnt_id)
    else {
        let message = format!("{} is on a mount that {TABLE} does not list", path.display());
        return Err(Error::precondition(field, message));
    };
    if mount
        .tags
        .iter()
        .any(|tag| tags.iter().any(|wanted| tag.starts_with(wanted)))
    {
        return Ok(());
    }
    Err(Error::precondition(
        field,
        format!(
            "{} is mounted on {}, which is not a {wanted} mount; \"mount --make-rshared {}\" makes it one",
            path.display(),
            mount.point,
            mount.point
        ),
    ))
}

/// A line of mountinfo, proc(5).
struct Entry<'a> {
    id: u64,
    point: &'a str,
    tags: Vec<&'a str>,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Entry<'a>> {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let point = fields.nth(3)?;
        let tags = fields.skip(1).take_while(|field| *field != "-").collect();
        Some(Entry { id, point, tags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table() {
        let entry =
            Entry::parse("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw").unwrap();
        assert_eq!((entry.id, entry.point), (36, "/mnt2"));
        assert_eq!(entry.tags, ["master:1", "shared:2"]);
        let entry = Entry::parse("36 35 98:0 / / rw - ext3 /dev/root rw").unwrap();
        assert!(entry.tags.is_empty());
        assert!(Entry::parse("odd").is_none());
    }

    #[test]
    fn a_wish_that_no_mount_fulfils_names_the_remedy() {
        let error = check(Path::new("/proc"), &["never:"], "odd", "mounts")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/proc") && error.contains("--make-rshared"),
            "{error}"
        );
    }
}
