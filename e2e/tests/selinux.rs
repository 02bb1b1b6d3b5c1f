//! SELinux labels: set where the kernel has SELinux; without it they mean nothing, as
//! with the peers.

use std::{fs, path::Path};

use e2e::{
    Result, Story,
    client::{pod_security, security},
    cri,
};
use tonic::Code;

/// What differs from one story to the next in the options, one field at a time.
fn options() -> [cri::SeLinuxOption; 4] {
    let word = |word: &str| word.to_owned();
    let none = cri::SeLinuxOption::default;
    [
        cri::SeLinuxOption {
            user: word("system_u"),
            ..none()
        },
        cri::SeLinuxOption {
            role: word("system_r"),
            ..none()
        },
        cri::SeLinuxOption {
            r#type: word("spc_t"),
            ..none()
        },
        cri::SeLinuxOption {
            level: word("s0:c1,c2"),
            ..none()
        },
    ]
}

/// The label of a file, where it has one.
fn label(path: &Path) -> Option<Vec<u8>> {
    let mut value = [0; 256];
    let length = rustix::fs::lgetxattr(path, "security.selinux", &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

#[tokio::test]
async fn labels_are_set_or_mean_nothing() -> Result {
    let story = Story::begin().await?;
    if story.node.is_peer() {
        eprintln!("skipped: peers set labels");
        return story.finish().await;
    }
    let client = &story.client;
    let enabled = Path::new("/sys/fs/selinux/enforce").exists();
    let plain = client.run_pod("plain").await?;
    let own = client
        .run(&plain, story.script("plain", "exec sleep 1000"))
        .await?;
    let attribute = "cat /proc/self/attr/current 2>&1; true";
    let unlabelled = client.sh(&own, attribute).await?;

    let volume = story.node.path().join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("file"), "content")?;
    let before = (label(&volume), label(&volume.join("file")));
    for (number, options) in options().into_iter().enumerate() {
        let mut config = client.pod_config(&format!("labelled-{number}"));
        pod_security(&mut config).selinux_options = Some(options.clone());
        let pod = client.run_pod_with(config).await?;
        let mut config = story.script(&format!("labelled-{number}"), "exec sleep 1000");
        // The pod's options are its containers' too.
        if number % 2 == 0 {
            security(&mut config).selinux_options = Some(options.clone());
        }
        config.mounts = vec![cri::Mount {
            host_path: volume.to_string_lossy().into_owned(),
            container_path: "/volume".into(),
            selinux_relabel: true,
            ..Default::default()
        }];
        let id = client.run(&pod, config).await?;
        let found = client.sh(&id, attribute).await?;
        assert_eq!(client.sh(&id, "cat /volume/file").await?, "content");
        let asked = [&options.user, &options.role, &options.r#type, &options.level];
        if enabled {
            assert!(asked.iter().all(|part| found.contains(part.as_str())), "{found}");
            assert_ne!(
                label(&volume.join("file")),
                before.1,
                "the volume was not relabelled"
            );
        } else {
            assert_eq!(found, unlabelled);
        }
    }
    if !enabled {
        // Nothing was written on the files either.
        assert_eq!((label(&volume), label(&volume.join("file"))), before);
    }
    // What is no part of a context is refused in any case.
    let mut config = client.pod_config("odd");
    pod_security(&mut config).selinux_options = Some(cri::SeLinuxOption {
        level: "s0\",upperdir=/".into(),
        ..Default::default()
    });
    let error = client.run_pod_with(config).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("selinux_options.level"), "{error}");
    story.finish().await
}
