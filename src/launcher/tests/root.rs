//! The root of a container: layers, /dev, masks, read-only parts.

use std::path::Path;

use super::super::overlay::Way;
use super::harness::{Container, possible};

#[test]
fn dev_and_the_usual_mounts_are_there() {
    if !possible() {
        return;
    }
    let script = "stat -c '%F %t:%T %a' /dev/null /dev/zero; readlink /dev/fd; readlink /dev/stdin; readlink /dev/ptmx; \
                  mount; ls -1 /sys/fs/cgroup; echo x > /dev/null && cat /dev/null; ls -d /dev/console";
    let (text, _) = Container::new(script).run();
    assert!(
        text.contains("character special file 1:3 666\ncharacter special file 1:5 666\n"),
        "{text}"
    );
    assert!(
        text.contains("/proc/self/fd\n/proc/self/fd/0\npts/ptmx\n"),
        "{text}"
    );
    for line in [
        "proc on /proc type proc (rw,nosuid,nodev,noexec",
        "devpts on /dev/pts",
        "on /dev/mqueue",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.contains("sysfs on /sys type sysfs (ro"), "{text}");
    assert!(text.contains("console: No such file"), "{text}");
    if !crate::cgroup::Layout::detect().unwrap().is_pure_v2() {
        assert!(
            text.contains("\nmemory\n") && text.contains("cgroup on /sys/fs/cgroup/memory type cgroup (ro")
        );
    }
}

#[test]
fn paths_are_masked_and_read_only() {
    if !possible() {
        return;
    }
    let script = "cat /secret/file; ls /folder; echo x > /proc/sys/kernel/hostname || echo refused; \
                  echo x > /folder/y || echo full; cat /proc/keys | busybox wc -c; echo x > /frozen/x || echo cold";
    let mut container = Container::new(script);
    let layer = container.at("layers/1");
    for folder in ["secret", "folder", "frozen"] {
        std::fs::create_dir(layer.join(folder)).unwrap();
    }
    std::fs::write(layer.join("secret/file"), "secret").unwrap();
    std::fs::write(layer.join("folder/inner"), "secret").unwrap();
    let strings = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
    container.plan.masked_paths = strings(&[
        "/secret/file",
        "/folder",
        "/proc/keys",
        "/proc/acpi",
        "/sys/firmware",
        "/no/such",
    ]);
    container.plan.readonly_paths = strings(&["/proc/sys", "/frozen", "/proc/none"]);
    let (text, _) = container.run();
    assert!(!text.contains("secret\n") && !text.contains("inner"), "{text}");
    for words in ["refused\n", "full\n", "\n0\n", "cold\n"] {
        assert!(text.contains(words), "{words:?}: {text}");
    }
}

#[test]
fn a_mask_needs_a_true_dev_null() {
    if !possible() {
        return;
    }
    let mut container = Container::new("true");
    container.plan.devices[0].minor = 5;
    container.plan.masked_paths = vec!["/proc/keys".into()];
    let (text, _) = container.fail();
    assert!(text.contains("mask path \"/proc/keys\""), "{text}");
}

#[test]
fn a_read_only_root_still_gets_its_mount_points() {
    if !possible() {
        return;
    }
    let mut container = Container::new("echo x > /x || echo refused; echo ok > /data/f && cat /data/f; pwd");
    container.plan.rootfs.as_mut().unwrap().readonly = true;
    container.process().cwd = "/work/here".into();
    let volume = tempfile::tempdir().unwrap();
    container
        .plan
        .mounts
        .push(super::harness::bind(volume.path(), "/data"));
    let (text, code) = container.run();
    assert_eq!(code, 0);
    assert!(text.contains("refused\nok\n/work/here\n"), "{text}");
}

