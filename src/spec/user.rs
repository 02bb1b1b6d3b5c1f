//! Who the process is: the request's user, else the image's, looked up in the
//! image's own /etc/passwd and /etc/group.
//!
//! Those files are an image's word, so they are data of unknown quality: lines
//! that make no sense are passed over, numbers above 2^31-1 are refused
//! (CVE-2024-40635: an overflow there made an unprivileged user root).

use std::collections::BTreeSet;

use oci_spec::runtime::User;

use super::{Error, Inputs};
use crate::proto::cri::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};

/// The largest id that container tools agree on.
const MAX_ID: u32 = 0x7fff_ffff;

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
            entry: files.passwd.iter().find(|entry| entry.uid == uid),
        },
        Id::TooLarge => {
            let message = format!("uid {name_or_id} is larger than {MAX_ID}");
            return Err(asked.wrong(image, message));
        }
        Id::Name => match files.passwd.iter().find(|entry| entry.name == name_or_id) {
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
            Id::Name => match files.group.iter().find(|entry| entry.name == group) {
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
        let of_user = files
            .group
            .iter()
            .filter(|group| group.members.contains(&entry.name));
        groups.extend(of_user.map(|group| group.gid));
    }
    let home = user
        .entry
        .map(|entry| entry.home.as_str())
        .filter(|home| home.starts_with('/'));
    Ok(Identity {
        uid: user.uid,
        gid,
        groups: groups.into_iter().collect(),
        home: home.unwrap_or("/").to_owned(),
    })
}

struct Known<'a> {
    uid: u32,
    entry: Option<&'a Passwd>,
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

/// The image's user database.
#[derive(Debug, Default)]
struct Files {
    passwd: Vec<Passwd>,
    group: Vec<Group>,
}

#[derive(Debug)]
struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Files {
    fn read(inputs: &Inputs<'_>) -> Result<Files, Error> {
        let text = |path: &str| -> Result<String, Error> {
            let step = "read from the image";
            let bytes = (inputs.read_image_file)(path).map_err(Error::io(step, path))?;
            Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
        };
        Ok(Files::parse(&text("/etc/passwd")?, &text("/etc/group")?))
    }

    fn parse(passwd: &str, group: &str) -> Files {
        Files {
            passwd: passwd.lines().filter_map(parse_passwd).collect(),
            group: group.lines().filter_map(parse_group).collect(),
        }
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
fn parse_passwd(line: &str) -> Option<Passwd> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let mut fields = fields.skip(1);
    Some(Passwd {
        name: name.to_owned(),
        uid: number(fields.next()?)?,
        gid: number(fields.next()?)?,
        home: fields.nth(1).unwrap_or_default().to_owned(),
    })
}

/// `name:password:gid:member,member`
fn parse_group(line: &str) -> Option<Group> {
    let mut fields = line.trim().split(':');
    let name = fields
        .next()
        .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let mut fields = fields.skip(1);
    let gid = number(fields.next()?)?;
    let members = fields.next().unwrap_or_default().split(',').map(str::trim);
    Some(Group {
        name: name.to_owned(),
        gid,
        members: members
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect(),
    })
}

#[cfg(test)]
#[path = "tests/user.rs"]
mod tests;
