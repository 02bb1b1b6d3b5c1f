//! The command for people.

use std::{
    io::Read,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use e2e::{Result, Story, node::binary};
use rustix::process::{Pid, Signal, kill_process};

fn berth(story: &Story) -> Command {
    let mut command = Command::new(binary("berth"));
    command.arg("--address").arg(story.node.address());
    command
}

fn run(story: &Story, arguments: &[&str]) -> Result<Output> {
    let logs = story.node.path().join("logs");
    let mut command = berth(story);
    for argument in arguments {
        command.arg(argument);
        if *argument == "run" {
            command.arg("--log-dir").arg(&logs);
        }
    }
    Ok(command.output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// Standard output of a command that succeeds.
fn ok(story: &Story, arguments: &[&str]) -> Result<String> {
    let output = run(story, arguments)?;
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    Ok(text(&output.stdout))
}

#[tokio::test]
async fn a_container_from_run_to_rm() -> Result {
    let story = Story::begin().await?;
    let tag = story.image.tag.clone();
    assert!(ok(&story, &["version"])?.contains("CRI"));
    assert!(ok(&story, &["info"])?.contains("RuntimeReady"));
    assert!(ok(&story, &["info", "-o", "json"])?.starts_with('{'));
    assert_eq!(ok(&story, &["pull", &tag])?, story.image.id);
    assert!(ok(&story, &["images"])?.contains("busybox"));

    let script = "echo hello; echo oops >&2; sleep 1000";
    let name = format!("cli-{}", std::process::id());
    let id = ok(
        &story,
        &[
            "run", "-d", "--name", &name, "-e", "A=b", &tag, "sh", "-c", script,
        ],
    )?;
    assert_eq!(id.len(), 64, "{id}");
    assert!(ok(&story, &["ps"])?.contains(&name));
    assert_eq!(
        ok(&story, &["exec", &name, "sh", "-c", "echo $A; hostname"])?,
        format!("b\n{name}")
    );
    let output = run(&story, &["exec", &id[..12], "sh", "-c", "echo x >&2; exit 9"])?;
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(9), "x".into())
    );
    let logs = run(&story, &["logs", &name])?;
    assert_eq!(
        (text(&logs.stdout), text(&logs.stderr)),
        ("hello".into(), "oops".into())
    );
    let output = run(&story, &["rm", &name])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--force"), "{output:?}");
    ok(&story, &["stop", "-t", "0", &name])?;
    assert!(!ok(&story, &["ps"])?.contains(&name));
    assert!(ok(&story, &["ps", "-a"])?.contains("exited with 137"));
    ok(&story, &["rm", &name])?;
    assert!(!ok(&story, &["ps", "-a"])?.contains(&name));
    ok(&story, &["rmi", &tag])?;
    assert!(story.client.image(&tag).await?.is_none());
    story.finish().await
}

#[tokio::test]
async fn in_the_foreground() -> Result {
    let story = Story::begin().await?;
    let tag = story.image.tag.clone();
    let output = run(
        &story,
        &[
            "run",
            "--rm",
            &tag,
            "sh",
            "-c",
            "seq 1 1000; echo end >&2; exit 5",
        ],
    )?;
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(text(&output.stdout).lines().count(), 1000);
    assert_eq!(text(&output.stderr), "end");
    for (program, code) in [("/no/such/program", [127, 125]), ("/etc/passwd", [126, 125])] {
        let output = run(&story, &["run", "--rm", &tag, program])?;
        assert!(code.map(Some).contains(&output.status.code()), "{output:?}");
        assert!(text(&output.stderr).contains(program), "{output:?}");
    }
    let output = run(&story, &["run", "--rm", "127.0.0.1:1/nothing:1"])?;
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(text(&output.stderr).lines().count(), 1, "one line: {output:?}");

    // Limits, user and folder reach the container.
    let words = [
        "run",
        "--rm",
        "-u",
        "1001:7",
        "-w",
        "/w",
        "-m",
        "32m",
        "--read-only",
        &tag,
        "sh",
        "-c",
    ];
    let output = run(&story, &[&words[..], &["id -u; id -g; pwd; touch /x"]].concat())?;
    assert_eq!(text(&output.stdout), "1001\n7\n/w", "{output:?}");
    assert_ne!(output.status.code(), Some(0));
    story.finish().await
}

#[tokio::test]
async fn an_interrupt_stops_what_runs() -> Result {
    let story = Story::begin().await?;
    let mut child = berth(&story)
        .args(["run", "--rm", "--log-dir"])
        .arg(story.node.path().join("logs"))
        .args([
            &*story.image.tag,
            "sh",
            "-c",
            "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done",
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = child.stdout.take().expect("piped");
    let mut byte = [0; 6];
    out.read_exact(&mut byte)?;
    assert_eq!(&byte, b"ready\n");
    let pid = Pid::from_raw(i32::try_from(child.id())?).expect("a pid");
    kill_process(pid, Signal::INT)?;
    let begin = Instant::now();
    let status = child.wait()?;
    assert!(begin.elapsed() < Duration::from_secs(5));
    let mut rest = String::new();
    out.read_to_string(&mut rest)?;
    assert_eq!((status.code(), &*rest), (Some(3), "bye\n"));
    assert!(
        !ok(&story, &["ps", "-a", "-q"])?.contains(|c: char| c.is_ascii_hexdigit()) || story.node.is_peer()
    );
    story.finish().await
}

#[tokio::test]
async fn logs_are_followed_to_the_end() -> Result {
    let story = Story::begin().await?;
    let tag = story.image.tag.clone();
    let script = "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done";
    let id = ok(&story, &["run", "-d", &tag, "sh", "-c", script])?;
    assert_eq!(ok(&story, &["logs", "-f", &id])?, "1\n2\n3\n4\n5");
    assert_eq!(ok(&story, &["logs", "-n", "2", &id])?, "4\n5");
    ok(&story, &["rm", &id])?;
    let output = run(&story, &["logs", "nothing"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nothing"), "{output:?}");
    story.finish().await
}

#[test]
fn without_berthd_the_remedy_is_told() {
    let output = Command::new(binary("berth"))
        .args(["--address", "unix:///nonexistent/berth.sock", "version"])
        .output()
        .expect("berth is built");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.starts_with("berth: ") && said.lines().count() == 1, "{said}");
    assert!(
        said.contains("/nonexistent/berth.sock") && said.contains("running"),
        "{said}"
    );
}
