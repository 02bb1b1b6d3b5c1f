//! `chaos`: random calls and faults on a node of its own, for as long as one likes. The
//! exit code says whether anything was wrong; see `e2e::chaos`.

use std::time::Duration;

use clap::Parser;
use e2e::chaos::{self, Plan};

#[derive(Debug, Parser)]
struct Arguments {
    /// What is random comes from it; another one each time if it is left out.
    #[arg(long)]
    seed: Option<u64>,
    /// How long, in seconds.
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// Goes on until berthd has died so often.
    #[arg(long, default_value_t = 0)]
    kills: u64,
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// Calls of a client in one round.
    #[arg(long, default_value_t = 40)]
    calls: usize,
}

#[tokio::main]
async fn main() -> e2e::Result {
    let arguments = Arguments::parse();
    let plan = Plan {
        seed: arguments.seed.unwrap_or_else(|| fastrand::u64(..)),
        time: Duration::from_secs(arguments.seconds),
        kills: arguments.kills,
        clients: arguments.clients,
        calls: arguments.calls,
    };
    let summary = chaos::run(plan).await?;
    println!("seed        {}\n{summary}", plan.seed);
    anyhow::ensure!(
        summary.violations.is_empty(),
        "{} violations",
        summary.violations.len()
    );
    Ok(())
}
