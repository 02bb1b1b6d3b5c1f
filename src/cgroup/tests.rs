//! On the kernel's own cgroups, with names of our own.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::proto::plan::DeviceRule;

struct Own(Cgroup);

impl Own {
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/berth-test-{}-c{number}/one", std::process::id());
        Some(Self(Cgroup::create(&path).unwrap()))
    }

    /// A v1 controller's file; None, with the reason printed, on a machine that has it in v2.
    fn v1(&self, controller: &str, file: &str) -> Option<PathBuf> {
        let hierarchy = self.0.hierarchies.iter().find(|h| h.has(controller));
        if hierarchy.is_none() {
            eprintln!("skipped: no v1 controller {controller}");
        }
        Some(hierarchy?.folder(self.0.path()).join(file))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.remove();
        remove_empty_parents(self.0.parents_made());
    }
}

fn sleeper(cgroup: &Cgroup) -> Child {
    let child = Command::new("sleep").arg("100").spawn().unwrap();
    cgroup.add(i32::try_from(child.id()).unwrap()).unwrap();
    child
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

#[test]
fn made_killed_and_removed_with_its_parents() {
    let Some(own) = Own::new() else { return };
    let parent = own.0.path().rsplit_once('/').unwrap().0.to_owned();
    assert_eq!(own.0.parents_made(), std::slice::from_ref(&parent));
    let mut child = sleeper(&own.0);
    assert_eq!(own.0.pids().unwrap(), [i32::try_from(child.id()).unwrap()]);
    assert!(matches!(Cgroup::create(own.0.path()), Err(Error::InUse { .. })));
    own.0.freeze().unwrap();
    own.0.thaw().unwrap();
    let mut watch = OomWatch::begin(&own.0);
    watch.look();
    assert_eq!(watch.verdict(true), None);
    own.0.kill().unwrap();
    child.wait().unwrap();
    own.0.remove().unwrap();
    own.0.remove().unwrap();
    own.0.kill().unwrap();
    remove_empty_parents(own.0.parents_made());
    for hierarchy in &Layout::detect().unwrap().hierarchies {
        assert!(!hierarchy.folder(&parent).exists());
    }
}

#[test]
fn killed_one_by_one_where_there_is_no_cgroup_kill() {
    let Some(own) = Own::new() else { return };
    let mut children = [sleeper(&own.0), sleeper(&own.0)];
    // Reaped from elsewhere, as a shim's loop would not do here: zombies count as dead.
    kill::kill_one_by_one(&own.0).unwrap();
    for child in &mut children {
        assert!(!child.wait().unwrap().success());
    }
}

#[test]
fn a_gauge_follows_a_cgroup_that_is_made_anew() {
    let Some(own) = Own::new() else { return };
    let gauge = Gauge::default();
    let processes = || {
        let found = gauge.measure(own.0.path(), stats::Detail::Processes).unwrap();
        found.map(|stats| stats.processes)
    };
    if processes().is_none() {
        eprintln!("skipped: no controller counts CPU or memory here");
        return;
    }
    let mut child = sleeper(&own.0);
    assert_eq!(processes(), Some(1));
    own.0.kill().unwrap();
    child.wait().unwrap();
    own.0.remove().unwrap();
    assert_eq!(processes(), None);
    let again = Cgroup::create(own.0.path()).unwrap();
    assert_eq!(processes(), Some(0));
    again.remove().unwrap();
    let _once_more = Cgroup::create(own.0.path()).unwrap();
    // The files that are open are of the one before.
    assert_eq!(processes(), Some(0));
    gauge.close();
    assert_eq!(processes(), Some(0));
}

#[test]
fn who_left_one_hierarchy_is_killed_in_the_others() {
    let Some(own) = Own::new() else { return };
    let (Some(first), true) = (own.0.hierarchies.first(), own.0.hierarchies.len() > 1) else {
        eprintln!("skipped: one hierarchy only");
        return;
    };
    let mut children = [sleeper(&own.0), sleeper(&own.0)];
    let above = first.folder(own.0.path()).join("../cgroup.procs");
    std::fs::write(above, children[0].id().to_string()).unwrap();
    kill::kill_one_by_one(&own.0).unwrap();
    for child in &mut children {
        assert!(!child.wait().unwrap().success());
    }
}

#[test]
fn a_cpuset_inherits_through_parents_that_somebody_made() {
    let Some(own) = Own::new() else { return };
    let Some(file) = own.v1("cpuset", "cpuset.cpus") else {
        return;
    };
    // Made without CPUs, as by mkdir(1).
    let bare = own.0.path().to_owned() + "/bare";
    for hierarchy in own.0.hierarchies {
        std::fs::create_dir(hierarchy.folder(&bare)).unwrap();
    }
    let inner = Cgroup::create(&format!("{bare}/inner")).unwrap();
    assert!(inner.parents_made().is_empty());
    let mut child = sleeper(&inner);
    let cpus = read(file.with_file_name("bare/inner/cpuset.cpus"));
    assert_eq!(cpus, read(file));
    inner.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_left_over_cgroup_is_made_anew() {
    let Some(own) = Own::new() else { return };
    let Some(file) = own.v1("pids", "pids.max") else {
        return;
    };
    own.0
        .apply(&Resources {
            pids_limit: Some(5),
            ..Resources::default()
        })
        .unwrap();
    let again = Cgroup::create(own.0.path()).unwrap();
    assert_eq!(read(file), "max");
    assert!(again.parents_made().is_empty());
}

#[test]
fn v1_limits_are_written_and_grow_and_shrink() {
    let Some(own) = Own::new() else { return };
    let Some(memory) = own.v1("memory", "memory.limit_in_bytes") else {
        return;
    };
    let mib = |count: i64| count << 20;
    let limits = |memory, total| Resources {
        memory_limit: Some(mib(memory)),
        memory_swap_limit: Some(mib(total)),
        ..Resources::default()
    };
    for (limit, total) in [(64, 64), (256, 512), (32, 32), (32, 64)] {
        own.0.apply(&limits(limit, total)).unwrap();
        assert_eq!(read(memory.clone()), mib(limit).to_string());
        let both = memory.with_file_name("memory.memsw.limit_in_bytes");
        assert_eq!(read(both), mib(total).to_string());
    }
    assert!(matches!(own.0.apply(&limits(64, 32)), Err(Error::Value { .. })));
    let cpu = Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        pids_limit: Some(77),
        cpuset_cpus: "0".into(),
        ..Resources::default()
    };
    own.0.apply(&cpu).unwrap();
    own.0
        .apply(&Resources {
            cpu_quota: Some(-1),
            cpu_period: Some(20_000),
            ..Resources::default()
        })
        .unwrap();
    for (controller, file, value) in [
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "-1"),
        ("cpu", "cpu.cfs_period_us", "20000"),
        ("pids", "pids.max", "77"),
        ("cpuset", "cpuset.cpus", "0"),
    ] {
        assert_eq!(
            own.v1(controller, file).map(read).as_deref(),
            Some(value),
            "{file}"
        );
    }
    own.0
        .apply(&Resources {
            memory_limit: Some(-1),
            memory_swap_limit: Some(-1),
            pids_limit: Some(-1),
            ..Resources::default()
        })
        .unwrap();
    assert!(read(memory).len() > 15);
}

