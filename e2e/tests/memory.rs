//! How little memory sixty pods that rest take: each shim's own, and the agent's.

use std::fs;

use anyhow::ensure;
use e2e::{Result, Story, kernel, node};

const PODS: usize = 60;
/// Bytes of private memory that a shim has on average at most.
const SHIM: u64 = 150 << 10;
/// Bytes of anonymous memory that berthd has at most.
const AGENT: u64 = 6 << 20;
/// The same of a debug build.
const DEBUG_AGENT: u64 = 8 << 20;

#[tokio::test]
async fn sixty_pods_are_small() -> Result {
    let story = Story::begin().await?;
    let Some(agent) = story.node.pid() else {
        eprintln!("skipped: this looks at the processes of Berth");
        return story.finish().await;
    };
    for number in 0..PODS {
        story.sleeper(&format!("pod{number}")).await?;
    }
    let mut shims = Vec::new();
    for pid in kernel::pids(story.node.names())? {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() == "berth-shim" {
            shims.push(kernel::private_memory(pid)?);
        }
    }
    ensure!(shims.len() == PODS, "{} shims", shims.len());
    let mean = shims.iter().sum::<u64>() / PODS as u64;
    let agent = kernel::anonymous_memory(agent)?;
    println!(
        "private memory of a shim: {} KiB on average; anonymous memory of berthd: {} KiB",
        mean / 1024,
        agent / 1024
    );
    ensure!(mean <= SHIM, "a shim has {mean} bytes on average");
    let limit = if is_debug_build()? {
        eprintln!("berthd is a debug build, which has more memory: BERTH_BIN names the folder of another");
        DEBUG_AGENT
    } else {
        AGENT
    };
    ensure!(agent <= limit, "berthd has {agent} bytes");
    story.client.remove_everything().await?;
    story.finish().await
}

/// Those have sections for debuggers; releases are stripped of them.
fn is_debug_build() -> Result<bool> {
    let path = node::binary("berthd");
    let sections = kernel::output("readelf", &["-SW", &path.to_string_lossy()]);
    ensure!(
        sections.contains(".text"),
        "readelf (package binutils) does not read {}",
        path.display()
    );
    Ok(sections.contains(".debug_info"))
}
