//! Create, start, end; berthd's death in between.

use std::{fs, time::Duration};

use berth::{
    kind::{HasKind, Kind},
    proto::containerd::v1::types::Status,
    runtime::{Error, Shim, read_exit},
};

use super::{
    can_run,
    fixture::{Fixture, shims, until, zombies},
};

#[tokio::test]
async fn a_container_lives_and_ends_with_its_code() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new("echo hello; echo oops >&2; exit 3");
    let shim = fixture.spawn().await;
    let pid = shim.create(&fixture.plan, &fixture.dir).await.unwrap();
    let state = shim.state().await.unwrap();
    assert_eq!((state.status(), state.pid), (Status::Created, pid));
    let own = shims(&fixture.id);
    assert!(!own.is_empty());
    assert_eq!(
        fs::read_to_string(&fixture.log).unwrap(),
        "",
        "nothing of the image ran"
    );
    assert_eq!(shim.start().await.unwrap(), pid);
    let record = shim.wait().await.unwrap().record;
    assert_eq!(
        (record.code, record.oom_killed, record.message.as_str()),
        (3, false, "")
    );
    assert!(record.started_at > 0 && record.finished_at >= record.started_at);
    assert_eq!(read_exit(&fixture.dir).unwrap(), Some(record.clone()));
    let mut lines = fixture.lines();
    lines.sort();
    assert_eq!(lines, ["stderr F oops", "stdout F hello"]);
    // Late waits get the same.
    assert_eq!(shim.wait().await.unwrap().record, record);
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
    let is_zombie = |pid: &i32| zombies(std::process::id()).contains(pid);
    until("no zombie", || !own.iter().any(is_zombie)).await;
}

#[tokio::test]
async fn a_signal_is_128_and_its_number() {
    if !can_run() {
        return;
    }
    // A pid namespace's first process gets only signals that it handles.
    let fixture = Fixture::new("trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done");
    let shim = fixture.start().await;
    fixture.await_log("ready").await;
    shim.kill(15, false).await.unwrap();
    assert_eq!(shim.wait().await.unwrap().record.code, 9);
    fixture.assert_gone().await;

    let fixture = Fixture::with_args(&["/bin/sleep", "1000"]);
    let shim = fixture.start().await;
    assert_eq!(
        shim.kill(99, false).await.unwrap_err().kind(),
        Kind::InvalidArgument
    );
    assert_eq!(
        shim.kill(15, true).await.unwrap_err().kind(),
        Kind::InvalidArgument
    );
    shim.kill(9, false).await.unwrap();
    assert_eq!(shim.wait().await.unwrap().record.code, 137);
    fixture.assert_gone().await;
}

#[tokio::test]
async fn berthds_death_changes_nothing() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new("trap 'exit 5' TERM; echo up; while :; do sleep 0.02; done");
    let shim = fixture.start().await;
    let pid = shim.state().await.unwrap().pid;
    let lost = shim.clone();
    let waiting = tokio::spawn(async move { lost.wait().await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    waiting.abort();
    drop(shim);

    let shim = Shim::connect(&fixture.id, &fixture.dir).await.unwrap();
    let state = shim.state().await.unwrap();
    assert_eq!((state.status(), state.pid), (Status::Running, pid));
    fixture.await_log("up").await;
    let waits: Vec<_> = (0..5)
        .map(|_| {
            let shim = shim.clone();
            tokio::spawn(async move { shim.wait().await })
        })
        .collect();
    shim.kill(15, false).await.unwrap();
    for wait in waits {
        assert_eq!(wait.await.unwrap().unwrap().record.code, 5);
    }
    fixture.assert_gone().await;
}

#[tokio::test]
async fn an_exit_that_nobody_sees_is_on_record() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new("sleep 0.2; exit 7");
    drop(fixture.start().await);
    until("the record", || read_exit(&fixture.dir).unwrap().is_some()).await;
    assert_eq!(read_exit(&fixture.dir).unwrap().unwrap().code, 7);
    fixture.assert_gone().await;
}

#[tokio::test]
async fn a_missing_command_is_127_with_a_record() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::with_args(&["/no/such/command"]);
    let shim = fixture.create().await;
    let error = shim.start().await.unwrap_err();
    let Error::Start { code, message, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(*code, 127, "{message}");
    assert!(message.contains("/no/such/command"), "{message}");
    let record = shim.wait().await.unwrap().record;
    assert_eq!((record.code, record.started_at), (127, 0));
    assert_eq!(&record.message, message);
    fixture.assert_gone().await;

    let fixture = Fixture::with_args(&["/tmp"]);
    let shim = fixture.create().await;
    assert!(matches!(shim.start().await, Err(Error::Start { code: 126, .. })));
    fixture.assert_gone().await;
}

