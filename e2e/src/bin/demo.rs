//! What `make run` shows: a pod's whole life on a node of its own, each step
//! with the time it took, and that nothing is left.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Image, Node, Registry, Result, client::log_lines, images, kernel, tar::Entry};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    ensure!(
        images::busybox_is_installed(),
        "/bin/busybox is missing: install busybox-static, or run `make deps`"
    );
    let mut steps = Steps(Instant::now());
    let registry = Registry::start().await?;
    let greeting = Entry::file("etc/greeting", "hello from inside a pod\n");
    let image = Image::busybox()
        .layer(&[greeting])
        .push(&registry, "demo:1")
        .await?;
    steps.done("registry started, image pushed", &image.tag);

    let node = Node::start().await?;
    let client = node.client().await?;
    steps.done("berthd started", &node.address());
    let id = client.pull(&image.tag).await?;
    steps.done("image pulled", &id);
    let mounts = kernel::mount_count()?;
    let pod = client.run_pod("demo").await?;
    steps.done("pod runs", &pod.id);
    let addresses = client.addresses(&pod).await?;
    let container = client
        .create(&pod, client.script("demo", &image.tag, SCRIPT))
        .await?;
    steps.done("container created", &container);
    client.start(&container).await?;
    steps.done("container started", &addresses.join(" "));
    let path = client.status(&container).await?.log_path;
    steps.done("log read", &first_line(&path).await?);
    let output = client
        .exec(&container, &["sh", "-c", "echo pid $$ on $(hostname)"])
        .await?;
    steps.done("command executed", output.stdout.trim());
    let shims = kernel::pids(node.names())?;
    let more = kernel::mount_count()?.saturating_sub(mounts);
    let answer = ping(&addresses);
    steps.done(
        "looked at from the node",
        &format!("{answer}, {} processes, {more} more mounts", shims.len()),
    );

    client.stop(&container, 1).await?;
    let status = client.status(&container).await?;
    steps.done("container stopped", &format!("exit code {}", status.exit_code));
    client.stop_pod(&pod.id).await?;
    client.remove_pod(&pod.id).await?;
    steps.done("pod removed", "");
    client.remove_image(&id).await?;
    steps.done("image removed", "");
    node.finish().await.context("something is left behind")?;
    steps.done(
        "berthd stopped",
        "no mount, cgroup, link, rule, process or file is left",
    );
    Ok(())
}

/// Answers a signal at once, as a good first process does.
const SCRIPT: &str = "cat /etc/greeting; trap 'exit 0' TERM; while :; do sleep 0.05; done";

/// Prints a step with the time since the one before.
struct Steps(Instant);

impl Steps {
    fn done(&mut self, step: &str, shown: &str) {
        let took = self.0.elapsed();
        println!("{:>9.1} ms  {step:<31} {shown}", took.as_secs_f64() * 1000.0);
        self.0 = Instant::now();
    }
}

async fn first_line(path: &str) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(line) = log_lines(path).unwrap_or_default().into_iter().next() {
            return Ok(line.content);
        }
        ensure!(Instant::now() < deadline, "nothing is in the log {path}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Whether the pod's IPv4 address answers.
fn ping(addresses: &[String]) -> String {
    let Some(address) = addresses.iter().find(|a| a.parse::<Ipv4Addr>().is_ok()) else {
        return "no address".into();
    };
    // Closed, not unreachable: something with that address says no.
    let target = format!("{address}:9");
    match target
        .parse()
        .map(|to| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2)))
    {
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            format!("{address} answers")
        }
        Ok(Ok(_)) => format!("{address} answers"),
        _ => format!("{address} does not answer"),
    }
}
