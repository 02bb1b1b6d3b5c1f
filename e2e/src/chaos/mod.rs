//! Chaos: several clients make random calls, right and wrong ones, while berthd, shims
//! and programs are killed and stopped. After each round what the model says must be what
//! the RPCs say and what the kernel has.
//!
//! Everything random comes from one seed; what threads do to each other does not, so a
//! seed brings the same calls and faults back, not the same instants.

mod faults;
mod look;
mod model;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{Image, Node, Registry, Result, images::Pushed, tar::Entry};

use faults::Faults;
use model::ModelPod;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Rounds go on until this much time is over.
    pub time: Duration,
    /// Or until berthd was killed so often, when that is later.
    pub kills: u64,
    pub clients: usize,
    /// Calls of one client in a round.
    pub calls: usize,
}

/// What was done, and what was wrong.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub rounds: u64,
    pub calls: BTreeMap<&'static str, u64>,
    pub retries: u64,
    /// Streaming sessions that came to their end; the others broke with a berthd.
    pub sessions: u64,
    pub faults: BTreeMap<&'static str, u64>,
    /// Named steps at which berthd was ended, and how often.
    pub steps: BTreeMap<String, u64>,
    pub known_steps: usize,
    pub violations: Vec<String>,
}

impl Summary {
    pub fn kills(&self) -> u64 {
        self.faults.get("berthd killed").copied().unwrap_or(0) + self.steps.values().sum::<u64>()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rounds      {}", self.rounds)?;
        writeln!(
            f,
            "calls       {} ({} made again)",
            self.calls.values().sum::<u64>(),
            self.retries
        )?;
        for (name, count) in &self.calls {
            writeln!(f, "  {name:<24} {count}")?;
        }
        writeln!(f, "sessions    {} came to their end", self.sessions)?;
        writeln!(
            f,
            "berthd died {} times, at {} of {} named steps",
            self.kills(),
            self.steps.len(),
            self.known_steps
        )?;
        writeln!(f, "faults")?;
        for (name, count) in &self.faults {
            writeln!(f, "  {name:<24} {count}")?;
        }
        writeln!(f, "violations  {}", self.violations.len())?;
        for violation in &self.violations {
            writeln!(f, "  {violation}")?;
        }
        Ok(())
    }
}

/// What clients, faults and checks share.
#[derive(Debug, Default)]
struct Shared {
    summary: Mutex<Summary>,
    /// Containers of which a fault killed the shim or a process: they may end.
    doomed: Mutex<HashSet<String>>,
    /// Containers whose shim stands still for a while: what needs it may fail.
    stopped: Mutex<HashSet<String>>,
}

impl Shared {
    fn summary<T>(&self, f: impl FnOnce(&mut Summary) -> T) -> T {
        f(&mut self.summary.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn violation(&self, text: String) {
        eprintln!("violation: {text}");
        self.summary(|summary| summary.violations.push(text));
    }

    fn doom(&self, id: &str) {
        let mut doomed = self.doomed.lock().unwrap_or_else(PoisonError::into_inner);
        doomed.insert(id.to_owned());
    }

    /// With the init of a PID namespace all that is in it dies.
    fn is_doomed(&self, pod: &ModelPod, id: &str) -> bool {
        let doomed = self.doomed.lock().unwrap_or_else(PoisonError::into_inner);
        doomed.contains(id) || (pod.shared_pid && doomed.contains(&pod.pod.id))
    }

    fn stop(&self, id: &str) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        stopped.insert(id.to_owned());
    }

    fn was_stopped(&self, id: &str) -> bool {
        self.stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(id)
    }
}

/// Runs it all on a node of its own. An error is a violation that ends everything; the
/// others are in the summary.
pub async fn run(plan: Plan) -> Result<Summary> {
    eprintln!("seed {}", plan.seed);
    let registry = Registry::start().await?;
    let base = Image::busybox().push(&registry, "base:1").await?;
    let mut node = Node::prepare("")?;
    let shared = Arc::new(Shared::default());
    let mut faults = Faults::begin(&mut node, plan.seed, shared.clone()).await?;
    let mut workers = Vec::new();
    for number in 0..plan.clients {
        let client = node.client().await?;
        client.pull(&base.tag).await?;
        let own: Pushed = Image::busybox()
            .layer(&[Entry::file(
                &format!("own-{number}"),
                format!("of client {number}"),
            )])
            .push(&registry, &format!("own{number}:1"))
            .await?;
        let seed = plan.seed.wrapping_mul(31).wrapping_add(number as u64 + 1);
        workers.push(worker::Worker::new(
            number,
            seed,
            client,
            &base.tag,
            &own.tag,
            shared.clone(),
        ));
    }
    let begin = Instant::now();
    while begin.elapsed() < plan.time || shared.summary(|summary| summary.kills()) < plan.kills {
        let quiet = shared.summary(|summary| summary.rounds) == 0;
        let mut tasks = tokio::task::JoinSet::new();
        for mut worker in workers.drain(..) {
            let runtime = tokio::runtime::Handle::current();
            // A thread for each: what they borrow over an await is then nobody else's matter.
            tasks.spawn_blocking(move || {
                runtime.block_on(worker.round(plan.calls));
                worker
            });
        }
        // The first round tells which steps there are.
        faults.disturb(&mut node, &mut tasks, &mut workers, quiet).await?;
        workers.sort_by_key(worker::Worker::number);
        faults.calm(&mut node).await?;
        look::compare(&node, &workers, &shared).await?;
        let (rounds, violations) = shared.summary(|summary| {
            summary.rounds += 1;
            (summary.rounds, summary.violations.len())
        });
        eprintln!(
            "{:.0?}: round {rounds}, {} deaths of berthd, {violations} violations",
            begin.elapsed(),
            shared.summary(|summary| summary.kills())
        );
        if violations > 0 {
            break;
        }
    }
    let known: BTreeSet<String> = faults.known_steps();
    let summary = shared.summary(|summary| {
        summary.known_steps = known.len();
        let never: Vec<_> = known
            .iter()
            .filter(|step| !summary.steps.contains_key(*step))
            .collect();
        eprintln!("steps where berthd was not ended: {never:?}");
        summary.clone()
    });
    if summary.violations.is_empty() {
        let client = node.client().await?;
        client.remove_everything().await?;
        for image in client.image_list().await? {
            client.remove_image(&image.id).await?;
        }
        node.finish().await?;
    } else {
        let kept = std::env::temp_dir().join(format!("berth-chaos-{}.log", plan.seed));
        std::fs::copy(node.path().join("log"), &kept)?;
        eprintln!("what berthd wrote is in {}", kept.display());
    }
    Ok(summary)
}
