//! Containers in a user namespace.

use std::os::unix::fs::{MetadataExt, chown};

use super::super::overlay::Way;
use super::super::user_namespace::{Holder, Range, Ranges};
use super::harness::{Container, bind, possible, process, read_all, wait};
use crate::proto::plan::{Capabilities, IdRange, Namespace, namespace::Kind};
use crate::sys::{capability, namespace as kind};

/// As the kubelet gives them on a big node: above 2^31.
const HOST: u32 = 3_516_268_544;
const LENGTH: u32 = 65536;

fn range() -> IdRange {
    IdRange {
        container: 0,
        host: HOST,
        length: LENGTH,
    }
}

/// A container in the namespaces of a pod, which live as long as the holder.
fn container(script: &str) -> (Container, Holder) {
    let ranges = Ranges {
        uids: vec![Range {
            container: 0,
            host: HOST,
            length: LENGTH,
        }],
        gids: vec![Range {
            container: 0,
            host: HOST,
            length: LENGTH,
        }],
    };
    let pod = Holder::new(kind::NETWORK | kind::IPC | kind::UTS, &ranges).unwrap();
    let mut container = Container::new(script);
    for (kind, name) in [
        (Kind::Network, "net"),
        (Kind::Ipc, "ipc"),
        (Kind::Uts, "uts"),
        (Kind::User, "user"),
    ] {
        let list = &mut container.plan.namespaces;
        list.retain(|namespace| namespace.kind() != kind);
        list.push(Namespace {
            kind: kind.into(),
            path: pod.path(name),
        });
    }
    container.plan.uids = vec![range()];
    container.plan.gids = vec![range()];
    chown(container.at("upper"), Some(HOST), Some(HOST)).unwrap();
    (container, pod)
}

#[test]
fn root_inside_is_nobody_outside() {
    if !possible() {
        return;
    }
    let script = "id -u; cat /proc/self/uid_map; stat -c '%u:%g %a' / /dev /dev/null /bin/busybox /etc/owned; \
                  echo x > /etc/owned; echo new > /new; echo x > /dev/null && echo null works; \
                  busybox mknod /node c 1 3 || echo no node; cat /proc/1/comm; \
                  echo end; sleep 100";
    let (container, _pod) = container(script);
    std::fs::write(container.at("layers/1/etc/owned"), "a").unwrap();
    chown(container.at("layers/1/etc/owned"), Some(1000), Some(1001)).unwrap();
    let mut running = container.create().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.init.pid)).unwrap();
    assert!(status.contains(&format!("\nUid:\t{HOST}\t{HOST}")), "{status}");
    running.init.start().unwrap();
    let mut text = String::new();
    while !text.ends_with("end\n") {
        text.push_str(&running.line());
        text.push('\n');
    }
    let words: Vec<&str> = text.split_whitespace().take(4).collect();
    assert_eq!(words, ["0", "0", "3516268544", "65536"]);
    for line in [
        "\n0:0 755\n0:0 755\n0:0 666\n0:0 755\n1000:1001 644\n",
        "null works\n",
        "no node\n",
    ] {
        assert!(text.contains(line), "{line:?} {text}");
    }
    let owner = |path: &str| {
        let found = std::fs::metadata(container.at(path)).unwrap();
        (found.uid(), found.gid())
    };
    assert_eq!(owner("upper/new"), (HOST, HOST));
    assert_eq!(owner("upper/etc/owned"), (HOST + 1000, HOST + 1001));
    assert_eq!(
        owner("layers/1/etc/owned"),
        (1000, 1001),
        "layers are not changed"
    );
}

/// The namespaces of the container belong to its user namespace: its root may mount, and
/// what it does there stays there.
#[test]
fn all_capabilities_within_and_none_without() {
    if !possible() {
        return;
    }
    let script = "grep CapEff /proc/self/status; mount -t tmpfs x /tmp && echo mounted; \
                  busybox hostname other && echo renamed; busybox ip link set lo up && echo up; \
                  busybox hostname; echo 1 > /proc/sys/vm/drop_caches || echo node is safe";
    let (mut container, _pod) = container(script);
    let all = capability::known();
    container.process().capabilities = Some(Capabilities {
        bounding: all,
        effective: all,
        permitted: all,
        ..Capabilities::default()
    });
    let before = rustix::system::uname().nodename().to_owned();
    let (text, _) = container.run();
    assert!(text.contains(&format!("CapEff:\t{all:016x}")), "{text}");
    for line in ["mounted\n", "renamed\nup\nother\n", "node is safe\n"] {
        assert!(text.contains(line), "{line:?} {text}");
    }
    assert_eq!(rustix::system::uname().nodename(), before.as_c_str());
}

#[test]
fn layers_by_a_mount_that_is_attached_for_a_moment() {
    if !possible() {
        return;
    }
    let (mut container, _pod) = container("stat -c %u /bin/sh; echo x > /bin/y && echo done");
    container.way = Way::Attached;
    let (text, code) = container.run();
    assert_eq!((text.as_str(), code), ("0\ndone\n", 0));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(container.at("bundle").to_str().unwrap()),
        "{mounts}"
    );
}

