//! `make bench`: one CRI client that measures Berth and other CRI servers side by
//! side, with the same images, requests and accounting, in interleaved rounds, and
//! prints tables with ratios. README.md beside this file says how to read them.

mod accounting;
mod burst;
mod content;
mod enclosure;
mod exec;
mod kubelet;
mod loaded;
mod logs;
mod machine;
mod pods;
mod pull;
mod rounds;
mod rows;
mod scale;
mod server;
mod setup;
mod table;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use e2e::Result;

use crate::{content::Images, rounds::Samples, server::Server};

/// Measures Berth beside other CRI servers; runs as root.
#[derive(Debug, Parser)]
struct Flags {
    /// What to measure; all, when nothing is named
    parts: Vec<Part>,
    /// Rounds that count, after one that warms up; slow parts have a third of them
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Folders, divided by colons, that are looked into for containerd,
    /// containerd-shim-runc-v2, runc, crun and CNI plugins before the system's
    #[arg(long, default_value = "")]
    peer_bin: String,
    /// Where state, roots, logs and the registry of all of them are
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
    /// Servers whose name holds this word only, to profile one; no ratios then
    #[arg(long, default_value = "")]
    only: String,
    /// Most pods of the part scale
    #[arg(long, default_value_t = 500)]
    most: usize,
    /// The folder of this run: set by the program itself, for its inner half
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

/// Parts of the whole, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Start, stop and remove of pods with a network of their own
    Pods,
    /// The same on the host's network
    Host,
    /// 50 pods, 8 at a time
    Burst,
    /// ExecSync
    Exec,
    /// Memory of pods and agent with 60 pods
    Memory,
    /// ListContainerStats with 60 pods
    Stats,
    /// The agent killed and started again with 60 pods
    Restart,
    /// A large image in gzip and in zstd
    Pull,
    /// 1 GiB of log lines
    Logs,
    /// Cost per pod at 10, 100 and 500 pods
    Scale,
}

impl Flags {
    fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    /// Rounds of a part whose single round takes long.
    fn few(&self) -> usize {
        self.rounds.div_ceil(3)
    }
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let outcome = match &flags.inside {
        None => enclosure::run(&flags.folder),
        Some(folder) => inside(&flags, folder),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One thread: the client takes as little of the machine as it can.
fn inside(flags: &Flags, folder: &std::path::Path) -> Result {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(flags, folder))
}

async fn measure(flags: &Flags, folder: &std::path::Path) -> Result {
    let begun = machine::load();
    let registry = e2e::Registry::keeping_in(&folder.join("registry")).await?;
    let images = Images::push(registry, folder).await?;
    let mut servers = setup::servers(folder, &flags.peer_bin, &flags.only, &images)?;
    let mut samples = Samples::default();
    let outcome = all(flags, &mut servers, &images, &mut samples).await;
    let about = machine::about(&mut servers, folder, &begun, flags).await;
    for server in &mut servers {
        server.finish().await;
    }
    // What was measured before a failure is not lost.
    println!("{about}\n{}", table::print(&samples, &columns(&servers)));
    outcome
}

/// Both Berths, with and without CNI, are one column.
fn columns(servers: &[Server]) -> Vec<String> {
    let mut columns = Vec::new();
    for server in servers {
        if !columns.contains(&server.column) {
            columns.push(server.column.clone());
        }
    }
    columns
}

async fn all(flags: &Flags, servers: &mut [Server], images: &Images, samples: &mut Samples) -> Result {
    for server in servers.iter_mut() {
        server.launch().await?;
        server.kubelet()?.prepare().await?;
    }
    let mut every: Vec<_> = servers.iter_mut().collect();
    if flags.wants(Part::Pods) {
        pods::own_network(&mut every, flags.rounds, samples).await?;
    }
    if flags.wants(Part::Host) {
        pods::host_network(&mut every, flags.rounds, samples).await?;
    }
    if flags.wants(Part::Burst) {
        burst::measure(&mut every, flags.few(), samples).await?;
    }
    // Only networks differ between the two Berths.
    let mut few: Vec<_> = servers.iter_mut().filter(|server| !server.is_variant()).collect();
    if flags.wants(Part::Exec) {
        exec::measure(&mut few, flags.rounds, samples).await?;
    }
    let parts = loaded::Parts {
        memory: flags.wants(Part::Memory),
        stats: flags.wants(Part::Stats),
        restart: flags.wants(Part::Restart),
    };
    if parts.any() {
        loaded::measure(&mut few, parts, flags.few(), samples).await?;
    }
    if flags.wants(Part::Pull) {
        pull::measure(&mut few, images, flags.few(), samples).await?;
    }
    if flags.wants(Part::Logs) {
        logs::measure(&mut few, flags.few(), samples).await?;
    }
    if flags.wants(Part::Scale) {
        scale::measure(&mut few, flags.most, samples).await?;
    }
    Ok(())
}
