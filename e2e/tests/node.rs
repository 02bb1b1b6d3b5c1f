//! What the node says of itself, and what the kubelet tells it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
};

use anyhow::Context;
use e2e::{Client, Result, Story, cri, machine, node::binary};
use tonic::Code;

async fn status(client: &Client, verbose: bool) -> Result<cri::StatusResponse> {
    let request = cri::StatusRequest { verbose };
    Ok(client.runtime.clone().status(request).await?.into_inner())
}

/// The condition of this type.
fn condition(answer: &cri::StatusResponse, kind: &str) -> Option<cri::RuntimeCondition> {
    let mut all = answer.status.iter().flat_map(|status| &status.conditions);
    all.find(|condition| condition.r#type == kind).cloned()
}

/// Version of the kubelet's API: the kubelet asks with three different ones, and
/// accepts one answer only.
#[tokio::test]
async fn version_is_the_kubelets() -> Result {
    let story = Story::begin().await?;
    for version in ["v1", "", "0.1.0", "v1alpha2"] {
        let request = cri::VersionRequest {
            version: version.into(),
        };
        let told = story.client.runtime.clone().version(request).await?.into_inner();
        assert_eq!((&*told.version, &*told.runtime_api_version), ("0.1.0", "v1"));
        if !story.node.is_peer() {
            assert_eq!(told.runtime_name, "berth");
            let own = Command::new(binary("berthd")).arg("--version").output()?;
            let own = String::from_utf8(own.stdout)?;
            assert_eq!(own.split_whitespace().last(), Some(&*told.runtime_version));
            let parts: Vec<_> = told.runtime_version.split('.').map(str::parse::<u32>).collect();
            assert!(parts.len() == 3 && parts.iter().all(Result::is_ok), "semver");
        }
    }
    story.finish().await
}

#[tokio::test]
async fn handlers_features_and_configuration() -> Result {
    let story = Story::begin_with("[runtimes.small]\ntype = \"berth\"\n[runtimes.other]\n").await?;
    if story.node.is_peer() {
        eprintln!("skipped: it needs runtime handlers of its own");
        return story.finish().await;
    }
    let client = &story.client;
    let told = status(client, false).await?;
    assert!(told.info.is_empty(), "not asked for: {:?}", told.info);
    let handlers: BTreeMap<_, _> = told
        .runtime_handlers
        .iter()
        .map(|handler| (&*handler.name, handler.features.unwrap_or_default()))
        .collect();
    assert_eq!(handlers.len(), told.runtime_handlers.len(), "each name once");
    let runtime = e2e::handler();
    let mut expected = vec!["", "berth", "other", "small"];
    expected.extend(runtime.as_deref());
    expected.sort_unstable();
    assert_eq!(handlers.keys().copied().collect::<Vec<_>>(), expected);
    for name in ["berth", "other", "small"] {
        assert!(handlers[name].recursive_read_only_mounts, "{name}");
    }
    // What is said of handlers is so: a pod of each runs, and says whose it is.
    for name in handlers.keys() {
        let config = client.pod_config(&format!("by-{name}"));
        fs::create_dir_all(&config.log_directory)?;
        let request = cri::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: (*name).into(),
        };
        let mut runtime = client.runtime.clone();
        let pod = Box::pin(runtime.run_pod_sandbox(request)).await?.into_inner();
        assert_eq!(
            client.pod_status(&pod.pod_sandbox_id).await?.runtime_handler,
            *name
        );
    }
    let features = told.features.context("features")?;
    assert!(features.supplemental_groups_policy && features.mount_options);
    assert!(features.user_namespaces_host_network);

    let info = status(client, true).await?.info;
    let value = |key: &str| -> Result<serde_json::Value> {
        Ok(serde_json::from_str(
            info.get(key).with_context(|| key.to_owned())?,
        )?)
    };
    let config = value("config")?;
    assert_eq!(config["rootDir"], story.node.root().to_string_lossy().as_ref());
    assert_eq!(
        config["config"]["cgroup"]["parent"],
        story.node.names().cgroup.as_str()
    );
    let folder = story.node.path().join("cni");
    assert_eq!(
        value("cniconfig")?["PluginConfDir"],
        folder.to_string_lossy().as_ref()
    );
    assert_eq!(value("lastCNILoadStatus")?, "OK");
    let mut runtime = client.runtime.clone();
    let told = runtime.runtime_config(cri::RuntimeConfigRequest {}).await?;
    let linux = told.into_inner().linux.context("linux")?;
    let driver = match machine::has_systemd_cgroups() {
        true => cri::CgroupDriver::Systemd,
        false => cri::CgroupDriver::Cgroupfs,
    };
    assert_eq!(linux.cgroup_driver(), driver);
    story.finish().await
}

