//! Who the process is: the request's user, else the image's, looked up in the
//! image's own /etc/passwd and /etc/group.
//!
//! Those files are an image's word, so they are data of unknown quality: lines
//! that make no sense are passed over, numbers above 2^31-1 are refused
//! (CVE-2024-40635: an overflow there made an unprivileged user root).

#[cfg(any(test, feature = "fuzz"))]
pub(super) mod fuzz;

use std::collections::BTreeSet;

use oci_spec::runtime::User;

use super::{Error, Inputs};
use crate::proto::cri::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};

/// The largest id that container tools agree on.
const MAX_ID: u32 = 0x7fff_ffff;
/// Most supplementary groups that the kernel gives a process (NGROUPS_MAX).
const MAX_GROUPS: usize = 65536;

/// The user of the first process, and of every exec.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Sorted, each once, with the primary one.
    pub groups: Vec<u32>,
    /// Of passwd; "/" for a user that it does not have.
    pub home: String,
}

impl Identity {
    pub fn to_oci(&self) -> User {
        let mut user = User::default();
        user.set_uid(self.uid)
            .set_gid(self.gid)
            .set_additional_gids(Some(self.groups.clone()));
        user
    }
}

/// Resolves the user of a request, see `run_as_user`, `run_as_username`,
/// `run_as_group` and `supplemental_groups_policy` of the CRI.
pub(super) fn resolve(inputs: &Inputs<'_>) -> Result<Identity, Error> {
    let none = LinuxContainerSecurityContext::default();
    let context = inputs
        .request
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .unwrap_or(&none);
    let files = Files::read(inputs)?;
    resolve_in(context, &inputs.image.user, &inputs.image.name, &files)
}

const CONTEXT: &str = "linux.security_context";

fn resolve_in(
    context: &LinuxContainerSecurityContext,
    image_user: &str,
    image: &str,
    files: &Files,
) -> Result<Identity, Error> {
    let asked = Asked::of(context, image_user)?;
    let (name_or_id, group) = match asked.text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (asked.text.as_str(), None),
    };
    if group.is_some_and(|group| group.contains(':')) {
        return Err(asked.wrong(image, format!("user {:?} has more than one colon", asked.text)));
    }
    let user = match parse_id(name_or_id) {
        Id::Number(uid) => Known {
            uid,
            entry: files.passwd().find(|entry| entry.uid == uid),
        },
        Id::TooLarge => {
            let message = format!("uid {name_or_id} is larger than {MAX_ID}");
            return Err(asked.wrong(image, message));
        }
        Id::Name => match files.passwd().find(|entry| entry.name == name_or_id) {
            Some(entry) => Known {
                uid: entry.uid,
                entry: Some(entry),
            },
            None => {
                return Err(asked.wrong(
                    image,
                    format!(
                        "there is no user {name_or_id:?} in the image's /etc/passwd; add it there or set {CONTEXT}.run_as_user"
                    ),
                ));
            }
        },
    };
    let gid = match (asked.gid, group) {
        (Some(gid), _) => gid,
        (None, Some(group)) => match parse_id(group) {
            Id::Number(gid) => gid,
            Id::TooLarge => {
                return Err(asked.wrong(image, format!("gid {group} is larger than {MAX_ID}")));
            }
            Id::Name => match files.group().find(|entry| entry.name == group) {
                Some(entry) => entry.gid,
                None => {
                    return Err(asked.wrong(
                        image,
                        format!(
                            "there is no group {group:?} in the image's /etc/group; add it there or set {CONTEXT}.run_as_group"
                        ),
                    ));
                }
            },
        },
        (None, None) => user.entry.map_or(0, |entry| entry.gid),
    };

    let mut groups = BTreeSet::from([gid]);
    for group in &context.supplemental_groups {
        groups.insert(id_of(&format!("{CONTEXT}.supplemental_groups"), *group)?);
    }
    let policy = SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy).map_err(|_| {
        Error::invalid(
            format!("{CONTEXT}.supplemental_groups_policy"),
            format!(
                "{} is neither Merge (0) nor Strict (1)",
                context.supplemental_groups_policy
            ),
        )
    })?;
    if policy == SupplementalGroupsPolicy::Merge
        && let Some(entry) = user.entry
    {
        let of_user = files.group().filter(|group| group.has(entry.name));
        for group in of_user {
            groups.insert(group.gid);
            if groups.len() > MAX_GROUPS {
                let message = format!(
                    "/etc/group has user {:?} in more than {MAX_GROUPS} groups, the most that a process can have",
                    entry.name
                );
                return Err(asked.wrong(image, message));
            }
        }
    }
    // It becomes a variable: a line of its own in whatever a container writes it to.
    let home = user
        .entry
        .map(|entry| entry.home)
        .filter(|home| home.starts_with('/') && !home.contains(char::is_control));
    Ok(Identity {
        uid: user.uid,
        gid,
        groups: groups.into_iter().collect(),
        home: home.unwrap_or("/").to_owned(),
    })
}

