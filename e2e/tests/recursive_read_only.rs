//! `Mount.recursive_read_only`, and the feature that announces it.

use std::{fs, path::PathBuf};

use e2e::{Result, Story, cri, kernel};
use tonic::Code;

/// A file system in a folder of the host, unmounted at the end whatever happens.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        kernel::output("umount", &["-l", &self.0.to_string_lossy()]);
    }
}

#[tokio::test]
async fn what_is_mounted_below_is_read_only_too() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let mut runtime = client.runtime.clone();
    let told = runtime.status(cri::StatusRequest::default()).await?;
    let handlers = told.into_inner().runtime_handlers;
    let default = handlers.iter().find(|handler| handler.name.is_empty());
    let features = default.and_then(|handler| handler.features.as_ref());
    let possible = features.is_some_and(|features| features.recursive_read_only_mounts);
    if let (false, Some(runtime)) = (possible, e2e::handler()) {
        eprintln!("skipped: {runtime} does not say that it can, so it is not asked to");
        return story.finish().await;
    }
    assert!(possible);

    let host = tempfile::tempdir()?;
    let below = Mounted(host.path().join("below"));
    fs::create_dir(&below.0)?;
    let path = below.0.to_string_lossy().into_owned();
    kernel::output("mount", &["-t", "tmpfs", "e2e", &path]);
    kernel::output("mount", &["--make-shared", &path]);
    fs::write(below.0.join("seen"), "")?;
    let mount = |target: &str, readonly: bool, recursive: bool| cri::Mount {
        host_path: host.path().to_string_lossy().into_owned(),
        container_path: target.into(),
        readonly,
        recursive_read_only: recursive,
        ..Default::default()
    };
    let pod = client.run_pod("recursive").await?;
    let mut config = story.script("c", "exec sleep 1000");
    config.mounts = vec![mount("/plain", true, false), mount("/deep", true, true)];
    let id = client.run(&pod, config).await?;
    for (path, expected) in [
        ("/plain/x", false),
        ("/plain/below/x", true),
        ("/deep/x", false),
        ("/deep/below/x", false),
    ] {
        let output = client.exec(&id, &["touch", path]).await?;
        assert_eq!(output.code == 0, expected, "{path}: {output:?}");
        assert!(expected || output.stderr.contains("Read-only"), "{output:?}");
    }
    // The same tree, and writable for the node.
    client
        .sh(&id, "test -e /deep/below/seen && test -e /deep/below/x")
        .await?;
    fs::write(below.0.join("y"), "")?;
    let told = client.status(&id).await?.mounts;
    let deep = told.iter().find(|mount| mount.container_path == "/deep");
    assert!(deep.is_some_and(|mount| mount.readonly && mount.recursive_read_only));

    let mut propagated = mount("/m", true, true);
    propagated.host_path = path;
    propagated.propagation = cri::MountPropagation::PropagationHostToContainer.into();
    for (name, wrong) in [("writable", mount("/m", false, true)), ("shared", propagated)] {
        let mut config = story.script(name, "true");
        config.mounts = vec![wrong];
        let error = client.create(&pod, config).await.unwrap_err();
        if !story.node.is_peer() {
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        }
    }
    client.remove_everything().await?;
    drop(below);
    story.finish().await
}
