//! What a container may do.

use e2e::{
    Client, Output, Result, Story,
    client::{pod_security, security},
    cri,
};

/// Runs a script in a container whose security context was changed.
async fn run(
    story: &Story,
    name: &str,
    script: &str,
    change: impl Fn(&mut cri::LinuxContainerSecurityContext),
) -> Result<Output> {
    let client: &Client = &story.client;
    let mut pod = client.pod_config(name);
    let mut config = story.script("c", script);
    change(security(&mut config));
    pod_security(&mut pod).privileged = security(&mut config).privileged;
    let pod = client.run_pod_with(pod).await?;
    client.run_to_end(&pod, config).await
}

const CAPS: &str = "grep -E 'Cap(Eff|Bnd|Amb)' /proc/self/status | cut -f2 | tr '\\n' ' '";

/// What a container has by custom: chown, dac_override, fowner, fsetid, kill,
/// setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod,
/// audit_write, setfcap.
const DEFAULT: u64 = 0xa804_25fb;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const CHOWN: u64 = 1;

fn parse(output: &Output) -> Vec<u64> {
    let words = output.stdout.split_whitespace();
    words
        .map(|word| u64::from_str_radix(word, 16).expect("hex"))
        .collect()
}

#[tokio::test]
async fn capabilities() -> Result {
    let story = Story::begin().await?;
    let plain = parse(&run(&story, "plain", CAPS, |_| {}).await?);
    assert_eq!(plain, [DEFAULT, DEFAULT, 0], "{plain:x?}");
    let capability = |add: &[&str], drop: &[&str]| cri::Capability {
        add_capabilities: add.iter().map(|c| (*c).into()).collect(),
        drop_capabilities: drop.iter().map(|c| (*c).into()).collect(),
        ..Default::default()
    };
    let changed = run(&story, "changed", CAPS, |s| {
        s.capabilities = Some(capability(&["NET_ADMIN"], &["NET_RAW"]));
    });
    let expected = DEFAULT & !NET_RAW | NET_ADMIN;
    assert_eq!(parse(&changed.await?)[..2], [expected, expected]);
    let only = run(&story, "only", CAPS, |s| {
        s.capabilities = Some(capability(&["CHOWN"], &["ALL"]))
    });
    assert_eq!(parse(&only.await?), [CHOWN, CHOWN, 0]);
    // All that we have ourselves.
    let status = std::fs::read_to_string("/proc/self/status")?;
    let own = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:\t"))
        .expect("there");
    let own = u64::from_str_radix(own, 16)?;
    if !story.node.is_peer() {
        let all = run(&story, "all", CAPS, |s| {
            s.capabilities = Some(capability(&["ALL"], &[]))
        });
        assert_eq!(parse(&all.await?)[..2], [own, own]);
        // A user without privileges has none in effect.
        let user = run(&story, "user", CAPS, |s| {
            s.run_as_user = Some(cri::Int64Value { value: 1001 })
        });
        assert_eq!(parse(&user.await?), [0, DEFAULT, 0]);
        let ambient = run(&story, "ambient", CAPS, |s| {
            s.run_as_user = Some(cri::Int64Value { value: 1001 });
            s.capabilities = Some(cri::Capability {
                add_ambient_capabilities: vec!["CHOWN".into()],
                ..capability(&["CHOWN"], &[])
            });
        });
        let ambient = parse(&ambient.await?);
        assert_eq!((ambient[0], ambient[2]), (CHOWN, CHOWN), "{ambient:x?}");
    }
    story.finish().await
}

#[tokio::test]
async fn no_new_privileges_and_seccomp() -> Result {
    let story = Story::begin().await?;
    let script = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | cut -f2 | tr '\\n' ' '";
    use cri::security_profile::ProfileType;
    let profile = |kind: ProfileType| cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: String::new(),
    };
    let output = run(&story, "default", script, |s| {
        s.no_new_privs = true;
        s.seccomp = Some(profile(ProfileType::RuntimeDefault));
    });
    assert_eq!(output.await?.stdout.trim(), "1 2");
    let output = run(&story, "unconfined", script, |s| {
        s.seccomp = Some(profile(ProfileType::Unconfined))
    });
    assert_eq!(output.await?.stdout.trim(), "0 0");
    // The default profile does not let a container make a user namespace or mount.
    let output = run(&story, "denied", "mount -t tmpfs x /tmp; echo $?", |s| {
        s.seccomp = Some(profile(ProfileType::RuntimeDefault));
    });
    assert_ne!(output.await?.stdout.trim(), "0");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}"#;
    let path = story.node.path().join("seccomp/no-mkdir.json");
    std::fs::write(&path, text)?;
    let output = run(
        &story,
        "local",
        "mkdir /tmp/x; echo $?; touch /tmp/y && echo touched",
        |s| {
            s.seccomp = Some(cri::SecurityProfile {
                profile_type: ProfileType::Localhost.into(),
                localhost_ref: path.to_string_lossy().into_owned(),
            });
        },
    );
    let output = output.await?;
    assert!(output.stdout.ends_with("1\ntouched\n"), "{output:?}");
    assert!(output.stderr.contains("not supported"), "{output:?}");
    story.finish().await
}

