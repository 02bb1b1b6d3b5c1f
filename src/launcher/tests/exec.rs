//! Processes that are added to a running container.

use super::super::target_is_gone;
use super::harness::{Container, possible, process, wait};
use crate::proto::plan::Resources;

#[test]
fn an_exec_is_in_the_container_in_every_respect() {
    if !possible() {
        return;
    }
    let container = Container::new("echo here > /tmp/mark; echo up; sleep 100");
    let running = container.start();
    assert_eq!(running.line(), "up");
    let script =
        "for n in pid net mnt ipc uts cgroup; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup";
    let (text, code) = running.exec("a", script);
    assert_eq!(code, 0, "{text}");
    for (line, kind) in text.lines().zip(["pid", "net", "mnt", "ipc", "uts", "cgroup"]) {
        let init = std::fs::read_link(format!("/proc/{}/ns/{kind}", running.init.pid)).unwrap();
        assert_eq!(line, init.to_str().unwrap());
    }
    for line in text.lines().skip(6) {
        assert!(line.ends_with(":/") || line == "0::/exec-a", "{text}");
    }
    assert_eq!(running.exec("b", "cat /tmp/mark; exit 9"), ("here\n".into(), 9));
    let mut missing = process("");
    missing.args = vec!["/bin/missing".into()];
    let error = running.try_exec("c", &missing).map(drop).unwrap_err();
    assert_eq!(error.exit_code(), 127);
    let mut nowhere = process("true");
    nowhere.cwd = "/no/where".into();
    let error = running.try_exec("d", &nowhere).map(drop).unwrap_err();
    assert!(error.to_string().contains("\"/no/where\""), "{error}");
    assert_eq!(running.init.cgroup.pids().unwrap().len(), 1);
}

#[test]
fn the_cgroup_of_an_exec_kills_what_ran_away() {
    if !possible() {
        return;
    }
    let container = Container::new("echo up; sleep 100");
    let running = container.start();
    assert_eq!(running.line(), "up");
    let before = running.init.cgroup.pids().unwrap();
    let script = "(busybox setsid sleep 100 &) ; (busybox setsid sh -c 'sleep 100 & sleep 100' &); echo ready; sleep 100";
    let (started, output) = running.try_exec("x", &process(script)).unwrap();
    let mut word = [0; 6];
    rustix::io::read(&output, &mut word).unwrap();
    assert_eq!(&word, b"ready\n");
    let Some(cgroup) = &started.cgroup else { return };
    assert!(cgroup.pids().unwrap().len() >= 3);
    cgroup.kill().unwrap();
    assert_eq!(wait(&started.pidfd), 137);
    cgroup.remove().unwrap();
    // The orphans are the init's, a shell that does not reap at once: they are dead in any case.
    let alive = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    let after: Vec<_> = running
        .init
        .cgroup
        .pids()
        .unwrap()
        .into_iter()
        .filter(alive)
        .collect();
    assert_eq!(after, before);
}

#[test]
fn an_exec_into_an_ended_container_says_so() {
    if !possible() {
        return;
    }
    let container = Container::new("true");
    let running = container.start();
    assert_eq!(running.wait(), 0);
    let error = running.try_exec("late", &process("true")).map(drop).unwrap_err();
    assert!(target_is_gone(&error), "{error}");
}

#[test]
fn an_exec_may_have_a_terminal() {
    if !possible() {
        return;
    }
    let container = Container::new("echo up; sleep 100");
    let running = container.start();
    assert_eq!(running.line(), "up");
    let mut wanted = process("readlink /proc/self/fd/1; busybox stty size");
    (wanted.terminal, wanted.console_width, wanted.console_height) = (true, 81, 25);
    let (started, _) = running.try_exec("tty", &wanted).unwrap();
    let text = super::harness::read_all(started.console.as_ref().unwrap());
    assert_eq!(text, "/dev/pts/0\r\n25 81\r\n");
    assert_eq!(wait(&started.pidfd), 0);
}

#[test]
fn limits_are_there_before_the_first_instruction() {
    if !possible() {
        return;
    }
    let mut container =
        Container::new("i=0; while [ $i -lt 50 ]; do sleep 1 & i=$((i+1)); done; wait; echo all");
    container.plan.cgroup.as_mut().unwrap().resources = Some(Resources {
        pids_limit: Some(10),
        ..Resources::default()
    });
    let (text, _) = container.run();
    assert!(text.contains("can't fork"), "{text}");
}
