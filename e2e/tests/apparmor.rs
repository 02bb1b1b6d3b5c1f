//! AppArmor profiles, where the kernel has AppArmor.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use e2e::{
    Result, Story,
    client::{pod_security, security},
    cri::{self, security_profile::ProfileType},
    kernel,
};

/// Whether the kernel has AppArmor; says it when not.
fn has_apparmor() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let has = enabled.is_ok_and(|text| text.starts_with('Y'));
    if !has {
        eprintln!("skipped: this kernel has no AppArmor");
    }
    has
}

fn parser(argument: &str, text: &str) -> Result {
    let mut child = Command::new("apparmor_parser")
        .args([argument, "--skip-cache"])
        .stdin(Stdio::piped())
        .spawn()
        .context("run apparmor_parser")?;
    child
        .stdin
        .take()
        .context("its input")?
        .write_all(text.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "apparmor_parser {argument}: {status}");
    Ok(())
}

/// A profile that is there as long as this.
struct Loaded(String);

impl Loaded {
    fn new(name: &str) -> Result<Loaded> {
        let text = format!("profile {name} {{ file, signal, network, capability, deny /tmp/** w, }}\n");
        parser("--replace", &text)?;
        Ok(Loaded(text))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(error) = parser("--remove", &self.0) {
            eprintln!("{error}");
        }
    }
}

fn profile(kind: ProfileType, name: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.into(),
    })
}

/// The label of a process, as it and the node see it.
const LABEL: &str = "cat /proc/self/attr/current";

#[tokio::test]
async fn the_default_profile_is_loaded_and_holds() -> Result {
    if !has_apparmor() {
        return Ok(());
    }
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("default").await?;
    let named = match story.node.is_peer() {
        true => "(enforce)",
        false => "berth-default (enforce)",
    };
    // It may not mount though it has the capability and no seccomp filter, nor write
    // to the kernel though /proc is writable.
    let script = "cat /proc/self/attr/current; mount -t tmpfs none /tmp 2>&1; \
        for file in /proc/sysrq-trigger /proc/sys/vm/swappiness; do \
            (echo 0 >$file) 2>&1; done; \
        echo 1 >/proc/self/oom_score_adj && echo own; \
        sleep 1000 & kill -9 $! && echo killed";
    let mut config = story.script("c", script);
    let context = security(&mut config);
    context.capabilities = Some(cri::Capability {
        add_capabilities: vec!["SYS_ADMIN".into()],
        ..Default::default()
    });
    context.seccomp = profile(ProfileType::Unconfined, "");
    context.masked_paths.clear();
    context.readonly_paths.clear();
    let output = client.run_to_end(&pod, config).await?;
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert!(
        lines.first().is_some_and(|label| label.contains(named)),
        "{output:?}"
    );
    let denied = lines
        .iter()
        .filter(|line| line.contains("ermission denied"))
        .count();
    assert_eq!(denied, 3, "{output:?}");
    assert_eq!(lines[lines.len() - 2..], ["own", "killed"], "{output:?}");

    let mark = format!("{}", 710_000 + std::process::id());
    let sleeper = story.script("sleeper", &format!("exec sleep {mark}"));
    let id = client.run(&pod, sleeper).await?;
    let label = client.sh(&id, LABEL).await?;
    assert!(label.contains(named), "an exec has {label}");
    let pid = kernel::output("pgrep", &["-fx", &format!("sleep {mark}")]);
    let label = fs::read_to_string(format!("/proc/{}/attr/current", pid.trim()))?;
    assert!(label.contains(named), "its init has {label}");
    // The node may end it.
    client.stop(&id, 0).await?;
    assert_eq!(client.status(&id).await?.exit_code, 137);
    story.finish().await
}

#[tokio::test]
#[expect(deprecated, reason = "old clients still set the deprecated field")]
async fn profiles_by_name_and_none() -> Result {
    if !has_apparmor() {
        return Ok(());
    }
    let story = Story::begin().await?;
    let client = &story.client;
    let name = format!("e2e-deny-{}", std::process::id());
    let loaded = Loaded::new(&name)?;
    let pod = client.run_pod("named").await?;
    let script = "cat /proc/self/attr/current; echo x >/tmp/x; ls /tmp";
    let mut new = story.script("new", script);
    security(&mut new).apparmor = profile(ProfileType::Localhost, &name);
    let mut old = story.script("old", script);
    security(&mut old).apparmor_profile = format!("localhost/{name}");
    for config in [new, old] {
        let output = client.run_to_end(&pod, config).await?;
        assert_eq!(output.stdout, format!("{name} (enforce)\n"), "{output:?}");
        assert!(output.stderr.contains("ermission denied"), "{output:?}");
    }
    let mut new = story.script("new-none", script);
    security(&mut new).apparmor = profile(ProfileType::Unconfined, "");
    let mut old = story.script("old-none", script);
    security(&mut old).apparmor_profile = "unconfined".into();
    for config in [new, old] {
        let output = client.run_to_end(&pod, config).await?;
        assert_eq!(output.stdout, "unconfined\nx\n", "{output:?}");
    }
    // What is not loaded any more is refused, with the remedy.
    drop(loaded);
    let mut gone = story.script("gone", script);
    security(&mut gone).apparmor = profile(ProfileType::Localhost, &name);
    let error = client.create(&pod, gone).await.unwrap_err();
    assert!(error.message().contains(&name), "{error}");
    story.finish().await
}

#[tokio::test]
async fn a_privileged_container_has_none_unless_it_asks() -> Result {
    if !has_apparmor() {
        return Ok(());
    }
    let story = Story::begin().await?;
    let client = &story.client;
    let name = format!("e2e-privileged-{}", std::process::id());
    let _loaded = Loaded::new(&name)?;
    let mut config = client.pod_config("privileged");
    pod_security(&mut config).privileged = true;
    let pod = client.run_pod_with(config).await?;
    let privileged = |container: &str, asked: Option<cri::SecurityProfile>| {
        let mut config = story.script(container, LABEL);
        security(&mut config).privileged = true;
        security(&mut config).apparmor = asked;
        config
    };
    let default = profile(ProfileType::RuntimeDefault, "");
    let output = client.run_to_end(&pod, privileged("default", default)).await?;
    assert_eq!(output.stdout, "unconfined\n");
    let named = privileged("named", profile(ProfileType::Localhost, &name));
    let output = client.run_to_end(&pod, named).await?;
    assert_eq!(output.stdout, format!("{name} (enforce)\n"));
    story.finish().await
}
