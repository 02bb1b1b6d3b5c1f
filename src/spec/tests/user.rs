use super::*;
use crate::{
    kind::{HasKind, Kind},
    proto::cri::Int64Value,
};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
# a comment
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin

www-data:x:33:33:www-data:/var/www:/bin/false
overflow:x:4294967296:0::/:/bin/sh
large:x:2147483648:0::/:/bin/sh
negative:x:-1:0::/:/bin/sh
short:x:7
bare:x:1000:1000
relative:x:1001:1001::home:/bin/sh
";
const GROUP: &str = "root:x:0:
www-data:x:33:
adm:x:4:www-data, bare
staff:x:50:www-data,root
odd:x:four:www-data
big:x:4294967297:www-data
::
";

fn files(passwd: &str, group: &str) -> Files {
    Files {
        passwd: passwd.to_owned(),
        group: group.to_owned(),
    }
}

fn context() -> LinuxContainerSecurityContext {
    LinuxContainerSecurityContext::default()
}

fn user(context: &LinuxContainerSecurityContext, image_user: &str) -> Result<Identity, Error> {
    resolve_in(context, image_user, "example.test/app:1", &files(PASSWD, GROUP))
}

fn numbers(identity: &Identity) -> (u32, u32, &[u32], &str) {
    (identity.uid, identity.gid, &identity.groups, &identity.home)
}

#[test]
fn users_of_images() {
    for (image_user, expected) in [
        ("", (0, 0, &[0, 50][..], "/root")),
        ("www-data", (33, 33, &[4, 33, 50], "/var/www")),
        ("33", (33, 33, &[4, 33, 50], "/var/www")),
        ("1003", (1003, 0, &[0], "/")),
        ("1003:1004", (1003, 1004, &[1004], "/")),
        ("www-data:1004", (33, 1004, &[4, 50, 1004], "/var/www")),
        ("www-data:staff", (33, 50, &[4, 50], "/var/www")),
        ("1003:adm", (1003, 4, &[4], "/")),
        ("bare", (1000, 1000, &[4, 1000], "/")),
        ("relative", (1001, 1001, &[1001], "/")),
    ] {
        let identity = user(&context(), image_user).unwrap();
        assert_eq!(numbers(&identity), expected, "{image_user:?}");
    }
}

#[test]
fn wrong_users_of_images_name_the_image_and_the_remedy() {
    for (image_user, expected) in [
        ("nobody", "no user \"nobody\""),
        ("www-data:nogroup", "no group \"nogroup\""),
        ("4294967296", "larger than"),
        ("2147483648", "larger than"),
        ("-1", "larger than"),
        ("0:4294967296", "larger than"),
        ("99999999999999999999999999", "larger than"),
        // CVE-2024-40635: such a line must not be taken for uid 0.
        ("overflow", "no user \"overflow\""),
        ("large", "no user \"large\""),
        ("negative", "no user \"negative\""),
        ("short", "no user \"short\""),
        ("a:b:c", "more than one colon"),
        (":", "no user \"\""),
    ] {
        let error = user(&context(), image_user).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{image_user:?}");
        let message = error.to_string();
        assert!(
            message.contains(expected) && message.contains("example.test/app:1"),
            "{message}"
        );
    }
}

#[test]
fn the_request_replaces_the_image() {
    let mut request = context();
    request.run_as_user = Some(Int64Value { value: 33 });
    assert_eq!(
        numbers(&user(&request, "daemon").unwrap()),
        (33, 33, &[4, 33, 50][..], "/var/www")
    );
    request.run_as_group = Some(Int64Value { value: 1004 });
    assert_eq!(
        numbers(&user(&request, "daemon").unwrap()),
        (33, 1004, &[4, 50, 1004][..], "/var/www")
    );
    request.run_as_user = None;
    request.run_as_username = "bare".into();
    assert_eq!(
        numbers(&user(&request, "daemon").unwrap()),
        (1000, 1004, &[4, 1004][..], "/")
    );
}

#[test]
fn supplemental_groups_merged_and_strict() {
    let mut request = context();
    request.supplemental_groups = vec![5678, 1234, 5678];
    assert_eq!(
        user(&request, "www-data").unwrap().groups,
        [4, 33, 50, 1234, 5678]
    );
    request.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
    assert_eq!(user(&request, "www-data").unwrap().groups, [33, 1234, 5678]);
    request.supplemental_groups_policy = 7;
    assert!(user(&request, "www-data").is_err());
}

