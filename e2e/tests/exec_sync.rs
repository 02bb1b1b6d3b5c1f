//! Commands in a running container, waited for.

use std::time::{Duration, Instant};

use e2e::{
    Result, Story,
    client::{resources, security},
    cri, kernel,
};
use tonic::Code;

#[tokio::test]
async fn output_code_and_surroundings() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("exec").await?;
    let mut config = story.script("c", "sleep 1000");
    config.working_dir = "/tmp".into();
    config.envs = vec![cri::KeyValue {
        key: "A".into(),
        value: "b".into(),
    }];
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 1001 });
    let id = client.run(&pod, config).await?;
    let output = client
        .exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 3"])
        .await?;
    assert_eq!(
        (&*output.stdout, &*output.stderr, output.code),
        ("out\n", "err\n", 3)
    );
    assert_eq!(
        client.sh(&id, "pwd; echo $A; id -u; id -g").await?,
        "/tmp\nb\n1001\n1002"
    );
    let big = client.exec(&id, &["head", "-c", "1000000", "/dev/zero"]).await?;
    assert_eq!(big.stdout.len(), 1_000_000);
    // It is a process of the container: same namespaces, cgroup, mounts.
    let own = "for n in mnt net pid ipc uts cgroup; do readlink /proc/$0/ns/$n; done";
    let of_init = client.exec(&id, &["sh", "-c", own, "1"]).await?;
    let of_exec = client.exec(&id, &["sh", "-c", own, "self"]).await?;
    assert_eq!(of_init.stdout, of_exec.stdout);
    story.finish().await
}

/// Limits, capabilities and filters of a container are those of what is executed in it.
#[tokio::test]
async fn rights_and_limits_are_the_containers() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let pod = client.run_pod("rights").await?;
    let mut config = story.script("c", "exec sleep 1000");
    let security = security(&mut config);
    security.no_new_privs = true;
    security.seccomp = Some(cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::RuntimeDefault.into(),
        localhost_ref: String::new(),
    });
    security.capabilities = Some(cri::Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["NET_RAW".into(), "MKNOD".into()],
        ..Default::default()
    });
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    let id = client.run(&pod, config).await?;
    let rights =
        "grep -E '^(Cap|Seccomp|NoNewPrivs|Uid|Gid|Groups)' /proc/$0/status; cat /proc/$0/oom_score_adj";
    let of_init = client.exec(&id, &["sh", "-c", rights, "1"]).await?;
    let of_exec = client.exec(&id, &["sh", "-c", rights, "self"]).await?;
    assert_eq!(of_init.stdout, of_exec.stdout);
    assert!(of_exec.stdout.contains("NoNewPrivs:\t1"), "{of_exec:?}");
    assert!(of_exec.stdout.contains("Seccomp:\t2"), "{of_exec:?}");
    // In the container's cgroup, or in one below it.
    let cgroups = |pid: &str| format!("cut -d: -f3 /proc/{pid}/cgroup");
    let of_init = client.sh(&id, &cgroups("1")).await?;
    let of_exec = client.sh(&id, &cgroups("self")).await?;
    assert_eq!(of_init.lines().count(), of_exec.lines().count());
    for (init, exec) in of_init.lines().zip(of_exec.lines()) {
        assert!(exec.starts_with(init), "{exec} is not in {init}");
    }
    // What it uses is the container's: more than its limit is not to be had.
    let output = client
        .exec(&id, &["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"])
        .await?;
    assert_eq!(output.code, 137, "{output:?}");
    story.finish().await
}

#[tokio::test]
async fn a_timeout_kills_every_descendant() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (_, id) = story.sleeper("timeout").await?;
    let mark = format!("{}", 600_000 + std::process::id());
    // What its own parent left goes to the container's init, which here reaps nothing:
    // dead is all that can be asked.
    let script = format!("setsid sleep {mark} >/dev/null 2>&1 & setsid nohup sleep {mark} & sleep {mark}");
    let begin = Instant::now();
    let error = client
        .exec_within(&id, &["sh", "-c", &script], 1)
        .await
        .unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    if !story.node.is_peer() {
        assert_eq!(kernel::output("pgrep", &["-fx", &format!("sleep {mark}")]), "");
    }
    // The container goes on.
    assert_eq!(client.sh(&id, "echo here").await?, "here");
    assert_eq!(
        client.status(&id).await?.state(),
        cri::ContainerState::ContainerRunning
    );
    story.finish().await
}

#[tokio::test]
async fn what_cannot_be_executed() -> Result {
    let story = Story::begin().await?;
    let client = &story.client;
    let (_, id) = story.sleeper("wrong").await?;
    let error = client.exec(&id, &["/no/such/program"]).await.unwrap_err();
    assert!(error.message().contains("/no/such/program"), "{error}");
    let error = client.exec(&id, &["/etc/passwd"]).await.unwrap_err();
    let told = ["permission denied", "not executable"];
    let message = error.message().to_lowercase();
    assert!(told.iter().any(|words| message.contains(words)), "{error}");
    client.stop(&id, 0).await?;
    let error = client.exec(&id, &["true"]).await.unwrap_err();
    if !story.node.is_peer() {
        assert!(error.message().contains(&id), "{error}");
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        let error = client.exec(&id, &[]).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    story.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_the_same_time() -> Result {
    let story = Story::begin().await?;
    let (_, id) = story.sleeper("many").await?;
    let execs: Vec<_> = (0..30)
        .map(|number| {
            let (client, id) = (story.client.clone(), id.clone());
            tokio::spawn(async move {
                client
                    .exec(&id, &["sh", "-c", &format!("echo {number}; exit {number}")])
                    .await
            })
        })
        .collect();
    for (number, exec) in execs.into_iter().enumerate() {
        let output = exec.await??;
        assert_eq!(output.stdout, format!("{number}\n"));
        assert_eq!(usize::try_from(output.code)?, number);
    }
    story.finish().await
}
