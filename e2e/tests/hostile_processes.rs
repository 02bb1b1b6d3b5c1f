//! Processes that will not end: they multiply, stop, hang, trace each other, and hear
//! no signal. Whoever stops them is done in time, and nothing of them is left.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use e2e::{Client, Pod, Result, Story, cri, hostile, images::Pushed, kernel};
use tonic::Code;

/// More than enough on a busy machine, and less than the next thing that would help: a
/// kubelet gives up after two minutes.
const SOON: Duration = Duration::from_secs(20);

/// Processes that a bomb may become, for the machine's sake.
const PIDS: u32 = 120;

struct Scene {
    story: Story,
    image: Pushed,
    pod: Pod,
}

impl Scene {
    async fn begin(name: &str) -> Result<Scene> {
        let mut story = Story::begin().await?;
        let image = story.image(hostile::image()?, "attack:1").await?;
        let pod = story.client.run_pod(name).await?;
        Ok(Scene { story, image, pod })
    }

    fn client(&self) -> &Client {
        &self.story.client
    }

    /// A container with a limit of processes.
    async fn run(&self, name: &str, script: &str) -> Result<String> {
        let config = self.client().script(name, &self.image.tag, script);
        let id = self.client().create(&self.pod, config).await?;
        let [init, ..] = self.pids(&id)?[..] else {
            bail!("container {id} has no init");
        };
        ensure!(
            kernel::limit_pids(init, PIDS)?,
            "this machine cannot limit processes"
        );
        self.client().start(&id).await?;
        Ok(id)
    }

    /// Stops a container with this grace; nothing of it may live then.
    async fn stops(&self, id: &str, grace: i64) -> Result {
        let pids = self.pids(id)?;
        assert!(!pids.is_empty(), "nothing runs");
        let begin = Instant::now();
        self.client().stop(id, grace).await?;
        let took = begin.elapsed();
        let limit = SOON + Duration::from_secs(grace.unsigned_abs());
        assert!(took < limit, "{took:?} to end {} processes", pids.len());
        assert_eq!(self.pids(id)?, Vec::<u32>::new());
        let status = self.client().status(id).await?;
        assert_eq!(status.state(), cri::ContainerState::ContainerExited);
        assert_eq!(status.exit_code, 137, "{status:?}");
        Ok(())
    }

    /// What lives in the cgroup of a container.
    fn pids(&self, id: &str) -> Result<Vec<u32>> {
        let all = kernel::pids(self.story.node.names())?;
        let inside =
            |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(id));
        Ok(all.into_iter().filter(inside).collect())
    }

    async fn until(&self, id: &str, what: &str, done: impl Fn(usize) -> bool) -> Result {
        let deadline = Instant::now() + SOON;
        while !done(self.pids(id)?.len()) {
            assert!(
                Instant::now() < deadline,
                "{what}: {} processes",
                self.pids(id)?.len()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_fork_bomb_is_stopped() -> Result {
    let scene = Scene::begin("bomb").await?;
    for grace in [0, 1] {
        let id = scene.run(&format!("bomb{grace}"), "exec attack bomb").await?;
        scene.until(&id, "the bomb grows", |count| count > 100).await?;
        scene.stops(&id, grace).await?;
    }
    // With its pod, which nobody asked politely.
    let id = scene.run("again", "exec attack bomb").await?;
    scene.until(&id, "the bomb grows", |count| count > 100).await?;
    let begin = Instant::now();
    scene.client().stop_pod(&scene.pod.id).await?;
    scene.client().remove_pod(&scene.pod.id).await?;
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert_eq!(scene.pids(&id)?, Vec::<u32>::new());
    scene.story.finish().await
}

#[tokio::test]
async fn a_bomb_in_an_exec_ends_with_its_time() -> Result {
    let scene = Scene::begin("exec-bomb").await?;
    // An init that reaps: the dead keep their places until then (cgroup v2 asks for one
    // when an exec is cloned into it, v1 only when it forks).
    let id = scene.run("c", "while :; do sleep 1000; done").await?;
    scene
        .until(&id, "the init has a child", |count| count == 2)
        .await?;
    let begin = Instant::now();
    let error = scene
        .client()
        .exec_within(&id, &["attack", "bomb"], 2)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    // The init and its child are all that is left, and soon there is room for others.
    scene.until(&id, "the bomb goes", |count| count == 2).await?;
    let begin = Instant::now();
    loop {
        match scene.client().exec(&id, &["echo", "here"]).await {
            Ok(output) => break assert_eq!(output.stdout, "here\n"),
            Err(error) => assert!(begin.elapsed() < SOON, "{error}"),
        }
    }
    scene.story.finish().await
}

/// With a bomb in it a container has no room for execs: they are refused in time, and
/// when it is gone there is.
#[tokio::test]
async fn execs_beside_a_bomb_are_refused() -> Result {
    let scene = Scene::begin("beside").await?;
    let id = scene.run("c", "trap '' TERM; attack bomb & wait").await?;
    scene.until(&id, "the bomb grows", |count| count > 100).await?;
    let begin = Instant::now();
    for _ in 0..5 {
        // Either is good: it ran, or there was no room.
        if let Err(error) = scene.client().exec_within(&id, &["true"], 5).await {
            eprintln!("refused: {error}");
        }
    }
    assert!(begin.elapsed() < SOON * 2, "{:?}", begin.elapsed());
    scene.stops(&id, 0).await?;
    scene.story.finish().await
}

#[tokio::test]
async fn what_hangs_is_stopped_or_traced_is_ended() -> Result {
    let scene = Scene::begin("hanging").await?;
    // What is stopped, in the kernel for its child, or deaf.
    for (name, script, least) in [
        ("frozen", "exec attack freeze", 6),
        ("vfork", "exec attack hang", 2),
        (
            "deaf",
            "trap '' TERM INT HUP; sleep 1000 & while :; do wait; sleep 1000; done",
            2,
        ),
    ] {
        let id = scene.run(name, script).await?;
        scene.until(&id, name, |count| count >= least).await?;
        scene.stops(&id, 1).await?;
    }
    // The init is held by a tracer that never lets go.
    let id = scene.run("traced", "while :; do usleep 10000; done").await?;
    let client = scene.client().clone();
    let tracer = {
        let id = id.clone();
        tokio::spawn(async move { client.exec(&id, &["attack", "trace", "1"]).await })
    };
    let deadline = Instant::now() + SOON;
    let traced = || -> Result<bool> {
        Ok(scene.pids(&id)?.iter().any(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status
                .lines()
                .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        }))
    };
    while !traced()? {
        assert!(Instant::now() < deadline, "nobody is traced");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    scene.stops(&id, 1).await?;
    let ended = tokio::time::timeout(SOON, tracer).await??;
    eprintln!("the tracer: {ended:?}");
    scene.story.finish().await
}

#[tokio::test]
async fn execs_that_hang_end_with_their_time() -> Result {
    let scene = Scene::begin("exec-hang").await?;
    let id = scene.run("c", "exec sleep 1000").await?;
    for command in [
        &["attack", "freeze"][..],
        &["attack", "hang"],
        &["sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000"],
        &["sh", "-c", "kill -STOP $$"],
    ] {
        let begin = Instant::now();
        let error = scene.client().exec_within(&id, command, 1).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{command:?}: {error}");
        assert!(begin.elapsed() < SOON, "{command:?}: {:?}", begin.elapsed());
        scene
            .until(&id, "only the init is left", |count| count == 1)
            .await?;
    }
    scene.story.finish().await
}
