//! Devices of the Container Device Interface, with the hooks of their files.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use e2e::{Node, Result, Story, cri};
use serde_json::{Value, json};

/// A script on the host that notes who it is and what it was told.
fn hook(folder: &Path, name: &str) -> Result<Value> {
    let path = folder.join(format!("hook-{name}"));
    let out = folder.join(format!("said-{name}"));
    fs::write(
        &path,
        format!(
            "#!/bin/sh\n{{ cat; echo; echo \"$0 $1 $MARK\"; readlink /proc/self/ns/mnt /proc/self/ns/net; pwd; test -e rootfs/bin/sh && echo has-root; true; }} > {}\n",
            out.display()
        ),
    )?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(
        json!({"hookName": name, "path": path, "args": [name, "argument"], "env": ["MARK=x", "PATH=/bin:/usr/bin"], "timeout": 10}),
    )
}

async fn begin(edits: Value) -> Result<(Story, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let specs = folder.path().join("specs");
    fs::create_dir(&specs)?;
    let file = json!({"cdiVersion": "0.6.0", "kind": "berth.test/thing", "devices": [{"name": "one", "containerEdits": edits}]});
    fs::write(specs.join("thing.json"), serde_json::to_vec(&file)?)?;
    let config = format!("[runtime]\ncdi_spec_dirs = [\"{}\"]\n", specs.display());
    Ok((Story::begin_on(Node::start_with(&config).await?).await?, folder))
}

fn with_device(story: &Story, name: &str) -> cri::ContainerConfig {
    let mut config = story.script("c", "cat /began 2>/dev/null; sleep 1000");
    config.cdi_devices = vec![cri::CdiDevice { name: name.into() }];
    config
}

#[tokio::test]
async fn device_environment_mount_and_group() -> Result {
    let data = tempfile::tempdir()?;
    fs::write(data.path().join("lib"), "driver")?;
    let (story, _folder) = begin(json!({
        "env": ["THING=1"],
        "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/zero", "permissions": "r"}],
        "mounts": [{"hostPath": data.path(), "containerPath": "/thing", "options": ["ro", "bind"]}],
        "additionalGids": [4321],
    }))
    .await?;
    let client = &story.client;
    let pod = client.run_pod("cdi").await?;
    let id = client
        .run(&pod, with_device(&story, "berth.test/thing=one"))
        .await?;
    assert_eq!(client.sh(&id, "echo $THING; cat /thing/lib").await?, "1\ndriver");
    assert_eq!(
        client.sh(&id, "head -c 3 /dev/thing | od -An -tx1").await?.trim(),
        "00 00 00"
    );
    assert!(client.sh(&id, "id -G").await?.contains("4321"));
    assert!(client.exec(&id, &["touch", "/thing/x"]).await?.code != 0);
    let user = client
        .status(&id)
        .await?
        .user
        .unwrap_or_default()
        .linux
        .unwrap_or_default();
    assert!(user.supplemental_groups.contains(&4321));
    let mut config = with_device(&story, "berth.test/thing=two");
    config.metadata.as_mut().unwrap().name = "absent".into();
    let error = client.create(&pod, config).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    assert!(
        error.message().contains("berth.test/thing=two") && error.message().contains("/specs"),
        "{error}"
    );
    story.finish().await
}

