//! What is done to the node while clients call: berthd killed at any instant and at named
//! steps, shims and programs killed, shims that stand still.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tokio::task::JoinSet;

use super::{Shared, worker::Worker};
use crate::{Node, Result, kernel};

/// Where berthd writes the names of its steps.
const SEEN: &str = "steps";

#[derive(Debug)]
pub(super) struct Faults {
    rng: fastrand::Rng,
    shared: Arc<Shared>,
    seen: PathBuf,
    /// The step at which the berthd that runs is to end.
    armed: Option<String>,
    /// Shims that stand still, and until when.
    still: Vec<(Pid, Instant)>,
}

impl Faults {
    /// Starts berthd, for the first time.
    pub async fn begin(node: &mut Node, seed: u64, shared: Arc<Shared>) -> Result<Faults> {
        let seen = node.path().join(SEEN);
        node.set_variable("BERTH_FAILPOINTS_SEEN", &seen.to_string_lossy());
        node.launch().await?;
        Ok(Faults {
            rng: fastrand::Rng::with_seed(seed),
            shared,
            seen,
            armed: None,
            still: Vec::new(),
        })
    }

    pub fn known_steps(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(&self.seen).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Until all clients are done with their round. `quiet`: nothing is done to them.
    pub async fn disturb(
        &mut self,
        node: &mut Node,
        tasks: &mut JoinSet<Worker>,
        done: &mut Vec<Worker>,
        quiet: bool,
    ) -> Result<()> {
        let mut next = Instant::now();
        while !tasks.is_empty() {
            let tick = Duration::from_millis(10);
            if let Ok(Some(worker)) = tokio::time::timeout(tick, tasks.join_next()).await {
                done.push(worker.context("a client")?);
            }
            self.let_go(false);
            self.look_after(node).await?;
            if !quiet && Instant::now() >= next {
                self.one(node).await?;
                next = Instant::now() + Duration::from_millis(self.rng.u64(5..300));
            }
        }
        Ok(())
    }

    /// Ends all faults: every shim goes on, berthd runs and has no step to end at.
    pub async fn calm(&mut self, node: &mut Node) -> Result<()> {
        self.let_go(true);
        self.look_after(node).await?;
        if self.armed.take().is_some() {
            self.count("berthd killed");
            node.kill()?;
            self.start(node, None).await?;
        }
        Ok(())
    }

    fn count(&self, fault: &'static str) {
        self.shared
            .summary(|summary| *summary.faults.entry(fault).or_default() += 1);
    }

    async fn one(&mut self, node: &mut Node) -> Result<()> {
        match self.rng.u32(..100) {
            0..25 if self.armed.is_none() || self.rng.u32(..6) == 0 => {
                self.count("berthd killed");
                self.armed = None;
                node.kill()?;
                self.start(node, None).await
            }
            25..65 if self.armed.is_none() => {
                // Only a new berthd can be told where to end.
                let Some(step) = self.choose_step() else {
                    return Ok(());
                };
                if self.rng.u32(..8) == 0 {
                    self.count("berthd stopped politely");
                    node.stop().await?;
                } else {
                    self.count("berthd killed");
                    node.kill()?;
                }
                let nth = [1, 1, 2, 3][self.rng.usize(..4)];
                self.start(node, Some((step, nth))).await
            }
            65..78 => self.shim(node, Signal::KILL, "shim killed"),
            78..88 => self.program(node),
            88..95 => self.shim(node, Signal::STOP, "shim stopped for a while"),
            95..98 => self.fork_server(node, Signal::KILL, "fork server killed"),
            98..99 => self.fork_server(node, Signal::STOP, "fork server stopped for a while"),
            _ => Ok(()),
        }
    }

    /// Steps that nobody was ended at come first.
    fn choose_step(&mut self) -> Option<String> {
        let known = self.known_steps();
        let fresh: Vec<&String> = known
            .iter()
            .filter(|step| self.shared.summary(|summary| !summary.steps.contains_key(*step)))
            .collect();
        let from = match fresh.is_empty() || self.rng.u32(..3) == 0 {
            true => known.iter().collect(),
            false => fresh,
        };
        (!from.is_empty()).then(|| from[self.rng.usize(..from.len())].clone())
    }

    /// Starts berthd. It may end at its step before it serves; then it is started again.
    async fn start(&mut self, node: &mut Node, armed: Option<(String, u32)>) -> Result<()> {
        node.clear_variable("BERTH_FAILPOINT");
        self.armed = armed.as_ref().map(|(step, _)| step.clone());
        if let Some((step, nth)) = &armed {
            node.set_variable("BERTH_FAILPOINT", &format!("{step}#{nth}"));
        }
        let launched = node.launch().await;
        if launched.is_err() && self.armed.is_some() && node.exited()?.is_some() {
            self.reached(node)?;
            node.clear_variable("BERTH_FAILPOINT");
            return node.launch().await;
        }
        launched
    }

    /// Starts berthd anew when it has ended at its step.
    async fn look_after(&mut self, node: &mut Node) -> Result<()> {
        if node.exited()?.is_some() {
            self.reached(node)?;
            self.start(node, None).await?;
        }
        Ok(())
    }

    /// berthd has ended: that must have been its step.
    fn reached(&mut self, node: &mut Node) -> Result<()> {
        let status = node.exited()?.context("berthd runs")?;
        let step = self.armed.take();
        ensure!(
            step.is_some() && status.signal() == Some(Signal::KILL.as_raw()),
            "berthd ended by itself: {status}\n{}",
            node.log_end()
        );
        node.kill()?;
        self.shared
            .summary(|summary| *summary.steps.entry(step.unwrap_or_default()).or_default() += 1);
        Ok(())
    }

    /// Signals one of the node's shims, if there is one.
    fn shim(&mut self, node: &Node, signal: Signal, name: &'static str) -> Result<()> {
        let shims = kernel::shims(node.names())?;
        if shims.is_empty() {
            return Ok(());
        }
        let at = self.rng.usize(..shims.len());
        let (pid, id) = &shims[at];
        match signal {
            Signal::STOP => {
                if self.still.iter().any(|(other, _)| other == pid) {
                    return Ok(());
                }
                self.shared.stop(id);
                let time = Duration::from_millis(self.rng.u64(100..9000));
                self.still.push((*pid, Instant::now() + time));
            }
            _ => self.shared.doom(id),
        }
        let pidfd = pidfd_open(*pid, PidfdFlags::empty());
        // The pid was looked up a while ago, and may be another's by now.
        if let Ok(pidfd) = pidfd
            && kernel::shims(node.names())?.contains(&shims[at])
        {
            self.count(name);
            let _ = pidfd_send_signal(&pidfd, signal);
        }
        Ok(())
    }

    /// Signals the process that shims are copies of, if there is one. Nothing may come of it
    /// but a start that takes longer.
    fn fork_server(&mut self, node: &Node, signal: Signal, name: &'static str) -> Result<()> {
        let Some(berthd) = node.pid() else {
            return Ok(());
        };
        let Some(pid) = kernel::fork_servers(berthd)?.pop() else {
            return Ok(());
        };
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            && kernel::fork_servers(berthd)?.contains(&pid)
        {
            self.count(name);
            let _ = pidfd_send_signal(&pidfd, signal);
            if signal == Signal::STOP {
                let time = Duration::from_millis(self.rng.u64(100..8000));
                self.still.push((pid, Instant::now() + time));
            }
        }
        Ok(())
    }

    /// Kills a process in a container.
    fn program(&mut self, node: &Node) -> Result<()> {
        let programs = kernel::programs(node.names())?;
        if !programs.is_empty() {
            let (pid, id) = &programs[self.rng.usize(..programs.len())];
            self.shared.doom(id);
            if let Ok(pidfd) = pidfd_open(*pid, PidfdFlags::empty())
                && kernel::container_of(node.names(), *pid).as_ref() == Some(id)
            {
                self.count("program killed");
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        Ok(())
    }

    fn let_go(&mut self, all: bool) {
        self.still.retain(|(pid, until)| {
            let over = all || Instant::now() >= *until;
            if over {
                // It may have been killed meanwhile.
                let _ = kill_process(*pid, Signal::CONT);
            }
            !over
        });
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.let_go(true);
    }
}