#[test]
fn what_the_kernel_does_not_offer_is_told() {
    let Some(own) = Own::new() else { return };
    if Layout::detect().unwrap().is_pure_v2() {
        eprintln!("skipped: pure v2");
        return;
    }
    let unified = Resources {
        unified: [("memory.high".into(), "1".into())].into(),
        ..Resources::default()
    };
    assert!(
        own.0
            .apply(&unified)
            .unwrap_err()
            .to_string()
            .contains("memory.high")
    );
    let huge = huge_pages();
    if own.0.controller("hugetlb").is_none() {
        assert!(matches!(
            own.0.apply(&huge),
            Err(Error::NoController {
                controller: "hugetlb",
                ..
            })
        ));
    }
}

fn huge_pages() -> Resources {
    let limit = crate::proto::plan::HugepageLimit {
        page_size: "2MB".into(),
        limit: 1 << 21,
    };
    Resources {
        hugepage_limits: vec![limit],
        ..Resources::default()
    }
}

#[test]
fn huge_pages_are_limited_wherever_their_controller_is() {
    let Some(own) = Own::new() else { return };
    let Some(hierarchy) = own.0.controller("hugetlb").cloned() else {
        eprintln!("skipped: no hierarchy has the hugetlb controller");
        return;
    };
    own.0.apply(&huge_pages()).unwrap();
    let folder = hierarchy.folder(own.0.path());
    if !hierarchy.is_v2() {
        assert_eq!(read(folder.join("hugetlb.2MB.limit_in_bytes")), "2097152");
        return;
    }
    assert_eq!(read(folder.join("hugetlb.2MB.max")), "2097152");
    assert_eq!(read(folder.join("hugetlb.2MB.rsvd.max")), "2097152");
    let by_name = Resources {
        unified: [("hugetlb.2MB.max".into(), "4194304".into())].into(),
        ..Resources::default()
    };
    own.0.apply(&by_name).unwrap();
    assert_eq!(read(folder.join("hugetlb.2MB.max")), "4194304");
}