#[test]
fn wrong_requests_name_their_field() {
    let id = |value| Some(Int64Value { value });
    let cases: Vec<(LinuxContainerSecurityContext, &str)> = vec![
        (
            LinuxContainerSecurityContext {
                run_as_group: id(1),
                ..context()
            },
            "run_as_group",
        ),
        (
            LinuxContainerSecurityContext {
                run_as_user: id(1),
                run_as_username: "root".into(),
                ..context()
            },
            "run_as_username",
        ),
        (
            LinuxContainerSecurityContext {
                run_as_user: id(-1),
                ..context()
            },
            "run_as_user",
        ),
        (
            LinuxContainerSecurityContext {
                run_as_user: id(1 << 32),
                ..context()
            },
            "run_as_user",
        ),
        (
            LinuxContainerSecurityContext {
                run_as_username: "nobody".into(),
                ..context()
            },
            "run_as_username",
        ),
        (
            LinuxContainerSecurityContext {
                run_as_username: "root:adm".into(),
                ..context()
            },
            "run_as_username",
        ),
        (
            LinuxContainerSecurityContext {
                supplemental_groups: vec![-5],
                ..context()
            },
            "supplemental_groups",
        ),
    ];
    for (request, field) in cases {
        let message = user(&request, "").unwrap_err().to_string();
        assert!(message.contains(field), "{message}");
    }
}

#[test]
fn an_image_without_user_files() {
    let none = files("", "");
    let identity = resolve_in(&context(), "1000", "image", &none).unwrap();
    assert_eq!(numbers(&identity), (1000, 0, &[0][..], "/"));
    assert!(resolve_in(&context(), "app", "image", &none).is_err());
}

#[test]
fn a_home_is_a_path_of_one_line() {
    for home in ["/a\tb", "/a\rb", "/a\0b", "/\u{85}", "/\x7f", "rel", ""] {
        let passwd = format!("app:x:5:5::{home}:/bin/sh\n");
        let identity = resolve_in(&context(), "app", "image", &files(&passwd, "")).unwrap();
        assert_eq!(identity.home, "/", "{home:?}");
    }
}

#[test]
fn more_groups_than_a_process_can_have_are_refused() {
    let group = |count: u32| -> String { (0..count).map(|gid| format!("g{gid}:x:{gid}:app\n")).collect() };
    let passwd = "app:x:5:5::/:/bin/sh\n";
    let most = resolve_in(&context(), "app", "image", &files(passwd, &group(65536))).unwrap();
    assert_eq!(most.groups.len(), 65536);
    let error = resolve_in(&context(), "app", "image", &files(passwd, &group(65537))).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    let message = error.to_string();
    assert!(
        message.contains("/etc/group") && message.contains("image"),
        "{message}"
    );
    let mut strict = context();
    strict.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
    let identity = resolve_in(&strict, "app", "image", &files(passwd, &group(70000))).unwrap();
    assert_eq!(identity.groups, [5]);
}

/// As long as is read of them at most, made of what costs most to look at.
#[test]
fn the_largest_files_are_looked_through() {
    let passwd = "a:x:9:9::/:\n".repeat((10 << 20) / 12);
    let group = format!("g:x:7:{}app\n", "b,".repeat(5 << 20));
    let files = files(&format!("{passwd}app:x:5:5::/home:/bin/sh\n"), &group);
    let identity = resolve_in(&context(), "app", "image", &files).unwrap();
    assert_eq!(numbers(&identity), (5, 5, &[5, 7][..], "/home"));
}

proptest::proptest! {
    /// Whatever the files hold, nobody gets an id that was refused, and nothing panics.
    #[test]
    fn odd_files_give_no_odd_ids(passwd in "[a-z0-9:,\\-+\n ]{0,200}", group in ".{0,200}", user in "[a-z0-9:+\\-]{0,12}") {
        let files = files(&passwd, &group);
        if let Ok(identity) = resolve_in(&context(), &user, "image", &files) {
            proptest::prop_assert!(identity.uid <= MAX_ID && identity.gid <= MAX_ID);
            proptest::prop_assert!(identity.groups.iter().all(|gid| *gid <= MAX_ID));
        }
    }
}