struct Known<'a> {
    uid: u32,
    entry: Option<Passwd<'a>>,
}

/// The user as it was asked for.
struct Asked {
    /// "uid", "name", "uid:gid", "name:group" and so on.
    text: String,
    gid: Option<u32>,
    /// The field that asked; none: the image did.
    field: Option<&'static str>,
}

impl Asked {
    fn of(context: &LinuxContainerSecurityContext, image_user: &str) -> Result<Asked, Error> {
        let user_field = "linux.security_context.run_as_user";
        let name_field = "linux.security_context.run_as_username";
        let group_field = "linux.security_context.run_as_group";
        let gid = context
            .run_as_group
            .map(|gid| id_of(group_field, gid.value))
            .transpose()?;
        let name = context.run_as_username.as_str();
        let (text, field) = match (context.run_as_user, name) {
            (Some(_), name) if !name.is_empty() => {
                return Err(Error::invalid(
                    name_field,
                    "run_as_user is set too; only one may be",
                ));
            }
            (Some(uid), _) => (id_of(user_field, uid.value)?.to_string(), user_field),
            (None, "") if gid.is_some() => {
                return Err(Error::invalid(
                    group_field,
                    "a group without a user; set run_as_user or run_as_username too",
                ));
            }
            (None, "") => {
                let text = if image_user.is_empty() { "0" } else { image_user };
                return Ok(Asked {
                    text: text.to_owned(),
                    gid: None,
                    field: None,
                });
            }
            (None, name) if name.contains(':') => {
                return Err(Error::invalid(
                    name_field,
                    format!("{name:?} has a colon; set run_as_group"),
                ));
            }
            (None, name) => (name.to_owned(), name_field),
        };
        Ok(Asked {
            text,
            gid,
            field: Some(field),
        })
    }

    fn wrong(&self, image: &str, message: String) -> Error {
        match self.field {
            Some(field) => Error::invalid(field, format!("image {image:?}: {message}")),
            None => Error::Image {
                image: image.to_owned(),
                message,
            },
        }
    }
}

fn id_of(field: &str, id: i64) -> Result<u32, Error> {
    match u32::try_from(id) {
        Ok(id) if id <= MAX_ID => Ok(id),
        _ => Err(Error::invalid(
            field,
            format!("{id} is not between 0 and {MAX_ID}"),
        )),
    }
}

enum Id {
    Number(u32),
    TooLarge,
    Name,
}

/// Digits are a number, also those too large for one: never a name.
fn parse_id(text: &str) -> Id {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Id::Name;
    }
    match text.parse::<u32>() {
        Ok(id) if id <= MAX_ID => Id::Number(id),
        _ => Id::TooLarge,
    }
}

/// The image's user database, as text: a hostile one has a million lines, which are
/// looked through and not kept.
#[derive(Debug, Default)]
struct Files {
    passwd: String,
    group: String,
}

#[derive(Clone, Copy, Debug)]
struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

#[derive(Clone, Copy, Debug)]
struct Group<'a> {
    name: &'a str,
    gid: u32,
    /// With commas between.
    members: &'a str,
}

impl Group<'_> {
    fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member.trim() == user)
    }
}

impl Files {
    fn read(inputs: &Inputs<'_>) -> Result<Files, Error> {
        let text = |path: &str| -> Result<String, Error> {
            let step = "read from the image";
            let bytes = (inputs.read_image_file)(path).map_err(Error::io(step, path))?;
            Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
        };
        Ok(Files {
            passwd: text("/etc/passwd")?,
            group: text("/etc/group")?,
        })
    }

    fn passwd(&self) -> impl Iterator<Item = Passwd<'_>> {
        self.passwd.lines().filter_map(parse_passwd)
    }

    fn group(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.lines().filter_map(parse_group)
    }
}

/// A number that is one and not too large: an odd line gives nobody another's id.
fn number(text: &str) -> Option<u32> {
    match parse_id(text.trim()) {
        Id::Number(id) => Some(id),
        Id::TooLarge | Id::Name => None,
    }
}

/// `name:password:uid:gid:gecos:home:shell`
fn parse_passwd(line: &str) -> Option<Passwd<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let mut fields = fields.skip(1);
    Some(Passwd {
        name,
        uid: number(fields.next()?)?,
        gid: number(fields.next()?)?,
        home: fields.nth(1).unwrap_or_default(),
    })
}

/// `name:password:gid:member,member`
fn parse_group(line: &str) -> Option<Group<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let mut fields = fields.skip(1);
    Some(Group {
        name,
        gid: number(fields.next()?)?,
        members: fields.next().unwrap_or_default(),
    })
}

#[cfg(test)]
#[path = "tests/user.rs"]
mod tests;
