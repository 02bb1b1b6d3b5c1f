use std::collections::BTreeSet;

use super::*;
use crate::{
    kind::{HasKind, Kind},
    proto::cri::{self, ImageSpec, KeyValue},
    spec::{HandlerView, VolumeImage, tests::Case},
};

fn options(more: &[&str]) -> BTreeSet<String> {
    let usual = ["rbind", "rprivate", "ro", "rw", "nosuid", "nodev", "noexec"];
    usual
        .iter()
        .chain(more)
        .map(|option| (*option).to_owned())
        .collect()
}

fn runtime(mount_options: &BTreeSet<String>) -> OciView<'_> {
    OciView {
        handler: "runc",
        bundle: Path::new("/state/containers/c"),
        mount_options,
        id_mapped_mounts: false,
    }
}

fn built(case: &Case, runtime: OciView<'_>) -> Result<crate::spec::Built, Error> {
    let handler = HandlerView {
        oci: Some(runtime),
        ..HandlerView::default()
    };
    case.with(|inputs| {
        crate::spec::build(&Inputs {
            handler: &handler,
            ..*inputs
        })
    })
}

#[test]
fn an_image_volume_is_found_in_the_bundle() {
    let mut case = Case::new();
    case.request.mounts = vec![cri::Mount {
        container_path: "/data".into(),
        readonly: true,
        image: Some(ImageSpec {
            image: "data:1".into(),
            ..Default::default()
        }),
        image_sub_path: "part".into(),
        ..Default::default()
    }];
    case.volume_images = vec![VolumeImage {
        mount: 0,
        layers: vec!["/layers/7".into()],
    }];
    let built = built(&case, runtime(&options(&[]))).unwrap();
    let mounts = built.spec.mounts().as_ref().unwrap();
    let index = mounts
        .iter()
        .position(|m| m.destination() == Path::new("/data"))
        .unwrap();
    let mount = &mounts[index];
    assert_eq!(mount.typ().as_deref(), Some("bind"));
    let place = format!("/state/containers/c/volumes/{index}");
    assert_eq!(mount.source().as_deref(), Some(Path::new(&place)));
    let options = mount.options().as_ref().unwrap();
    assert_eq!(options, &["rbind", "rprivate", "ro", "nosuid", "nodev"]);
    // The shim makes it from the plan.
    let planned = &built.plan.mounts[index];
    assert_eq!((planned.sub_path.as_str(), planned.lower.len()), ("part", 1));
}

#[test]
fn what_a_runtime_cannot_do_is_refused() {
    let mut case = Case::new();
    case.request.envs = vec![KeyValue {
        key: "RAW".into(),
        value: vec![0xff],
    }];
    let error = built(&case, runtime(&options(&[]))).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(
        error.to_string().contains("runc") && error.to_string().contains("RAW"),
        "{error}"
    );
    let mut case = Case::new();
    case.request.mounts = vec![cri::Mount {
        container_path: "/m".into(),
        host_path: "/".into(),
        readonly: true,
        recursive_read_only: true,
        ..Default::default()
    }];
    assert_eq!(
        built(&case, runtime(&options(&[]))).unwrap_err().kind(),
        Kind::FailedPrecondition
    );
    assert!(built(&case, runtime(&options(&["rro"]))).is_ok());
}

#[test]
fn scopes_have_their_three_parts() {
    let path = "/kubepods.slice/kubepods-burstable.slice/berth-c0ffee.scope";
    assert_eq!(
        systemd_path(path).unwrap(),
        "kubepods-burstable.slice:berth:c0ffee"
    );
    assert_eq!(systemd_path("/kubepods/pod1/c0ffee"), None);
}

#[test]
fn annotations_are_handed_on_by_patterns() {
    let mut case = Case::new();
    for (key, value) in [("io.example/a", "1"), ("other", "2")] {
        case.sandbox.config.annotations.insert(key.into(), value.into());
    }
    case.request.annotations.insert("io.example/c".into(), "3".into());
    let patterns = ["io.example/*".to_owned()];
    let handler = HandlerView {
        pod_annotations: &patterns,
        ..HandlerView::default()
    };
    let built = case
        .with(|inputs| {
            crate::spec::build(&Inputs {
                handler: &handler,
                ..*inputs
            })
        })
        .unwrap();
    let made = built.spec.annotations().clone().unwrap();
    assert_eq!(made.get("io.example/a").map(String::as_str), Some("1"));
    assert!(!made.contains_key("other") && !made.contains_key("io.example/c"));
}

#[test]
fn patterns() {
    for (pattern, text, is) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("*", "", true),
        ("io.*.x", "io.a.b.x", true),
        ("io.*.x", "io.a.b.y", false),
        ("a?c*", "abcd", true),
        ("a?c", "ac", false),
    ] {
        assert_eq!(matches(pattern, text), is, "{pattern} {text}");
    }
}
