use super::*;
use crate::{
    kind::{HasKind, Kind},
    proto::cri::HugepageLimit,
    spec::tests::host,
};

fn asked() -> LinuxContainerResources {
    LinuxContainerResources::default()
}

#[test]
fn zero_sets_nothing() {
    assert_eq!(resources(&asked(), &host()).unwrap(), wire::Resources::default());
    assert_eq!(to_oci(&asked(), &host()).unwrap().cpu(), &None);
}

#[test]
fn what_a_kubelet_sends() {
    let made = resources(
        &LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: 999,
            cpuset_cpus: "0-1,3".into(),
            hugepage_limits: vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }],
            ..asked()
        },
        &host(),
    )
    .unwrap();
    assert_eq!(
        (made.cpu_period, made.cpu_quota, made.cpu_shares),
        (Some(100_000), Some(50_000), Some(512))
    );
    assert_eq!(
        (made.memory_limit, made.memory_swap_limit),
        (Some(64 << 20), Some(64 << 20))
    );
    assert_eq!(made.cpuset_cpus, "0-1,3");
    assert_eq!(made.hugepage_limits[0].page_size, "2MB");
    assert_eq!(made.pids_limit, None);
}

#[test]
fn limits_can_be_lifted() {
    let made = resources(
        &LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: -1,
            ..asked()
        },
        &host(),
    )
    .unwrap();
    assert_eq!(
        (made.cpu_quota, made.memory_limit, made.memory_swap_limit),
        (Some(-1), Some(-1), Some(-1))
    );
}

#[test]
fn a_node_without_swap_accounting_or_huge_pages() {
    let mut host = host();
    host.swap_limit = false;
    host.hugetlb = false;
    let page = |limit| HugepageLimit {
        page_size: "2MB".into(),
        limit,
    };
    let mut request = LinuxContainerResources {
        memory_limit_in_bytes: 1 << 20,
        memory_swap_limit_in_bytes: 1 << 20,
        hugepage_limits: vec![page(0)],
        ..asked()
    };
    let made = resources(&request, &host).unwrap();
    assert_eq!((made.memory_limit, made.memory_swap_limit), (Some(1 << 20), None));
    assert!(made.hugepage_limits.is_empty());
    request.hugepage_limits = vec![page(4 << 20)];
    assert_eq!(
        resources(&request, &host).unwrap_err().kind(),
        Kind::FailedPrecondition
    );
    request.hugepage_limits.clear();
    // Swap that is limited, but not forbidden, has to be counted.
    request.memory_swap_limit_in_bytes = 2 << 20;
    assert_eq!(
        resources(&request, &host).unwrap_err().kind(),
        Kind::FailedPrecondition
    );
}

#[test]
fn wrong_values_name_their_field() {
    type Change = fn(&mut LinuxContainerResources);
    let cases: [(&str, Change); 12] = [
        ("cpu_period", |r| r.cpu_period = -1),
        ("cpu_period", |r| r.cpu_period = 999),
        ("cpu_period", |r| r.cpu_period = 1_000_001),
        ("cpu_quota", |r| r.cpu_quota = -2),
        ("cpu_quota", |r| r.cpu_quota = 999),
        ("cpu_shares", |r| r.cpu_shares = -1),
        ("memory_limit_in_bytes", |r| r.memory_limit_in_bytes = -2),
        ("memory_swap_limit_in_bytes", |r| {
            r.memory_limit_in_bytes = 2;
            r.memory_swap_limit_in_bytes = 1;
        }),
        ("cpuset_cpus", |r| r.cpuset_cpus = "0-".into()),
        ("cpuset_mems", |r| r.cpuset_mems = "a".into()),
        ("unified", |r| {
            drop(r.unified.insert("../memory.max".into(), "1".into()))
        }),
        ("unified", |r| {
            drop(r.unified.insert("cgroup.procs".into(), "1".into()))
        }),
    ];
    for (field, change) in cases {
        let mut request = asked();
        change(&mut request);
        let error = resources(&request, &host()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn shares_are_held_in_the_kernels_range() {
    for (shares, expected) in [(1, 2), (2, 2), (1_000_000, 262_144)] {
        let request = LinuxContainerResources {
            cpu_shares: shares,
            ..asked()
        };
        assert_eq!(resources(&request, &host()).unwrap().cpu_shares, Some(expected));
    }
}

#[test]
fn unified_needs_cgroup_v2() {
    let mut request = asked();
    request.unified.insert("memory.high".into(), "1000".into());
    let mut host = host();
    assert_eq!(resources(&request, &host).unwrap().unified["memory.high"], "1000");
    // A hybrid node: v1, with what is left of v2 beside it.
    host.unified = false;
    host.v2_controllers = vec!["hugetlb".into()];
    let error = resources(&request, &host).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.to_string().contains("memory.high"), "{error}");
    request.unified = [("hugetlb.2MB.max".into(), "0".into())].into();
    assert_eq!(
        resources(&request, &host).unwrap().unified["hugetlb.2MB.max"],
        "0"
    );
    host.v2_controllers.clear();
    assert!(resources(&request, &host).is_err());
}

#[test]
fn an_update_keeps_what_it_does_not_name() {
    let mut spec = Spec::default();
    let first = LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 10_000,
        memory_limit_in_bytes: 1 << 20,
        ..asked()
    };
    update_resources(&mut spec, &first, &host()).unwrap();
    let second = LinuxContainerResources {
        cpu_quota: -1,
        memory_limit_in_bytes: 2 << 20,
        ..asked()
    };
    let changed = update_resources(&mut spec, &second, &host()).unwrap();
    assert_eq!(
        (changed.limits.cpu_shares, changed.limits.cpu_quota),
        (None, Some(-1))
    );
    assert!(
        changed.limits.devices.is_empty(),
        "an update leaves devices as they are"
    );
    let stored = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
    let (cpu, memory) = (stored.cpu().as_ref().unwrap(), stored.memory().as_ref().unwrap());
    assert_eq!(
        (cpu.shares(), cpu.quota(), memory.limit()),
        (Some(512), Some(-1), Some(2 << 20))
    );
}

#[test]
fn limits_of_editors_that_cannot_be_set_are_refused() {
    let mut edited = LinuxResources::default();
    let mut memory = LinuxMemory::default();
    memory.set_reservation(Some(1));
    edited.set_memory(Some(memory));
    let error = plan(&edited).unwrap_err();
    assert_eq!(error.kind(), Kind::Unimplemented);
    assert!(error.to_string().contains("memory.reservation"), "{error}");
}
