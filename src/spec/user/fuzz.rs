//! Users and groups files of images.

use super::*;

/// passwd, group and the user that is asked for, with NULs between: whatever they
/// hold, nobody gets an id that was refused (CVE-2024-40635), a home that is no path,
/// or more groups than there can be.
pub fn users(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, '\0');
    let mut next = || parts.next().unwrap_or_default();
    let (passwd, group, user) = (next(), next(), next());
    let files = Files {
        passwd: passwd.to_owned(),
        group: group.to_owned(),
    };
    let context = LinuxContainerSecurityContext::default();
    let names = files.passwd().take(20).map(|entry| entry.name);
    for user in names.chain([user, "", "0"]) {
        match resolve_in(&context, user, "image", &files) {
            Ok(identity) => {
                assert!(identity.uid <= MAX_ID && identity.gid <= MAX_ID);
                assert!(identity.groups.contains(&identity.gid));
                assert!(identity.groups.len() <= MAX_GROUPS);
                assert!(identity.groups.is_sorted_by(|a, b| a < b && *b <= MAX_ID));
                assert!(identity.home.starts_with('/'), "{:?}", identity.home);
                assert!(!identity.home.contains(char::is_control), "{:?}", identity.home);
                let known = |entry: Passwd<'_>| entry.uid == identity.uid;
                let number = user
                    .split(':')
                    .next()
                    .is_some_and(|user| user.parse::<u32>().is_ok());
                assert!(number || user.is_empty() || files.passwd().any(known));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
