//! User, capabilities, limits, seccomp, exit codes, terminal.

use super::super::Error;
use super::harness::{Container, DEFAULT_CAPABILITIES, possible, read_all};
use crate::proto::plan::{Capabilities, Rlimit};

fn field(text: &str, key: &str) -> String {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {key} in {text}"))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn a_container_runs_and_its_code_comes_back() {
    if !possible() {
        return;
    }
    let (text, code) = Container::new("echo hello; exit 7").run();
    assert_eq!((text.as_str(), code), ("hello\n", 7));
}

#[test]
fn root_has_the_capabilities_of_the_plan() {
    if !possible() {
        return;
    }
    let mut container = Container::new("");
    container.process().args = ["/bin/cat", "/proc/self/status"].map(String::from).to_vec();
    let (text, _) = container.run();
    let all = format!("{DEFAULT_CAPABILITIES:016x}");
    assert_eq!(field(&text, "CapEff"), all);
    assert_eq!(field(&text, "CapBnd"), all);
    assert_eq!(field(&text, "CapInh"), "0000000000000000");
    assert_eq!(field(&text, "NoNewPrivs"), "0");
    assert_eq!(field(&text, "Seccomp"), "0");
    assert_eq!(field(&text, "SigBlk"), "0000000000000000");
    assert_eq!(field(&text, "SigIgn"), "0000000000000000");
    assert_eq!(field(&text, "Groups"), "");
}

#[test]
fn a_user_has_its_groups_and_no_capability_but_the_ambient_ones() {
    if !possible() {
        return;
    }
    let mut container = Container::new("cat /proc/self/status; umask; pwd; echo out > /dev/stdout");
    let process = container.process();
    (process.uid, process.gid, process.groups) = (1000, 1001, vec![5, 6]);
    process.umask = Some(0o027);
    process.cwd = "/made/for/me".into();
    process.no_new_privs = true;
    let ambient = 1 << 10;
    process.capabilities = Some(Capabilities {
        bounding: 1 << 10 | 1,
        effective: ambient,
        permitted: ambient,
        inheritable: ambient,
        ambient,
    });
    let (text, code) = container.run();
    assert_eq!(code, 0, "{text}");
    assert_eq!(field(&text, "Uid"), "1000 1000 1000 1000");
    assert_eq!(field(&text, "Gid"), "1001 1001 1001 1001");
    assert_eq!(field(&text, "Groups"), "5 6");
    assert_eq!(field(&text, "CapEff"), "0000000000000400");
    assert_eq!(field(&text, "CapAmb"), "0000000000000400");
    assert_eq!(field(&text, "CapBnd"), "0000000000000401");
    assert_eq!(field(&text, "NoNewPrivs"), "1");
    assert!(text.ends_with("0027\n/made/for/me\nout\n"), "{text}");
    assert!(container.at("upper/made/for/me").is_dir());
}

#[test]
fn all_capabilities_are_those_that_are_held() {
    if !possible() {
        return;
    }
    let mut container = Container::new("cat /proc/self/status");
    let all = u64::MAX;
    container.process().capabilities = Some(Capabilities {
        bounding: all,
        effective: all,
        permitted: all,
        inheritable: all,
        ambient: 0,
    });
    let (text, _) = container.run();
    let held = crate::sys::capability::get().unwrap().permitted & crate::sys::capability::bounding();
    assert_eq!(field(&text, "CapEff"), format!("{held:016x}"));
}

/// mkdir and mkdirat answer EPERM, everything else is allowed.
fn no_mkdir() -> Vec<u8> {
    let load = (0x20u16, 0, 0, 0u32);
    let equal = |number: i64, yes| (0x15u16, yes, 0u8, u32::try_from(number).unwrap());
    #[cfg(target_arch = "x86_64")]
    let first = libc::SYS_mkdir;
    #[cfg(not(target_arch = "x86_64"))]
    let first = libc::SYS_mkdirat;
    let program = [
        load,
        equal(first, 2),
        equal(libc::SYS_mkdirat, 1),
        (0x06, 0, 0, 0x7fff_0000),
        (0x06, 0, 0, 0x0005_0001),
    ];
    let bytes = |(code, yes, no, k): (u16, u8, u8, u32)| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([yes, no]);
        bytes.extend(k.to_ne_bytes());
        bytes
    };
    program.into_iter().flat_map(bytes).collect()
}

