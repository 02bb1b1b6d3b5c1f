use super::*;
use crate::{
    kind::{HasKind, Kind},
    proto::cri,
    spec::{bpf, seccomp, tests::host},
};

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

fn run(program: &[u8], arch: u32, number: u32, args: &[u64]) -> u32 {
    let (program, _) = program.as_chunks();
    let program: Vec<_> = program.iter().copied().map(Instruction::of_bytes).collect();
    let mut data = [0_u8; 64];
    data[..4].copy_from_slice(&number.to_ne_bytes());
    data[4..8].copy_from_slice(&arch.to_ne_bytes());
    for (place, arg) in args.iter().enumerate() {
        data[16 + place * 8..24 + place * 8].copy_from_slice(&arg.to_ne_bytes());
    }
    bpf::run(&program, &data)
}

fn default_rules(bounding: u64) -> LinuxSeccomp {
    let context = cri::LinuxContainerSecurityContext {
        seccomp: Some(cri::SecurityProfile::default()),
        ..Default::default()
    };
    seccomp::of_request(&context, bounding, &host()).unwrap().unwrap()
}

fn default_profile(bounding: u64) -> Vec<u8> {
    compile(&default_rules(bounding)).unwrap().bytes.to_vec()
}

/// Every number near those that are calls, on all architectures, with arguments that the
/// profile asks about.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_smaller_program_of_the_default_profile_answers_the_same() {
    let arguments = [
        0,
        1,
        8,
        16,
        38,
        39,
        40,
        41,
        0x0002_0000,
        0x7c02_0000,
        0x1000_0000,
        0x0002_0008,
        u64::MAX,
    ];
    let more = [0xffff_ffff, 0x1_0000_0000, 0x1_0000_0008, 0x0004_0000];
    for bounding in [0, 1 << 21, u64::MAX] {
        let code = both(&default_rules(bounding)).unwrap();
        let made = compact(code.clone());
        assert!(made.len() * 3 < code.len(), "{} of {}", made.len(), code.len());
        let bytes = |code: &[Instruction]| -> Vec<u8> { code.iter().flat_map(Instruction::bytes).collect() };
        let (code, made) = (bytes(&code), bytes(&made));
        let near = [(0, 500), (0x4000_0000, 560), (0x8000_0000, 3), (u32::MAX - 3, 3)];
        let near = near.map(|(from, more)| from..=from + more);
        for number in near.into_iter().flatten() {
            for arch in [X86_64, I386, 0xc000_00b7] {
                for argument in arguments.into_iter().chain(more) {
                    let args = [argument, argument.rotate_left(3), argument];
                    let (old, new) = (run(&code, arch, number, &args), run(&made, arch, number, &args));
                    assert_eq!(old, new, "{arch:x} {number} {argument:x}");
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_default_profile_answers() {
    let program = default_profile(0);
    let newns = 0x0002_0000;
    for (name, number, args, expected) in [
        ("read", 0, &[][..], ALLOW),
        ("openat", 257, &[], ALLOW),
        ("execve", 59, &[], ALLOW),
        ("mount", 165, &[], EPERM),
        ("umount2", 166, &[], EPERM),
        ("unshare", 272, &[newns], EPERM),
        ("setns", 308, &[], EPERM),
        ("bpf", 321, &[], EPERM),
        ("keyctl", 250, &[], EPERM),
        ("add_key", 248, &[], EPERM),
        ("kexec_load", 246, &[], EPERM),
        ("reboot", 169, &[], EPERM),
        ("init_module", 175, &[], EPERM),
        ("perf_event_open", 298, &[], EPERM),
        ("userfaultfd", 323, &[], EPERM),
        ("io_uring_setup", 425, &[], EPERM),
        ("open_by_handle_at", 304, &[], EPERM),
        ("clone, a thread", 56, &[0x003d_0f00], ALLOW),
        ("clone, a namespace", 56, &[newns | 17], EPERM),
        ("clone, a user namespace", 56, &[0x1000_0000], EPERM),
        ("clone3", 435, &[], ENOSYS),
        ("personality, query", 135, &[0xffff_ffff], ALLOW),
        ("personality, linux32", 135, &[8], ALLOW),
        ("personality, no randomisation", 135, &[0x0004_0000], EPERM),
        ("socket, unix", 41, &[1], ALLOW),
        ("socket, inet", 41, &[2], ALLOW),
        ("socket, inet6", 41, &[10], ALLOW),
        ("socket, alg", 41, &[38], EPERM),
        ("socket, nfc", 41, &[39], ALLOW),
        ("socket, vsock", 41, &[40], EPERM),
        ("socket, kcm", 41, &[41], ALLOW),
        // Newer than this libseccomp, and named by the profile.
        ("fchmodat2", 452, &[], ALLOW),
        ("mseal", 462, &[], ALLOW),
        ("uretprobe", 335, &[], ALLOW),
        // Newer than the profile.
        ("open_tree_attr", 467, &[], ENOSYS),
        ("of the future", 600, &[], ENOSYS),
    ] {
        let found = run(&program, X86_64, number, args);
        assert_eq!(found, expected, "{name}: {found:#x}");
    }
    assert_eq!(run(&program, I386, 3, &[]), ALLOW, "read of a 32-bit program");
    assert_eq!(run(&program, I386, 21, &[]), EPERM, "mount of a 32-bit program");
    assert_eq!(
        run(&program, I386, 452, &[]),
        ALLOW,
        "fchmodat2 of a 32-bit program"
    );
    assert_eq!(
        run(&program, X86_64, 0x4000_0000, &[]),
        ALLOW,
        "read of an x32 program"
    );
    assert_eq!(
        run(&program, 0xc000_00b7, 0, &[]),
        0,
        "another machine's call kills"
    );
}

#[cfg(target_arch = "x86_64")]
#[test]
fn capabilities_open_calls() {
    for (capability, number, args) in [
        (21, 165, &[][..]),
        (21, 56, &[0x0002_0000][..]),
        (21, 435, &[]),
        (18, 161, &[]),
        (2, 304, &[]),
        (16, 175, &[]),
        (19, 312, &[]),
        (25, 164, &[]),
        (39, 321, &[]),
        (34, 103, &[]),
    ] {
        let without = run(
            &default_profile(!(1 << capability) & !(1 << 21)),
            X86_64,
            number,
            args,
        );
        let with = run(&default_profile(1 << capability), X86_64, number, args);
        assert_ne!(without, ALLOW, "call {number}");
        assert_eq!(with, ALLOW, "call {number}");
    }
}

fn rules(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_list_of_forbidden_calls() {
    let program = compile(&rules(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["mseal"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}, {"index": 2, "value": 9, "op": "SCMP_CMP_EQ"}]}
        ]}"#,
    ))
    .unwrap();
    let answer = |number, args: &[u64]| run(&program.bytes, X86_64, number, args);
    assert_eq!(answer(83, &[]), 0x0005_000d);
    assert_eq!(answer(462, &[]), 0x8000_0000);
    assert_eq!(answer(600, &[]), ALLOW, "no stub where all is allowed");
    assert_eq!(answer(41, &[16, 0, 9]), EPERM);
    assert_eq!(answer(41, &[16, 0, 8]), ALLOW);
    assert_eq!(program.flags, 4);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_number_of_one_architecture_opens_nothing_on_another() {
    let program = compile(&rules(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [{"names": ["uretprobe", "mseal"], "action": "SCMP_ACT_ALLOW"}]}"#,
    ))
    .unwrap();
    assert_eq!(run(&program.bytes, X86_64, 335, &[]), ALLOW);
    // rt_tgsigqueueinfo there.
    assert_eq!(run(&program.bytes, I386, 335, &[]), EPERM);
    assert_eq!(run(&program.bytes, I386, 462, &[]), ALLOW);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn several_conditions_on_one_argument_are_alternatives() {
    let program = compile(&rules(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}
        ]}"#,
    ))
    .unwrap();
    let answer = |number, args: &[u64]| run(&program.bytes, X86_64, number, args);
    assert_eq!(
        (answer(135, &[0]), answer(135, &[8]), answer(135, &[9])),
        (ALLOW, ALLOW, EPERM)
    );
    assert_eq!(
        answer(600, &[]),
        EPERM,
        "an errno of one's own is kept for new calls"
    );
}

#[test]
fn what_is_refused() {
    for (json, kind) in [
        (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, Kind::Unimplemented),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
            Kind::Unimplemented,
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}"#,
            Kind::Internal,
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mseal"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
            Kind::Unimplemented,
        ),
    ] {
        assert_eq!(compile(&rules(json)).unwrap_err().kind(), kind, "{json}");
    }
}

#[test]
fn flags_and_cache() {
    let with = |flags: &str| {
        compile(&rules(&format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "flags": [{flags}]}}"#
        )))
    };
    assert_eq!(with("").unwrap().flags, 0);
    let both = with(r#""SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC""#).unwrap();
    assert_eq!(both.flags, 3);
    let again = with(r#""SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC""#).unwrap();
    // Not compiled again: it is the same memory.
    assert_eq!(both.bytes.as_ptr(), again.bytes.as_ptr());
}