#[tokio::test]
async fn a_root_that_cannot_be_made_leaves_nothing() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new("true");
    fixture.plan.rootfs.as_mut().unwrap().lower = vec!["/nonexistent/layer".into()];
    let shim = fixture.spawn().await;
    let error = shim.create(&fixture.plan, &fixture.dir).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/layer"), "{error}");
    assert_eq!(read_exit(&fixture.dir).unwrap(), None);
    fixture.assert_gone().await;
}

#[tokio::test]
async fn a_created_container_is_deleted_without_a_trace() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new("echo never");
    let shim = fixture.create().await;
    shim.delete().await.unwrap();
    assert_eq!(read_exit(&fixture.dir).unwrap(), None);
    assert!(matches!(shim.wait().await, Err(Error::Vanished { .. })));
    fixture.assert_gone().await;

    let unused = Fixture::new("true");
    unused.spawn().await.delete().await.unwrap();
    unused.assert_gone().await;
}

#[tokio::test]
async fn delete_kills_what_runs() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new("sleep 1000 & sleep 1000");
    let shim = fixture.start().await;
    shim.delete().await.unwrap();
    assert_eq!(read_exit(&fixture.dir).unwrap().unwrap().code, 137);
    fixture.assert_gone().await;
}

#[tokio::test]
async fn in_shared_pids_the_rest_dies_with_the_init() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new("setsid sleep 1234 & sleep 0.1; exit 4").in_host_pids();
    let shim = fixture.start().await;
    let began = std::time::Instant::now();
    assert_eq!(shim.wait().await.unwrap().record.code, 4);
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "the sleeper held the output"
    );
    fixture.assert_gone().await;
}

#[tokio::test]
async fn orphans_are_reaped() {
    if !can_run() {
        return;
    }
    let fixture =
        Fixture::new("(sleep 0.05 & sleep 0.05 &) ; sleep 0.3; echo done; sleep 1000").in_host_pids();
    let shim = fixture.start().await;
    fixture.await_log("done").await;
    assert_eq!(
        shim.pids().await.unwrap().len(),
        1,
        "the shell has become its last command"
    );
    let pid = u32::try_from(shims(&fixture.id)[0]).unwrap();
    assert_eq!(zombies(pid), [0; 0]);
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
}

#[tokio::test]
async fn a_shim_that_is_killed_is_vanished() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::with_args(&["/bin/sleep", "1000"]);
    let shim = fixture.start().await;
    let pids = shims(&fixture.id);
    assert_eq!(pids.len(), 1);
    let pid = rustix::process::Pid::from_raw(pids[0]).unwrap();
    // The others do not end it.
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::HUP] {
        rustix::process::kill_process(pid, signal).unwrap();
    }
    assert_eq!(shim.state().await.unwrap().status(), Status::Running);
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert!(matches!(shim.wait().await, Err(Error::Vanished { .. })));
    assert!(shim.state().await.unwrap_err().is_gone());
    let cgroup = berth::cgroup::Cgroup::open(&fixture.plan.cgroup.as_ref().unwrap().path).unwrap();
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    fixture.assert_gone().await;
}

#[tokio::test]
async fn standing_still_and_going_on() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::new("i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done");
    let shim = fixture.start().await;
    fixture.await_log("F 3").await;
    match shim.pause().await {
        Ok(()) => {}
        Err(error) => {
            println!("skipped: pause: {error}");
            return shim.delete().await.unwrap();
        }
    }
    assert_eq!(shim.state().await.unwrap().status(), Status::Paused);
    assert_eq!(shim.pause().await.unwrap_err().kind(), Kind::FailedPrecondition);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let count = fixture.lines().len();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fixture.lines().len(), count);
    shim.resume().await.unwrap();
    until("more lines", || fixture.lines().len() > count).await;
    shim.pause().await.unwrap();
    shim.delete().await.unwrap();
    fixture.assert_gone().await;
}

/// The limit is held by e2e, with the static binary.
#[tokio::test]
async fn memory_of_idle_shims() {
    if !can_run() {
        return;
    }
    let fixtures: Vec<Fixture> = (0..5).map(|_| Fixture::new("echo up; sleep 1000")).collect();
    let mut shims_of = Vec::new();
    for fixture in &fixtures {
        shims_of.push(fixture.start().await);
        fixture.await_log("up").await;
    }
    for fixture in &fixtures {
        let pid = shims(&fixture.id)[0];
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let field = |name: &str| {
            let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
        };
        println!(
            "idle shim: {} KiB private dirty, {} KiB private clean, {} KiB resident",
            field("Private_Dirty:"),
            field("Private_Clean:"),
            field("Rss:")
        );
        assert_eq!(
            fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(),
            "berth-shim\n"
        );
    }
    for (shim, fixture) in shims_of.iter().zip(&fixtures) {
        shim.delete().await.unwrap();
        fixture.assert_gone().await;
    }
}
