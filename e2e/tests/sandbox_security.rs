//! The security context of a sandbox: what of it concerns its containers, and what
//! would concern a process that it does not have.

use e2e::{
    Result, Story,
    client::{pod_security, security},
    cri,
};
use tonic::Code;

/// The user of the init of a shared PID namespace, which is nobody's in any image.
const NOBODY: &str = "65535\t65535\t65535\t65535";

/// A sandbox has no process of the request's making, so who that would be changes
/// nothing: not for containers, which have a context of their own, and not for the
/// init of a shared PID namespace, which has no rights at all.
#[tokio::test]
#[expect(deprecated, reason = "old clients still set the deprecated field")]
async fn its_process_is_not_there_and_its_containers_are_themselves() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: the sandboxes of others have a process");
        return story.finish().await;
    }
    let client = &story.client;
    use cri::security_profile::ProfileType;
    let absent = |name: &str| {
        Some(cri::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: name.into(),
        })
    };
    let shared = cri::NamespaceOption {
        pid: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    };
    let mut config = client.pod_config("itself");
    *pod_security(&mut config) = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(shared.clone()),
        run_as_user: Some(cri::Int64Value { value: 1001 }),
        run_as_group: Some(cri::Int64Value { value: 55 }),
        readonly_rootfs: true,
        supplemental_groups: vec![77, 78],
        supplemental_groups_policy: cri::SupplementalGroupsPolicy::Strict.into(),
        // Containers that had them would not start.
        seccomp: absent("/no/such/profile.json"),
        apparmor: absent("e2e-absent"),
        seccomp_profile_path: "localhost/no/such/profile.json".into(),
        ..Default::default()
    };
    let pod = client.run_pod_with(config).await?;
    let mut container = story.script("c", "exec sleep 1000");
    security(&mut container).namespace_options = Some(shared);
    let id = client.run(&pod, container).await?;
    let own = client
        .sh(
            &id,
            "id -u; id -G; touch /made && echo made; grep Seccomp: /proc/self/status | cut -f2",
        )
        .await?;
    assert_eq!(own, "0\n0\nmade\n0");
    // The init: nobody, without a capability, and none to be had again.
    let status = "grep -E '^(Uid|Gid|CapPrm|CapEff|CapBnd|NoNewPrivs)' /proc/1/status | cut -f2-";
    let init = client.sh(&id, status).await?;
    let lines: Vec<_> = init.lines().collect();
    assert_eq!(lines[..2], [NOBODY, NOBODY], "{init}");
    let capabilities = lines[2..5].iter().map(|line| u64::from_str_radix(line, 16));
    assert!(capabilities.into_iter().all(|found| found == Ok(0)), "{init}");
    assert_eq!(lines[5], "1", "{init}");
    // Killed last for want of memory, or at least not before berthd.
    let score: i32 = client.sh(&id, "cat /proc/1/oom_score_adj").await?.parse()?;
    let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj")?
        .trim()
        .parse()?;
    assert!(score == -998 || score == own, "{score}");
    story.finish().await
}

/// The kubelet makes a sandbox privileged when one of its containers is.
#[tokio::test]
async fn privileged_containers_need_a_privileged_pod() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let rights = "grep CapEff /proc/self/status | cut -f2";
    let plain = client.run_pod("plain").await?;
    let mut config = story.script(
        "c",
        &format!("{rights}; wc -c < /etc/passwd; touch /home/new && echo new"),
    );
    security(&mut config).privileged = true;
    // The kubelet gives them to privileged containers too.
    security(&mut config).masked_paths = vec!["/etc/passwd".into()];
    security(&mut config).readonly_paths = vec!["/home".into()];
    let error = client.create(&plain, config.clone()).await.unwrap_err();
    if !story.node.is_peer() {
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("privileged"), "{error}");
    }
    let mut pod = client.pod_config("privileged");
    pod_security(&mut pod).privileged = true;
    let pod = client.run_pod_with(pod).await?;
    let output = client.run_to_end(&pod, config).await?;
    let lines: Vec<_> = output.stdout.lines().collect();
    assert!(lines[1].trim() != "0" && lines[2] == "new", "{output:?}");
    let mighty = lines[0].to_owned();
    // The pod's privilege is not its containers'.
    let ordinary = client.run_to_end(&pod, story.script("d", rights)).await?.stdout;
    let number = |text: &str| u64::from_str_radix(text.trim(), 16);
    let (mighty, ordinary) = (number(&mighty)?, number(&ordinary)?);
    assert!(
        mighty & ordinary == ordinary && mighty != ordinary,
        "{mighty:x} {ordinary:x}"
    );
    story.finish().await
}

/// Each mode of each namespace, against the node's and the neighbour's.
#[tokio::test]
async fn namespaces_are_shared_as_asked() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let links = "for n in net pid ipc; do readlink /proc/self/ns/$n; done";
    let own: Vec<_> = ["net", "pid", "ipc"]
        .iter()
        .map(|name| std::fs::read_link(format!("/proc/self/ns/{name}")))
        .map(|link| link.map(|link| link.to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()?;
    let (node, pod, container) = (
        cri::NamespaceMode::Node as i32,
        cri::NamespaceMode::Pod as i32,
        cri::NamespaceMode::Container as i32,
    );
    for (number, (network, pid, ipc)) in [
        (node, container, node),
        (pod, node, node),
        (node, pod, pod),
        (pod, container, pod),
    ]
    .into_iter()
    .enumerate()
    {
        let options = cri::NamespaceOption {
            network,
            pid,
            ipc,
            ..Default::default()
        };
        let mut config = client.pod_config(&format!("spaces-{number}"));
        pod_security(&mut config).namespace_options = Some(options.clone());
        if network == node {
            config.hostname.clear();
        }
        let made = client.run_pod_with(config).await?;
        let mut seen = Vec::new();
        for name in ["one", "two"] {
            let mut config = story.script(name, "exec sleep 1000");
            security(&mut config).namespace_options = Some(options.clone());
            let id = client.run(&made, config).await?;
            let text = client.sh(&id, links).await?;
            seen.push(text.lines().map(str::to_owned).collect::<Vec<_>>());
        }
        for (at, mode) in [network, pid, ipc].into_iter().enumerate() {
            let (one, two) = (&seen[0][at], &seen[1][at]);
            assert_eq!(*one == own[at], mode == node, "{options:?}: {seen:?}");
            assert_eq!(one == two, mode != container, "{options:?}: {seen:?}");
        }
        let told = client.pod_status(&made.id).await?.linux.unwrap_or_default();
        let told = told.namespaces.unwrap_or_default().options;
        assert_eq!(told, Some(options));
    }
    story.finish().await
}