#[test]
fn seccomp_is_loaded_with_and_without_no_new_privs() {
    if !possible() {
        return;
    }
    for no_new_privs in [false, true] {
        let mut container = Container::new("cat /proc/self/status; busybox mkdir /x; echo code $?");
        container.process().seccomp = no_mkdir().into();
        container.process().no_new_privs = no_new_privs;
        let (text, _) = container.run();
        assert_eq!(field(&text, "Seccomp"), "2");
        assert!(
            text.contains("Operation not permitted") && text.contains("code 1"),
            "{text}"
        );
    }
    let mut container = Container::new("true");
    container.process().seccomp = vec![0xff; 16].into();
    let (text, code) = container.fail();
    assert!(text.contains("load the seccomp program"), "{text}");
    assert_eq!(code, 128);
}

#[test]
fn limits_are_set_and_clamped() {
    if !possible() {
        return;
    }
    let mut container = Container::new("ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj");
    let soft = 77;
    container.process().rlimits = vec![Rlimit {
        resource: libc::RLIMIT_NOFILE,
        soft,
        hard: u64::MAX >> 1,
    }];
    container.process().oom_score_adj = Some(-999);
    let (text, code) = container.run();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines[0], code), ("77", 0), "{text}");
    // With CAP_SYS_RESOURCE what was asked, without it the lowest that is allowed.
    let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let got: i32 = lines[2].parse().unwrap();
    assert!((-999..=own).contains(&got), "{got}");

    let mut container = Container::new("cat /proc/self/oom_score_adj");
    container.process().oom_score_adj = Some(750);
    assert_eq!(container.run().0, "750\n");
}

#[test]
fn commands_that_cannot_be_executed_have_their_codes() {
    if !possible() {
        return;
    }
    let cases = [
        ("/bin/missing", 127, "No such file"),
        ("missing", 127, "missing"),
        ("/bin/not-executable", 126, "Permission denied"),
        ("/bin/not-a-program", 126, "not a program for this machine"),
        ("/bin", 126, "Permission denied"),
    ];
    for (command, code, words) in cases {
        let mut container = Container::new("");
        container.process().args = vec![command.into()];
        let (text, got) = container.fail();
        assert_eq!(got, code, "{command}: {text}");
        assert!(
            text.starts_with("execute") && text.contains(command) && text.contains(words),
            "{text}"
        );
    }
    let mut container = Container::new("");
    container.process().args = vec!["echo-by-path".into(), "found".into()];
    std::os::unix::fs::symlink("busybox", container.at("layers/1/bin/echo")).unwrap();
    container.process().args[0] = "echo".into();
    assert_eq!(container.run(), ("found\n".into(), 0));
}

#[test]
fn a_working_folder_that_is_a_file_is_told() {
    if !possible() {
        return;
    }
    let mut container = Container::new("true");
    container.process().cwd = "/bin/busybox/x".into();
    let (text, _) = container.fail();
    assert!(text.contains("working folder \"/bin/busybox/x\""), "{text}");
}

#[test]
fn a_terminal_is_the_container_s_own() {
    if !possible() {
        return;
    }
    let script = "readlink /proc/self/fd/0; stat -c '%u %t:%T' /dev/console; stat -c %u /dev/pts/0; \
                  busybox stty size; ls -1 /proc/self/fd; echo to-tty > /dev/tty; busybox test -t 2 && echo tty";
    let mut container = Container::new(script);
    let tty = crate::proto::plan::Device {
        path: "/dev/tty".into(),
        major: 5,
        minor: 0,
        mode: 0o666,
        ..Default::default()
    };
    container.plan.devices.push(tty);
    let process = container.process();
    process.uid = 1000;
    (process.terminal, process.console_width, process.console_height) = (true, 100, 40);
    let mut running = container.create().unwrap();
    let master = running.init.console.take().expect("a master side");
    running.init.start().unwrap();
    let text = read_all(&master).replace("\r\n", "\n");
    // 3 is the folder that ls lists.
    assert_eq!(
        text,
        "/dev/pts/0\n1000 88:0\n1000\n40 100\n0\n1\n2\n3\nto-tty\ntty\n"
    );
    assert_eq!(running.wait(), 0);
}

#[test]
fn a_killed_init_that_waits_is_no_failure_to_start() {
    if !possible() {
        return;
    }
    let container = Container::new("true");
    let mut running = container.create().unwrap();
    running.init.cgroup.kill().unwrap();
    assert_eq!(running.wait(), 137);
    running.init.start().unwrap();
    assert!(matches!(running.init.start(), Err(Error::Plan { .. })));
}