#[tokio::test]
async fn privileged() -> Result {
    let story = Story::begin().await?;
    let script = "mount -t tmpfs x /tmp && echo mounted; grep Seccomp: /proc/self/status | cut -f2; \
        grep -c ' /sys sysfs rw' /proc/mounts; ls /dev | wc -l";
    let output = run(&story, "privileged", script, |s| s.privileged = true).await?;
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(lines[..2], ["mounted", "0"], "{output:?}");
    // What kube-proxy needs; not so with every version of the peers.
    assert!(lines[2] == "1" || story.node.is_peer(), "{output:?}");
    let host = std::fs::read_dir("/dev")?.count();
    assert!(
        lines[3].parse::<usize>()? + 10 > host,
        "the host's devices are there: {output:?}"
    );
    let output = run(&story, "plain", "mount -t tmpfs x /tmp; echo $?", |_| {}).await?;
    assert_ne!(output.stdout.trim(), "0", "{output:?}");
    story.finish().await
}

#[tokio::test]
async fn roots_and_paths_that_are_only_read_or_hidden() -> Result {
    let story = Story::begin().await?;
    let output = run(
        &story,
        "ro",
        "touch /x; echo $?; touch /dev/shm/x; echo $?",
        |s| s.readonly_rootfs = true,
    );
    let output = output.await?;
    assert_eq!(output.stdout, "1\n0\n", "{output:?}");
    assert!(output.stderr.contains("Read-only"), "{output:?}");
    let script = "cat /etc/passwd | wc -c; ls -A /home | wc -l; touch /proc/sys/kernel/x; \
        echo 1 > /proc/sys/net/ipv4/ip_forward; echo $?; head -c 1 /proc/kcore | wc -c";
    let output = run(&story, "masked", script, |s| {
        s.masked_paths = ["/etc/passwd", "/home", "/proc/kcore", "/not/there"]
            .map(str::to_owned)
            .to_vec();
        s.readonly_paths = vec!["/proc/sys".into()];
    });
    let output = output.await?;
    assert_eq!(output.stdout, "0\n0\n1\n0\n", "{output:?}");
    story.finish().await
}

#[tokio::test]
async fn a_lower_oom_score_than_allowed_does_not_stop_a_container() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("oom-score").await?;
    for (name, score) in [("low", -998), ("high", 500)] {
        let mut config = story.script(name, "cat /proc/self/oom_score_adj");
        e2e::client::resources(&mut config).oom_score_adj = score;
        let output = client.run_to_end(&pod, config).await?;
        let found: i64 = output.stdout.trim().parse()?;
        assert!(found >= score, "{output:?}");
        assert!(score < 0 || found == score, "{output:?}");
    }
    if !story.node.is_peer() {
        // Without the right it is said, once and for all.
        let status = std::fs::read_to_string("/proc/self/status")?;
        let own = status.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
        let may = u64::from_str_radix(own.expect("there"), 16)? & (1 << 24) != 0;
        let said = story.node.log().matches("CAP_SYS_RESOURCE").count();
        assert_eq!(said, usize::from(!may), "{}", story.node.log());
    }
    story.finish().await
}

#[tokio::test]
async fn devices() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("devices").await?;
    // No container has this one by custom.
    if !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("skipped: this machine has no /dev/fuse");
        return story.finish().await;
    }
    let script = "(: < /dev/own) && echo read; (: > /dev/own); echo $?";
    let mut config = story.script("c", script);
    config.devices = vec![cri::Device {
        container_path: "/dev/own".into(),
        host_path: "/dev/fuse".into(),
        permissions: "r".into(),
    }];
    let output = client.run_to_end(&pod, config).await?;
    assert_eq!(output.stdout, "read\n1\n", "{output:?}");
    // A node that the container makes itself opens no device that it was not given.
    let script = "mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg";
    let output = client.run_to_end(&pod, story.script("d", script)).await?;
    assert_ne!(output.code, 0, "{output:?}");
    story.finish().await
}
