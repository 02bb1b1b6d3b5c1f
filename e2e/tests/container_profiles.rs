//! Profiles by the words of old clients, and AppArmor profiles that are not there.

use std::fs;

use e2e::{Result, Story, client::security, cri};
use tonic::Code;

#[tokio::test]
#[expect(deprecated, reason = "old clients still set the deprecated fields")]
async fn old_words_mean_what_they_meant() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: peers have dropped the old words");
        return story.finish().await;
    }
    let client = &story.client;
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}"#;
    fs::write(story.node.path().join("seccomp/no-mkdir.json"), text)?;
    let pod = client.run_pod("old").await?;
    let script = "grep Seccomp: /proc/self/status | cut -f2; mkdir /made 2>/dev/null && echo made; true";
    let config = |name: &str, word: &str| {
        let mut config = story.script(name, script);
        security(&mut config).seccomp_profile_path = word.into();
        config
    };
    for (name, word, expected) in [
        ("default", "runtime/default", "2\nmade\n"),
        ("docker", "docker/default", "2\nmade\n"),
        ("unconfined", "unconfined", "0\nmade\n"),
        ("local", "localhost/no-mkdir.json", "2\n"),
    ] {
        let output = client.run_to_end(&pod, config(name, word)).await?;
        assert_eq!(output.stdout, expected, "{word}");
    }
    // The newer field wins.
    let mut both = config("both", "localhost/no-mkdir.json");
    security(&mut both).seccomp = Some(cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::Unconfined.into(),
        localhost_ref: String::new(),
    });
    assert_eq!(client.run_to_end(&pod, both).await?.stdout, "0\nmade\n");
    for (word, said) in [
        ("nonsense", "nonsense"),
        ("localhost/../out.json", "../out.json"),
        ("localhost/absent.json", "absent.json"),
    ] {
        let error = client.create(&pod, config("wrong", word)).await.unwrap_err();
        assert!(error.message().contains(said), "{word}: {error}");
    }
    story.finish().await
}

/// With or without AppArmor in the kernel: a profile that was asked for and is not
/// there is refused, and none at all is possible.
#[tokio::test]
#[expect(deprecated, reason = "old clients still set the deprecated field")]
async fn a_profile_of_apparmor_that_is_not_there_is_refused() -> Result {
    use cri::security_profile::ProfileType;
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("apparmor").await?;
    let profile = |kind: ProfileType, name: &str| {
        Some(cri::SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: name.into(),
        })
    };
    let mut new = story.script("new", "true");
    security(&mut new).apparmor = profile(ProfileType::Localhost, "e2e-absent");
    let mut old = story.script("old", "true");
    security(&mut old).apparmor_profile = "localhost/e2e-absent".into();
    for config in [new, old] {
        let error = client.create(&pod, config).await.unwrap_err();
        if !story.node.is_peer() {
            assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
            assert!(
                error.message().contains("e2e-absent") && error.message().contains("apparmor"),
                "{error}"
            );
        }
    }
    let mut nonsense = story.script("nonsense", "true");
    security(&mut nonsense).apparmor_profile = "nonsense".into();
    let error = client.create(&pod, nonsense).await.unwrap_err();
    if !story.node.is_peer() {
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }

    let mut new = story.script("free-new", "cat /proc/self/attr/current 2>/dev/null; echo ran");
    security(&mut new).apparmor = profile(ProfileType::Unconfined, "");
    let mut old = story.script("free-old", "cat /proc/self/attr/current 2>/dev/null; echo ran");
    security(&mut old).apparmor_profile = "unconfined".into();
    for config in [new, old] {
        let output = client.run_to_end(&pod, config).await?;
        assert!(
            output.stdout == "ran\n" || output.stdout.starts_with("unconfined"),
            "{output:?}"
        );
    }
    story.finish().await
}
