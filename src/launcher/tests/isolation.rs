//! What a container sees of the host, and the host of a container.

use std::os::unix::fs::MetadataExt;

use super::harness::{Container, mount, possible};
use crate::proto::plan::{Namespace, mount::Kind, namespace};

#[test]
fn namespaces_are_new_and_the_hostname_is_set() {
    if !possible() {
        return;
    }
    let script = "for n in pid net mnt ipc uts cgroup; do readlink /proc/self/ns/$n; done; \
                  busybox hostname; echo $$; cat /proc/self/cgroup";
    let mut container = Container::new(script);
    container.plan.hostname = "in-the-box".into();
    let (text, _) = container.run();
    let lines: Vec<_> = text.lines().collect();
    for (line, kind) in lines.iter().zip(["pid", "net", "mnt", "ipc", "uts", "cgroup"]) {
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert!(line.starts_with(&format!("{kind}:[")), "{line}");
        assert_ne!(*line, own.to_str().unwrap());
    }
    assert_eq!(lines[6..8], ["in-the-box", "1"]);
    // The cgroup namespace begins at the container's cgroup, in every hierarchy.
    assert!(lines[8..].iter().all(|line| line.ends_with(":/")), "{text}");
}

#[test]
fn no_descriptor_leaks_into_a_container() {
    if !possible() {
        return;
    }
    let mut container = Container::new("");
    container.process().args = ["/bin/ls", "-1", "/proc/self/fd/"].map(String::from).to_vec();
    // 3 is the folder that ls itself reads.
    assert_eq!(container.run(), ("0\n1\n2\n3\n".into(), 0));
    let container = Container::new("echo up; sleep 100");
    let running = container.start();
    assert_eq!(running.line(), "up");
    assert_eq!(
        running.exec("fds", "ls -1 /proc/self/fd/"),
        ("0\n1\n2\n3\n".into(), 0)
    );
}

#[test]
fn the_host_s_mount_table_does_not_change() {
    if !possible() {
        return;
    }
    // Other tests may mount: what counts are lines that have to do with this container.
    let container = Container::new("echo up; sleep 100");
    let running = container.start();
    assert_eq!(running.line(), "up");
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = container.folder.path().to_str().unwrap();
    assert!(!table.contains(folder), "{table}");
    let (inside, _) = running.exec("table", "cat /proc/self/mountinfo");
    assert!(inside.lines().next().unwrap().contains(" / / rw"), "{inside}");
    // Nothing of the host, and no peer of a group outside.
    assert_eq!(inside.matches(" / / ").count(), 1, "{inside}");
    assert!(
        !inside.contains("shared:") && !inside.contains("master:"),
        "{inside}"
    );
}

#[test]
fn a_waiting_init_cannot_be_looked_into() {
    if !possible() {
        return;
    }
    let container = Container::new("true");
    let running = container.create().unwrap();
    // Not dumpable: its files in /proc belong to root of the host, whoever it will be.
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.init.pid)).unwrap();
    assert!(status.contains("NSpid:\t"), "{status}");
    let root = std::fs::metadata(format!("/proc/{}/root/", running.init.pid)).unwrap();
    assert_ne!(root.dev(), std::fs::metadata("/").unwrap().dev());
}

#[test]
fn a_pid_namespace_is_shared_with_a_sandbox_init_that_reaps() {
    if !possible() {
        return;
    }
    let mut sandbox = Container::new("");
    sandbox.plan.sandbox_init = true;
    let mut init = sandbox.create().unwrap();
    init.init.start().unwrap();
    let path = format!("/proc/{}/ns/pid", init.init.pid);

    let script = "busybox ps -o pid,comm,args; (sleep 0 & exec true); exit 3";
    let mut container = Container::new(script);
    container
        .plan
        .namespaces
        .retain(|namespace| namespace.kind() != namespace::Kind::Pid);
    container.plan.namespaces.push(Namespace {
        kind: namespace::Kind::Pid.into(),
        path: path.clone(),
    });
    let before = std::fs::read_link("/proc/thread-self/ns/pid_for_children").unwrap();
    let (text, code) = container.run();
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("1 berth-sandbox"), "{text}");
    assert_eq!(
        std::fs::read_link("/proc/thread-self/ns/pid_for_children").unwrap(),
        before
    );

    let status = std::fs::read_to_string(format!("/proc/{}/status", init.init.pid)).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000") && status.contains("CapBnd:\t0000000000000000"));
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", init.init.pid)).unwrap();
    assert_eq!(children, "");
    rustix::process::pidfd_send_signal(&init.init.pidfd, rustix::process::Signal::TERM).unwrap();
    assert_eq!(init.wait(), 0);
    // The namespace has lost its init: nobody can be started in it.
    assert!(container.create().is_err());
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    if !possible() {
        return;
    }
    let text = |change: fn(&mut Container)| {
        let mut container = Container::new("true");
        change(&mut container);
        container.fail().0
    };
    let user = |c: &mut Container| {
        c.plan.namespaces.push(Namespace {
            kind: namespace::Kind::User.into(),
            path: String::new(),
        });
    };
    assert!(text(user).contains("user namespace"));
    assert!(text(|c| c.plan.namespaces.clear()).contains("mount namespace"));
    assert!(text(|c| c.plan.rootfs = None).contains("rootfs"));
    assert!(text(|c| c.process().apparmor_profile = "berth-none".into()).contains("AppArmor"));
    assert!(text(|c| c.process().selinux_label = "a:b:c:d".into()).contains("SELinux"));
    assert!(text(|c| c.plan.cgroup.as_mut().unwrap().path = "/a/../b".into()).contains("component"));
    let missing = |c: &mut Container| {
        c.plan
            .mounts
            .push(super::harness::bind("/no/such/file".as_ref(), "/x"))
    };
    assert!(text(missing).contains("\"/x\" (from \"/no/such/file\")"));
    let option = |c: &mut Container| {
        let mut tmpfs = mount(Kind::Tmpfs, "/t");
        tmpfs.data = vec!["no-such-option=1".into()];
        c.plan.mounts.push(tmpfs);
    };
    let words = text(option);
    assert!(
        words.contains("\"/t\"") && words.contains("no-such-option"),
        "{words}"
    );
    let sysctl = |c: &mut Container| drop(c.plan.sysctls.insert("net.no.such".into(), "1".into()));
    assert!(text(sysctl).contains("net.no.such=1"));
}
