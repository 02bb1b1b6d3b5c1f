//! One client: makes random calls, again until they are answered. The calls are in
//! `calls`, those that open streams in `sessions`.

mod calls;
mod sessions;

use std::{
    error::Error as _,
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::{Code, Status};

use super::{
    Shared,
    model::{Expected, ModelPod, Script},
};
use crate::{Client, cri};

/// Nothing may take longer than this, whatever is killed meanwhile; what is asked for
/// with a grace period has that besides.
const HUNG: Duration = Duration::from_secs(60);

/// How long a call is made again while berthd comes and goes.
const GIVE_UP: Duration = Duration::from_secs(180);

/// An answer, and whether it came to the first try.
type Answer<T> = (Result<T, Status>, bool);

#[derive(Debug)]
pub(super) struct Worker {
    number: usize,
    rng: fastrand::Rng,
    client: Client,
    base: String,
    own: String,
    own_pulled: bool,
    shared: Arc<Shared>,
    pub pods: Vec<ModelPod>,
    made: usize,
}

impl Worker {
    pub fn new(
        number: usize,
        seed: u64,
        client: Client,
        base: &str,
        own: &str,
        shared: Arc<Shared>,
    ) -> Worker {
        Worker {
            number,
            rng: fastrand::Rng::with_seed(seed),
            client,
            base: base.into(),
            own: own.into(),
            own_pulled: false,
            shared,
            pods: Vec::new(),
            made: 0,
        }
    }

    pub fn number(&self) -> usize {
        self.number
    }

    pub async fn round(&mut self, calls: usize) {
        for _ in 0..calls {
            if self.shared.summary(|summary| !summary.violations.is_empty()) {
                return;
            }
            self.one().await;
        }
    }

    async fn one(&mut self) {
        match self.rng.u32(..100) {
            0..12 => self.run_pod().await,
            12..30 => self.create().await,
            30..50 => self.start().await,
            50..60 => self.exec().await,
            60..63 => self.exec_too_long().await,
            63..69 => self.stop().await,
            69..74 => self.remove().await,
            74..78 => self.stop_pod().await,
            78..83 => self.remove_pod().await,
            83..87 => self.image().await,
            87..91 => self.look().await,
            91..93 => self.change().await,
            93..95 => self.exec_session().await,
            95..97 => self.forward().await,
            _ => self.wrong().await,
        }
    }

    fn wrong_answer(&self, call: &str, object: &str, what: impl std::fmt::Debug) {
        self.shared
            .violation(format!("client {}: {call} {object}: {what:?}", self.number));
    }

    /// Makes a call until it is answered: berthd may die under it, and now and then the
    /// client goes away itself.
    async fn persist<T>(
        &mut self,
        call: &'static str,
        act: impl AsyncFn(Client) -> Result<T, Status>,
    ) -> Answer<T> {
        self.shared
            .summary(|summary| *summary.calls.entry(call).or_default() += 1);
        let begin = Instant::now();
        let mut again = false;
        loop {
            let brief = !again && self.rng.u32(..10) == 0;
            let patience = match brief {
                true => Duration::from_micros(self.rng.u64(100..30_000)),
                false => HUNG,
            };
            match tokio::time::timeout(patience, act(self.client.clone())).await {
                Ok(Err(status)) if is_broken(&status) => {
                    tokio::time::sleep(Duration::from_millis(self.rng.u64(1..40))).await;
                }
                Ok(answer) => return (answer, !again),
                Err(_) if brief => {}
                Err(_) => {
                    let text = format!("no answer within {HUNG:?}");
                    self.wrong_answer(call, "", &text);
                    return (Err(Status::aborted(text)), !again);
                }
            }
            again = true;
            self.shared.summary(|summary| summary.retries += 1);
            if begin.elapsed() > GIVE_UP {
                let text = format!("not answered by any berthd within {GIVE_UP:?}");
                self.wrong_answer(call, "", &text);
                return (Err(Status::aborted(text)), false);
            }
        }
    }

    fn pick_pod(&mut self) -> Option<usize> {
        (!self.pods.is_empty()).then(|| self.rng.usize(..self.pods.len()))
    }

    /// Any container, or one in the state that is wanted.
    fn pick(&mut self, wanted: Option<Expected>) -> Option<(usize, usize)> {
        let mut found = Vec::new();
        for (at, pod) in self.pods.iter().enumerate() {
            for (nr, container) in pod.containers.iter().enumerate() {
                if wanted.is_none_or(|wanted| container.state == wanted) {
                    found.push((at, nr));
                }
            }
        }
        (!found.is_empty()).then(|| found[self.rng.usize(..found.len())])
    }

    /// Whether a container that was started may fail what needs a running one.
    fn may_have_ended(&self, at: usize, nr: usize) -> bool {
        let (pod, container) = (&self.pods[at], &self.pods[at].containers[nr]);
        matches!(container.script, Script::Ends(_))
            || self.shared.is_doomed(pod, &container.id)
            || self.shared.was_stopped(&container.id)
    }

    async fn status(&mut self, id: &str) -> Result<cri::ContainerStatus, Status> {
        let status = async |client: Client| client.status(id).await;
        self.persist("ContainerStatus", status).await.0
    }
}

/// The connection broke, or berthd asks to be called again: no answer yet.
fn is_broken(status: &Status) -> bool {
    status.source().is_some()
        || status.code() == Code::Unavailable
        || (status.code() == Code::DeadlineExceeded && status.message().contains("call again to join"))
}
