use super::*;
use crate::{
    kind::{HasKind, Kind},
    spec::tests::host,
};

const ADMIN: u64 = 1 << 21;

fn asked(kind: ProfileType, reference: &str) -> LinuxContainerSecurityContext {
    LinuxContainerSecurityContext {
        seccomp: Some(SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: reference.into(),
        }),
        ..Default::default()
    }
}

#[expect(deprecated, reason = "old clients still set it")]
fn deprecated(path: &str) -> LinuxContainerSecurityContext {
    LinuxContainerSecurityContext {
        seccomp_profile_path: path.into(),
        ..Default::default()
    }
}

#[test]
fn which_profile() {
    use ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let file = |name: &str| Ok(Choice::File(name.into()));
    for (context, expected) in [
        (LinuxContainerSecurityContext::default(), Ok(Choice::Unconfined)),
        (asked(RuntimeDefault, ""), Ok(Choice::Default)),
        (asked(Unconfined, ""), Ok(Choice::Unconfined)),
        (asked(Localhost, "/p.json"), file("/p.json")),
        (asked(Localhost, "localhost//p.json"), file("/p.json")),
        (asked(Localhost, ""), Err(())),
        (asked(RuntimeDefault, "/p.json"), Err(())),
        (deprecated("runtime/default"), Ok(Choice::Default)),
        (deprecated("docker/default"), Ok(Choice::Default)),
        (deprecated("unconfined"), Ok(Choice::Unconfined)),
        (deprecated("localhost//p.json"), file("/p.json")),
        (deprecated("localhost/p.json"), file("p.json")),
        (deprecated("/p.json"), Err(())),
    ] {
        let found = choose(&context).map(|(_, choice)| choice).map_err(|_| ());
        assert_eq!(found, expected, "{context:?}");
    }
}

#[test]
fn where_profiles_are() {
    let root = Path::new("/profiles");
    assert_eq!(locate("/abs/p.json", root), Ok("/abs/p.json".into()));
    assert_eq!(locate("team/p.json", root), Ok("/profiles/team/p.json".into()));
    for wrong in ["", "../p.json", "team/../../p.json", "./p.json"] {
        assert!(locate(wrong, root).is_err(), "{wrong:?}");
    }
}

#[test]
fn privileged_is_unconfined() {
    let mut context = asked(ProfileType::RuntimeDefault, "");
    assert!(of_request(&context, 0, &host()).unwrap().is_some());
    context.privileged = true;
    assert!(of_request(&context, 0, &host()).unwrap().is_none());
}

fn names(rules: &LinuxSeccomp, call: &str) -> Vec<LinuxSyscall> {
    let all = rules.syscalls().as_ref().unwrap();
    all.iter()
        .filter(|rule| rule.names().iter().any(|name| name == call))
        .cloned()
        .collect()
}

#[test]
fn the_default_profile_depends_on_capabilities() {
    let default = asked(ProfileType::RuntimeDefault, "");
    let plain = of_request(&default, 0, &host()).unwrap().unwrap();
    assert_eq!(plain.default_action(), LinuxSeccompAction::ScmpActErrno);
    assert!(names(&plain, "mount").is_empty());
    assert!(names(&plain, "chroot").is_empty());
    assert_eq!(names(&plain, "clone").len(), 1);
    assert!(names(&plain, "clone")[0].args().is_some());
    assert_eq!(names(&plain, "clone3")[0].errno_ret(), Some(38));
    let admin = of_request(&default, ADMIN, &host()).unwrap().unwrap();
    assert_eq!(names(&admin, "mount").len(), 1);
    assert!(names(&admin, "clone").iter().all(|rule| rule.args().is_none()));
    assert_eq!(
        names(&admin, "clone3")[0].action(),
        LinuxSeccompAction::ScmpActAllow
    );
}

fn resolve(json: &str) -> Result<LinuxSeccomp, String> {
    serde_json::from_str::<Profile>(json)
        .map_err(|e| e.to_string())?
        .resolve(ADMIN, (6, 1))
}

fn calls(conditions: &str) -> usize {
    let json = format!(
        r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", {conditions}}}]}}"#
    );
    resolve(&json).unwrap().syscalls().as_ref().unwrap().len()
}

#[test]
fn conditions_of_rules() {
    let other = if NATIVE.0 == "s390x" { "amd64" } else { "s390x" };
    for (conditions, applies) in [
        (r#""args": []"#.to_owned(), true),
        (r#""includes": {}, "excludes": null"#.into(), true),
        (r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#.into(), true),
        (
            r#""includes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}"#.into(),
            false,
        ),
        (r#""excludes": {"caps": ["CAP_BPF"]}"#.into(), true),
        (
            r#""excludes": {"caps": ["CAP_BPF", "CAP_SYS_ADMIN"]}"#.into(),
            false,
        ),
        (format!(r#""includes": {{"arches": ["{}"]}}"#, NATIVE.0), true),
        (format!(r#""includes": {{"arches": ["{other}"]}}"#), false),
        (format!(r#""excludes": {{"arches": ["{}"]}}"#, NATIVE.0), false),
        (r#""includes": {"minKernel": "4.8"}"#.into(), true),
        (r#""includes": {"minKernel": "6.2"}"#.into(), false),
        (r#""excludes": {"minKernel": "6.1"}"#.into(), false),
    ] {
        assert_eq!(calls(&conditions), usize::from(applies), "{conditions}");
    }
}

#[test]
fn wrong_profiles() {
    for (json, expected) in [
        ("{", "EOF"),
        ("{}", "defaultAction"),
        (r#"{"defaultAction": "SCMP_ACT_FLY"}"#, "SCMP_ACT_FLY"),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO"}]}"#,
            "without names",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/l.sock"}"#,
            "listenerPath",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
                "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}"#,
            "exclude each other",
        ),
    ] {
        let message = resolve(json).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn files_are_named_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.json");
    let context = asked(ProfileType::Localhost, missing.to_str().unwrap());
    let error = of_request(&context, 0, &host()).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.to_string().contains("missing.json"), "{error}");
    let broken = dir.path().join("broken.json");
    fs::write(&broken, "{").unwrap();
    let context = asked(ProfileType::Localhost, broken.to_str().unwrap());
    let error = of_request(&context, 0, &host()).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains("broken.json"), "{error}");
    fs::write(&broken, r#"{"defaultAction": "SCMP_ACT_LOG", "comment": "x"}"#).unwrap();
    let made = of_request(&context, 0, &host()).unwrap().unwrap();
    assert_eq!(made.default_action(), LinuxSeccompAction::ScmpActLog);
}