#[test]
fn a_hundred_layers_and_the_old_way() {
    if !possible() {
        return;
    }
    for way in [Way::Newest, Way::Legacy] {
        let mut container = Container::new("cat /n1 /n50 /n100; echo x > /made; mount | busybox grep ' / '");
        container.way = way;
        let layers = (2..=100)
            .rev()
            .map(|n| container.at(&format!("layers/{n}")))
            .collect::<Vec<_>>();
        for (n, layer) in (2..=100).rev().zip(&layers) {
            std::fs::create_dir_all(layer).unwrap();
            std::fs::write(layer.join(format!("n{n}")), format!("{n}\n")).unwrap();
        }
        std::fs::write(container.at("layers/1/n1"), "1\n").unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut lower: Vec<_> = layers.iter().map(|path| text(path)).collect();
        lower.push(text(&container.at("layers/1")));
        container.plan.rootfs.as_mut().unwrap().lower = lower;
        let (text, code) = container.run();
        assert_eq!(code, 0, "{text}");
        assert!(
            text.starts_with("1\n50\n100\n") && text.contains("overlay on / "),
            "{text}"
        );
        assert!(container.at("upper/made").exists());
    }
}

#[test]
fn roots_without_an_upper_layer_are_read_only() {
    if !possible() {
        return;
    }
    for layers in [1, 2] {
        let mut container = Container::new("echo x > /x || echo refused");
        let one = container.at("layers/1");
        std::fs::create_dir_all(one.join("sys/fs/cgroup")).unwrap();
        let rootfs = container.plan.rootfs.as_mut().unwrap();
        (rootfs.upper, rootfs.work) = (String::new(), String::new());
        rootfs.lower = rootfs.lower.split_off(2 - layers);
        let (text, code) = container.run();
        assert_eq!(code, 0);
        assert!(text.contains("refused"), "{text}");
        assert!(!one.join("x").exists() && !one.join("dev/null").exists());
    }
}

#[test]
fn a_link_in_the_place_of_dev_is_not_followed() {
    if !possible() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let mut container = Container::new("true");
    std::fs::remove_dir(container.at("layers/1/dev")).unwrap();
    std::os::unix::fs::symlink("/volume", container.at("layers/1/dev")).unwrap();
    container
        .plan
        .mounts
        .retain(|mount| !mount.target.starts_with("/dev"));
    container
        .plan
        .mounts
        .push(super::harness::bind(outside.path(), "/volume"));
    let (text, _) = container.fail();
    assert!(text.contains("make device node \"/dev/null\""), "{text}");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

/// Masks are found by the names of what they cover, which must be the same place then.
#[test]
fn a_link_in_the_place_of_proc_is_not_followed() {
    if !possible() {
        return;
    }
    for to in ["/", "/elsewhere"] {
        let container = Container::new("true");
        std::fs::remove_dir(container.at("layers/1/proc")).unwrap();
        std::os::unix::fs::symlink(to, container.at("layers/1/proc")).unwrap();
        let (text, _) = container.fail();
        assert!(text.contains("mount target \"/proc\""), "{to}: {text}");
    }
}

#[test]
fn links_lead_no_mount_over_the_root_or_into_proc() {
    if !possible() {
        return;
    }
    let volume = tempfile::tempdir().unwrap();
    for (to, why) in [
        ("/", "the container's root"),
        ("tmp/..", "the container's root"),
        ("/proc", "into /proc"),
        ("/proc/sys/kernel", "into /proc"),
        ("/process", "into /proc"),
    ] {
        let mut container = Container::new("true");
        let layer = container.at("layers/1");
        std::os::unix::fs::symlink("/proc/self", layer.join("process")).unwrap();
        std::os::unix::fs::symlink(to, layer.join("link")).unwrap();
        container
            .plan
            .mounts
            .push(super::harness::bind(volume.path(), "/link"));
        let (text, _) = container.fail();
        assert!(text.contains("\"/link\"") && text.contains(why), "{to}: {text}");
    }
}

#[test]
fn sysctls_of_the_namespaces_are_written() {
    if !possible() {
        return;
    }
    let mut container = Container::new("cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_forward");
    container
        .plan
        .sysctls
        .insert("kernel.shmmni".into(), "777".into());
    container
        .plan
        .sysctls
        .insert("net.ipv4.ip_forward".into(), "1".into());
    assert_eq!(container.run().0, "777\n1\n");
}