#[tokio::test]
async fn conditions_say_why_pods_cannot_run() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: it breaks the network of the node");
        return story.finish().await;
    }
    let client = &story.client;
    let ready = |kind: &str| cri::RuntimeCondition {
        r#type: kind.into(),
        status: true,
        ..Default::default()
    };
    let told = status(client, false).await?;
    let conditions = told.status.context("status")?.conditions;
    assert_eq!(conditions, [ready("RuntimeReady"), ready("NetworkReady")]);

    let file = story.node.path().join("cni/10-broken.conflist");
    fs::write(&file, "{\"cniVersion\": \"1.0.0\", \"name\": ")?;
    let told = status(client, true).await?;
    let network = condition(&told, "NetworkReady").context("condition")?;
    assert_eq!(
        (network.status, &*network.reason),
        (false, "NetworkPluginNotReady")
    );
    assert!(network.message.contains("10-broken.conflist"), "{network:?}");
    assert_eq!(
        told.info["lastCNILoadStatus"],
        serde_json::to_string(&network.message)?
    );
    assert_eq!(condition(&told, "RuntimeReady"), Some(ready("RuntimeReady")));
    fs::remove_file(&file)?;
    let told = status(client, false).await?;
    assert_eq!(condition(&told, "NetworkReady"), Some(ready("NetworkReady")));
    story.finish().await
}

/// The kubelet gives the CIDRs of its node, of one family or of both.
#[tokio::test]
async fn pods_get_addresses_of_the_cidr_that_the_kubelet_gives() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: it changes the network of the node");
        return story.finish().await;
    }
    let client = &story.client;
    let tell = async |cidr: &str| {
        let request = cri::UpdateRuntimeConfigRequest {
            runtime_config: Some(cri::RuntimeConfig {
                network_config: Some(cri::NetworkConfig {
                    pod_cidr: cidr.into(),
                }),
            }),
        };
        client.runtime.clone().update_runtime_config(request).await
    };
    for wrong in ["10.1.2.0", "10.1.2.0/33", "word", "10.1.0.0/24,10.2.0.0/24"] {
        let error = tell(wrong).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{wrong}: {error}");
        assert!(error.message().contains(wrong), "{wrong}: {error}");
    }
    // Ranges that no other story on this machine has, and no bridge chooses.
    let mark = std::process::id();
    let (a, b) = (64 + (mark >> 8 & 0x3f), mark & 0xff);
    let (v4, v6) = (format!("100.{a}.{b}."), format!("fd5e:{a:x}:{b:x}::"));
    tell(&format!("{v4}0/24,{v6}/64")).await?;
    // An empty one, as the kubelet sends at its start, changes nothing.
    tell("").await?;
    let empty = cri::UpdateRuntimeConfigRequest::default();
    client.runtime.clone().update_runtime_config(empty).await?;
    let pod = client.run_pod("given").await?;
    let addresses = client.addresses(&pod).await?;
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    assert!(addresses[0].starts_with(&v4), "{addresses:?}");
    assert!(addresses[1].starts_with(&v6), "{addresses:?}");
    story.finish().await
}

#[tokio::test]
async fn a_group_may_use_the_socket() -> Result {
    const GROUP: u32 = 54_321;
    let story = Story::begin_with(&format!("[grpc]\ngroup = {GROUP}\n")).await?;
    if story.node.is_peer() {
        eprintln!("skipped: another server has other settings");
        return story.finish().await;
    }
    // Where a user without rights gets to: the story's folder is closed, and so may be
    // the one that programs are built in.
    fs::set_permissions(story.node.path(), fs::Permissions::from_mode(0o711))?;
    let program = story.node.path().join("berth");
    fs::copy(binary("berth"), &program)?;
    let ask = |group: u32| {
        Command::new(&program)
            .args(["--address", &story.node.address(), "version"])
            .uid(54_322)
            .gid(group)
            .output()
    };
    let member = ask(GROUP)?;
    assert!(member.status.success(), "{member:?}");
    let stranger = ask(GROUP + 1)?;
    let said = String::from_utf8_lossy(&stranger.stderr);
    assert!(
        !stranger.status.success() && said.contains("ermission denied"),
        "{said}"
    );
    // They get through the folder, and see nothing of it.
    let mode = fs::metadata(story.node.state())?.permissions().mode();
    assert_eq!(mode & 0o777, 0o710, "{mode:o}");
    story.finish().await
}
