//! Namespaces: pinned, set up, removed.

use std::{collections::BTreeMap, fs, path::Path};

use super::{super::netns::*, shell, within};

fn sysctls(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn mounts_under(dir: &Path) -> usize {
    let dir = dir.display().to_string();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(&dir)).count()
}

#[test]
fn namespaces_are_pinned_set_up_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let sysctls = sysctls(&[
        ("net.core.somaxconn", "1234"),
        ("net/ipv4/ip_local_port_range", "2000 3000"),
        ("kernel.shmmax", "4096000"),
        ("fs.mqueue.msg_max", "17"),
    ]);
    let want = Wanted {
        user: None,
        net: true,
        ipc: true,
        uts: true,
        hostname: "pod-7",
        sysctls: &sysctls,
    };
    create(dir.path(), &want).unwrap();
    // Again, as after an attempt that died.
    create(dir.path(), &want).unwrap();
    assert_eq!(mounts_under(dir.path()), 3);
    let path = dir.path().display();
    let enter = format!("nsenter --net={path}/net --ipc={path}/ipc --uts={path}/uts");
    assert_eq!(shell(&format!("{enter} hostname")).trim(), "pod-7");
    let read = |file: &str| shell(&format!("{enter} cat /proc/sys/{file}")).trim().to_owned();
    assert_eq!(read("net/core/somaxconn"), "1234");
    assert_eq!(read("net/ipv4/ip_local_port_range"), "2000\t3000");
    assert_eq!(read("kernel/shmmax"), "4096000");
    assert_eq!(read("fs/mqueue/msg_max"), "17");
    assert_eq!(read("net/ipv4/ip_unprivileged_port_start"), "0");
    assert_eq!(read("net/ipv4/ping_group_range"), "0\t2147483647");
    within(&dir.path().join("net"), || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    });
    remove(dir.path()).unwrap();
    remove(dir.path()).unwrap();
    assert_eq!(mounts_under(dir.path()), 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    remove(Path::new("/nonexistent/berth")).unwrap();
}

#[test]
fn sysctls_of_a_link_are_written_when_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let sysctls = sysctls(&[
        ("net.ipv4.conf.eth0.rp_filter", "2"),
        ("net.ipv4.conf.all.rp_filter", "1"),
    ]);
    let want = super::wanted(&sysctls);
    create(dir.path(), &want).unwrap();
    let missing = finish(dir.path(), &want).unwrap_err().to_string();
    assert!(missing.contains("net.ipv4.conf.eth0.rp_filter"), "{missing}");
    let enter = format!("nsenter --net={}/net", dir.path().display());
    shell(&format!("{enter} ip link add eth0 type veth peer name other"));
    finish(dir.path(), &want).unwrap();
    assert_eq!(
        shell(&format!("{enter} cat /proc/sys/net/ipv4/conf/eth0/rp_filter")),
        "2\n"
    );
    assert_eq!(
        shell(&format!("{enter} cat /proc/sys/net/ipv4/conf/all/rp_filter")),
        "1\n"
    );
    remove(dir.path()).unwrap();
}

#[test]
fn a_failure_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |key: &str, value: &str, net: bool| {
        let sysctls = sysctls(&[(key, value)]);
        let want = Wanted {
            user: None,
            net,
            ipc: true,
            uts: false,
            hostname: "",
            sysctls: &sysctls,
        };
        let error = create(dir.path(), &want).unwrap_err();
        assert_eq!(
            (
                mounts_under(dir.path()),
                fs::read_dir(dir.path()).unwrap().count()
            ),
            (0, 0)
        );
        error.to_string()
    };
    assert!(refused("kernel.panic", "1", true).contains("whole node"));
    assert!(refused("net.core.somaxconn", "1", false).contains("whole node"));
    assert!(refused("net.ipv4.no_such_thing", "1", true).contains("not in the pod's namespace"));
    let message = refused("net.core.somaxconn", "many", true);
    assert!(
        message.contains("net.core.somaxconn") && message.contains("many"),
        "{message}"
    );
}

#[test]
fn sysctls_know_their_namespace() {
    for (key, scope) in [
        ("net.core.somaxconn", Some(Scope::Net)),
        ("net/ipv4/conf/eth0.7/rp_filter", Some(Scope::Net)),
        ("net.ipv4.conf.eth0/7.rp_filter", Some(Scope::Net)),
        ("kernel.shmmax", Some(Scope::Ipc)),
        ("kernel.shm_rmid_forced", Some(Scope::Ipc)),
        ("kernel/msgmax", Some(Scope::Ipc)),
        ("kernel.sem", Some(Scope::Ipc)),
        ("fs.mqueue.msg_max", Some(Scope::Ipc)),
        ("kernel.semaphore", None),
        ("kernel.hostname", None),
        ("kernel.core_pattern", None),
        ("vm.swappiness", None),
        ("fs.file-max", None),
        ("net", None),
        ("net/../kernel/core_pattern", None),
        ("net.//.//.kernel", None),
        ("net..core", None),
        ("", None),
    ] {
        assert_eq!(sysctl_scope(key), scope, "{key}");
    }
}