#[test]
fn owners_of_volumes_are_those_of_the_namespace() {
    if !possible() {
        return;
    }
    let script = "stat -c %u:%g /mapped/file /other/file /plain/file; echo x > /mapped/new; \
                  echo x > /plain/new || echo not mine";
    let (mut container, _pod) = container(script);
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("file"), "").unwrap();
    chown(volume.path().join("file"), Some(33), Some(34)).unwrap();
    let mut mapped = bind(volume.path(), "/mapped");
    (mapped.uids, mapped.gids) = (vec![range()], vec![range()]);
    // Ranges of a mount's own: what is 33 on the disk is the third of the pod.
    let shifted = IdRange {
        container: 30,
        host: HOST,
        length: 100,
    };
    let mut other = bind(volume.path(), "/other");
    (other.uids, other.gids) = (vec![shifted], vec![shifted]);
    container
        .plan
        .mounts
        .extend([mapped, other, bind(volume.path(), "/plain")]);
    let (text, _) = container.run();
    assert!(text.starts_with("33:34\n3:4\n65534:65534\n"), "{text}");
    assert!(text.contains("not mine\n"), "{text}");
    let made = std::fs::metadata(volume.path().join("new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0));
}

#[test]
fn execs_are_in_it_too() {
    if !possible() {
        return;
    }
    let (mut container, _pod) = container("echo up; sleep 100");
    // What hides a part of /proc makes the kernel refuse another one inside.
    container.plan.masked_paths = vec!["/proc/keys".into(), "/proc/timer_list".into()];
    let running = container.start();
    assert_eq!(running.line(), "up");
    let (text, code) = running.exec("1", "id -u; cat /proc/self/uid_map; mount | grep -c keys");
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("0\n") && text.contains("3516268544"), "{text}");
    let mut wanted = process("id -u; echo mine > /dev/stdout; grep CapEff /proc/self/status");
    (wanted.uid, wanted.gid, wanted.groups) = (1000, 1001, vec![1002]);
    wanted.capabilities = Some(Capabilities::default());
    wanted.oom_score_adj = Some(500);
    let (started, output) = running.try_exec("2", &wanted).unwrap();
    let text = read_all(&output);
    assert_eq!(wait(&started.pidfd), 0, "{text}");
    assert_eq!(text, "1000\nmine\nCapEff:\t0000000000000000\n");
    if let Some(cgroup) = &started.cgroup {
        cgroup.remove().unwrap();
    }
    wanted.uid = LENGTH;
    let error = running.try_exec("3", &wanted).unwrap_err().to_string();
    assert!(
        error.contains("process.uid") && error.contains("65536"),
        "{error}"
    );
}

/// The namespace that a pod's containers share belongs to the pod's user namespace too.
#[test]
fn the_init_of_a_pod() {
    if !possible() {
        return;
    }
    let (mut pod, _holder) = container("");
    pod.plan.sandbox_init = true;
    pod.process().oom_score_adj = Some(600);
    let init = pod.start();
    let (mut other, _) =
        container("cat /proc/1/comm; cat /proc/1/status; mount -t proc p /tmp && echo mounted");
    other.plan.namespaces.clone_from(&pod.plan.namespaces);
    for namespace in &mut other.plan.namespaces {
        if namespace.kind() == Kind::Pid {
            namespace.path = format!("/proc/{}/ns/pid", init.init.pid);
        }
    }
    let mut all = process("").capabilities.unwrap();
    for set in [&mut all.bounding, &mut all.effective, &mut all.permitted] {
        *set |= 1 << 21;
    }
    other.process().capabilities = Some(all);
    let (text, _) = other.run();
    assert!(text.starts_with("berth-sandbox\n"), "{text}");
    assert!(text.contains("Uid:\t65535"), "{text}");
    assert!(text.contains("mounted\n"), "{text}");
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", init.init.pid)).unwrap();
    assert_eq!(score, "600\n");
}

#[test]
fn what_is_refused() {
    if !possible() {
        return;
    }
    let wrong = |change: &dyn Fn(&mut Container)| {
        let (mut container, _pod) = container("true");
        change(&mut container);
        container.create().err().unwrap().to_string()
    };
    let error = wrong(&|container| container.plan.uids.clear());
    assert!(error.contains("user and group 0"), "{error}");
    let error = wrong(&|container| container.process().uid = LENGTH);
    assert!(error.contains("process.uid"), "{error}");
    let error = wrong(&|container| container.process().groups = vec![LENGTH]);
    assert!(error.contains("process.gid"), "{error}");
    // procfs cannot show other owners.
    let error = wrong(&|container| {
        let mut volume = bind(std::path::Path::new("/proc/sys"), "/volume");
        volume.bind_recursive = false;
        (volume.uids, volume.gids) = (vec![range()], vec![range()]);
        container.plan.mounts.push(volume);
    });
    assert!(
        error.contains("/volume") && error.contains("cannot show other owners"),
        "{error}"
    );
    let error = wrong(&|container| {
        container.plan.namespaces.retain(|n| n.kind() != Kind::User);
    });
    assert!(error.contains("no user namespace"), "{error}");
}