#[test]
fn swap_alone_needs_a_memory_limit() {
    let Some(own) = Own::new() else { return };
    let swap = |memory: Option<i64>| Resources {
        memory_limit: memory,
        memory_swap_limit: Some(64 << 20),
        ..Resources::default()
    };
    if own.0.controller("memory").is_none() {
        eprintln!("skipped: no hierarchy has the memory controller");
        return;
    }
    let error = own.0.apply(&swap(None)).unwrap_err().to_string();
    assert!(error.contains("needs a memory limit"), "{error}");
    own.0.apply(&swap(Some(32 << 20))).unwrap();
}

fn rule(allow: bool, kind: &str, number: Option<(u32, u32)>, access: &str) -> DeviceRule {
    DeviceRule {
        allow,
        kind: kind.into(),
        major: number.map(|n| n.0),
        minor: number.map(|n| n.1),
        access: access.into(),
    }
}

/// Zero may be read, null read and written, the rest nothing; kmsg is denied after it was allowed.
fn rules() -> Vec<DeviceRule> {
    vec![
        rule(false, "a", None, "rwm"),
        rule(true, "c", Some((1, 5)), "r"),
        rule(true, "c", Some((1, 3)), "rwm"),
        rule(true, "c", Some((1, 8)), "rw"),
        rule(false, "c", Some((1, 8)), "w"),
    ]
}

/// Each access from a process in the cgroup, which a shell enters by its own pid.
fn accesses(procs: &std::path::Path) -> String {
    let script = format!(
        "echo $$ > {}; for a in '< /dev/zero' '>> /dev/zero' '<> /dev/null' '< /dev/random' '>> /dev/random' \
         '< /dev/full'; do if eval \"true $a\" 2>/dev/null; then printf y; else printf n; fi; done",
        procs.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn device_rules_are_kept_by_a_program() {
    let Some(own) = Own::new() else { return };
    let Some(unified) = own.0.hierarchies.iter().find(|h| h.is_v2()) else {
        eprintln!("skipped: no v2 hierarchy");
        return;
    };
    let script_procs = unified.folder(own.0.path()).join("cgroup.procs");
    // Twice: the second takes the first one's place.
    device_bpf::apply(&own.0, &[rule(false, "a", None, "rwm")]).unwrap();
    device_bpf::apply(&own.0, &rules()).unwrap();
    assert_eq!(accesses(&script_procs), "ynyynn");
    device_bpf::apply(&own.0, &[rule(true, "a", None, "rwm")]).unwrap();
    assert_eq!(accesses(&script_procs), "yyyyyy");
}

#[test]
fn v1_device_rules_are_written() {
    let Some(own) = Own::new() else { return };
    let Some(list) = own.v1("devices", "devices.list") else {
        return;
    };
    own.0
        .apply(&Resources {
            devices: rules(),
            ..Resources::default()
        })
        .unwrap();
    let text = read(list);
    assert_eq!(text, "c 1:5 r\nc 1:3 rwm\nc 1:8 r");
}
