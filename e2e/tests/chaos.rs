//! A short chaos run with a seed that is new each time; `cargo run -p e2e --bin chaos --
//! --seed N` brings its calls and faults back.

use std::time::Duration;

use e2e::{
    Result,
    chaos::{self, Plan},
};

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_faults_leave_what_the_model_says() -> Result {
    if e2e::handler().is_some() || std::env::var_os("E2E_PEER").is_some() {
        eprintln!("skipped: what the faults do is known of the built-in launcher only");
        return Ok(());
    }
    let plan = Plan {
        seed: fastrand::u64(..),
        time: Duration::from_secs(150),
        kills: 0,
        clients: 4,
        calls: 40,
    };
    let summary = chaos::run(plan).await?;
    println!("seed {}\n{summary}", plan.seed);
    anyhow::ensure!(summary.violations.is_empty(), "{:?}", summary.violations);
    Ok(())
}
