//! Ways out by way of the kernel: cgroups, system calls, namespaces, and files of
//! procfs and sysfs that are the whole node's (CVE-2022-0492, 2022-0811).

use std::fs;

use e2e::{
    Output, Result, Story,
    client::security,
    cri::{self, security_profile::ProfileType},
    hostile,
    images::Pushed,
    kernel,
};

/// As a kubelet asks with `seccompDefault`, or without.
fn seccomp(config: &mut cri::ContainerConfig, kind: ProfileType) {
    security(config).seccomp = Some(cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: String::new(),
    });
}

/// What a kubelet asks for with every container that is not privileged.
fn hide(config: &mut cri::ContainerConfig) {
    let security = security(config);
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    security.masked_paths = owned(&["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]);
    security.readonly_paths = owned(&[
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ]);
}

async fn run(
    story: &Story,
    image: &Pushed,
    script: &str,
    change: impl Fn(&mut cri::ContainerConfig),
) -> Result<Output> {
    let pod = story.client.run_pod("kernel").await?;
    let mut config = story.client.script("c", &image.tag, script);
    hide(&mut config);
    change(&mut config);
    story.client.run_to_end(&pod, config).await
}

#[tokio::test]
async fn system_calls_that_no_container_needs() -> Result {
    let mut story = Story::begin().await?;
    let image = story.image(hostile::image()?, "calls:1").await?;
    let confined = run(&story, &image, "attack calls", |config| {
        seccomp(config, ProfileType::RuntimeDefault);
    });
    let confined = confined.await?.stdout;
    let open = run(&story, &image, "attack calls", |config| {
        seccomp(config, ProfileType::Unconfined)
    });
    let open = open.await?.stdout;
    assert!(confined.lines().count() > 15, "{confined}");
    for line in confined.lines() {
        let (call, answer) = line.split_once(' ').unwrap_or((line, ""));
        // ENOSYS is what clone3 is answered, so that a C library falls back to clone,
        // and what a kernel without the call says.
        assert!(["EPERM", "ENOSYS"].contains(&answer), "{call}: {answer}");
    }
    // The filter it is: without it they are let through, if only to be refused for
    // their arguments.
    let through = open
        .lines()
        .filter(|line| !line.ends_with(" EPERM") && !line.ends_with(" ENOSYS"));
    assert!(through.count() > 4, "{open}");
    story.finish().await
}

/// What procfs and sysfs have of the node, and a container that runs as root could
/// write if they were open.
#[tokio::test]
async fn files_of_the_node_in_procfs_and_sysfs() -> Result {
    let mut story = Story::begin().await?;
    let image = story.image(hostile::image()?, "files:1").await?;
    let script = "for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/vm/panic_on_oom \
        /proc/sys/fs/binfmt_misc/register /proc/sysrq-trigger /proc/irq/default_smp_affinity /proc/bus/pci \
        /sys/kernel/uevent_helper /sys/kernel/mm/transparent_hugepage/enabled /sys/power/state \
        /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/memory/cgroup.procs /sys/fs/cgroup/release_agent; do \
        [ -e $f ] && echo $f $(attack write $f); done; \
        echo keys $(cat /proc/keys | wc -c); mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x; \
        attack write /proc/self/comm; attack write /dev/kmsg; ls /dev";
    let output = run(&story, &image, script, |_| {}).await?;
    let files: Vec<_> = output
        .stdout
        .lines()
        .filter(|line| line.starts_with("/proc") || line.starts_with("/sys"))
        .collect();
    assert!(files.len() >= 4, "{output:?}");
    for line in files {
        let answer = line.rsplit(' ').next().unwrap_or_default();
        assert!(["EROFS", "EACCES", "EPERM", "EISDIR"].contains(&answer), "{line}");
    }
    // The session's keys are no other's, and the list of all is hidden.
    assert!(output.stdout.contains("keys 0"), "{output:?}");
    // The look can say that a file is open; the device of the kernel's log is not there.
    assert!(output.stdout.contains("\ndone\n"), "{output:?}");
    assert!(output.stdout.contains("\nENOENT\n"), "{output:?}");
    for name in ["mem", "kmsg", "port", "kvm", "loop0", "sda"] {
        assert!(
            !output.stdout.lines().any(|line| line == name),
            "/dev/{name}: {output:?}"
        );
    }
    story.finish().await
}

/// A namespace of its own gives a process rights in it, and none over its cgroup's
/// parents, whatever is mounted anew.
#[tokio::test]
async fn a_cgroup_is_not_left() -> Result {
    let mut story = Story::begin().await?;
    let image = story.image(hostile::image()?, "cgroups:1").await?;
    let client = &story.client;
    let script =
        "attack cgroups /tmp/cgroup; echo own; cut -d: -f3 /proc/self/cgroup; echo end; exec sleep 1000";
    for kind in [ProfileType::RuntimeDefault, ProfileType::Unconfined] {
        let pod = client.run_pod("cgroups").await?;
        let mut config = client.script("c", &image.tag, script);
        hide(&mut config);
        seccomp(&mut config, kind);
        let id = client.run(&pod, config).await?;
        let log = client.status(&id).await?.log_path;
        let text = loop {
            let text = fs::read_to_string(&log)?;
            if text.contains(" F end") {
                break text;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        eprintln!("{kind:?}: {text}");
        let lines: Vec<_> = text
            .lines()
            .filter_map(|line| line.split_once(" F "))
            .map(|(_, line)| line)
            .collect();
        if kind == ProfileType::RuntimeDefault {
            assert!(lines.contains(&"unshare EPERM"), "{text}");
        }
        assert!(!lines.contains(&"release_agent done"), "{text}");
        // Below its own cgroup there is nothing, above it would be those of others.
        for line in lines.iter().filter_map(|line| line.strip_prefix("folders ")) {
            assert!(line.parse::<usize>()? <= 1, "{text}");
        }
        // It is where it was put, in every hierarchy. On cgroup v2 it sees itself at the top.
        let own = lines
            .iter()
            .skip_while(|line| **line != "own")
            .skip(1)
            .take_while(|line| **line != "end");
        let own: Vec<_> = own.collect();
        let at_top = own.iter().all(|path| **path == "/");
        assert!(
            !own.is_empty() && (at_top || own.iter().all(|path| path.contains(&id))),
            "{own:?}"
        );
        for pid in kernel::pids(story.node.names())? {
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == "sleep" {
                let names = story.node.names();
                assert!(cgroup.contains(&*names.cgroup), "{cgroup}");
            }
        }
        client.stop_pod(&pod.id).await?;
    }
    story.finish().await
}