#[tokio::test]
async fn every_hook_runs_where_it_should() -> Result {
    let (story, folder) = begin(json!({})).await?;
    let path = folder.path();
    let names = [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ];
    let mut hooks = names
        .iter()
        .map(|name| hook(path, name))
        .collect::<Result<Vec<_>>>()?;
    // In the container, with its program, and its rights.
    let script = "id -u > /began; cat >> /began; touch /sys/no 2>> /began; true";
    hooks.push(json!({"hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}));
    let file = json!({"cdiVersion": "0.6.0", "kind": "berth.test/thing", "containerEdits": {"hooks": hooks}, "devices": [{"name": "one"}]});
    fs::write(path.join("specs/thing.json"), serde_json::to_vec(&file)?)?;
    let client = &story.client;
    let pod = client.run_pod("hooks").await?;
    let mut config = with_device(&story, "berth.test/thing=one");
    config.cdi_devices.clear();
    config
        .annotations
        .insert("cdi.k8s.io/test".into(), "berth.test/thing=one".into());
    let id = client.run(&pod, config).await?;
    let said = |name: &str| fs::read_to_string(path.join(format!("said-{name}"))).unwrap_or_default();
    let own = fs::read_link("/proc/self/ns/mnt")?.to_string_lossy().into_owned();
    for (name, status, inside) in [
        ("prestart", "creating", false),
        ("createRuntime", "creating", false),
        ("createContainer", "creating", true),
        ("poststart", "running", false),
    ] {
        let said = said(name);
        let state: Value = serde_json::from_str(said.lines().next().unwrap_or_default())?;
        if let Some(runtime) = e2e::handler() {
            // Runtimes differ in the status, and see the root before the container does.
            eprintln!("{name} of {runtime}: {}", state["status"]);
            assert_eq!(state["id"], json!(id), "{said}");
            assert!(said.contains("argument x"), "{said}");
            continue;
        }
        assert_eq!(
            (&state["id"], &state["status"]),
            (&json!(id), &json!(status)),
            "{said}"
        );
        assert!(state["pid"].as_u64().is_some_and(|pid| pid > 1), "{said}");
        assert!(said.contains("argument x"), "{said}");
        assert_eq!(!said.contains(&own), inside, "{name}: {said}");
        assert_eq!(said.contains("has-root"), inside, "{name}: {said}");
    }
    let began = client.sh(&id, "cat /began").await?;
    let told = e2e::handler().is_some();
    assert!(
        told && began.starts_with('0')
            || began.starts_with("0\n") && began.contains("\"created\"") && began.contains("Read-only"),
        "{began}"
    );
    assert!(said("poststop").is_empty());
    client.remove(&id).await?;
    assert!(said("poststop").contains("\"stopped\"") || told && !said("poststop").is_empty());
    story.finish().await
}

#[tokio::test]
async fn a_hook_that_fails_or_hangs_fails_the_container() -> Result {
    let (story, folder) = begin(json!({})).await?;
    let client = &story.client;
    let pod = client.run_pod("fails").await?;
    let failing = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo because >&2; exit 3"]});
    let hanging =
        json!({"path": "/bin/sh", "args": ["sh", "-c", "sleep 100"], "timeout": 1, "env": ["PATH=/bin"]});
    for (body, reason) in [(failing, "exited with 3: because"), (hanging, "longer than 1 s")] {
        for name in ["createRuntime", "createContainer", "startContainer"] {
            let mut hook = body.clone();
            hook["hookName"] = json!(name);
            let file = json!({"cdiVersion": "0.6.0", "kind": "berth.test/thing", "devices": [{"name": "one", "containerEdits": {"hooks": [hook]}}]});
            fs::write(folder.path().join("specs/thing.json"), serde_json::to_vec(&file)?)?;
            let made = client
                .run(&pod, with_device(&story, "berth.test/thing=one"))
                .await;
            let error = match made {
                Ok(id) if name == "startContainer" && e2e::handler().is_some() => {
                    // The runtime's start has ended by then: it is the end of the container.
                    let status = client.wait_exit(&id).await?;
                    assert_ne!(status.exit_code, 0, "{status:?}");
                    client.remove(&id).await?;
                    continue;
                }
                made => made.unwrap_err(),
            };
            let told = e2e::handler().is_some();
            if told {
                eprintln!("{name}, in the words of its runtime: {error}");
            }
            assert!(
                told || error.message().contains(name) && error.message().contains(reason),
                "{name}: {error}"
            );
            for left in client.containers(None).await? {
                client.remove(&left.id).await?;
            }
        }
    }
    story.finish().await
}
