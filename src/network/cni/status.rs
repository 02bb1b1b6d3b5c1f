//! STATUS: whether the plugins say that they can give pods a network.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    Cni,
    config::Conflist,
    error::Error,
    request::{Request, Verb},
};

/// How long whoever asks is kept waiting.
const LIMIT: Duration = Duration::from_secs(5);
/// How long the plugins of a network may take together, which leaves the time to
/// kill one and to say which it was.
const PLUGINS_LIMIT: Duration = Duration::from_secs(4);
/// How long an answer holds.
const FRESH: Duration = Duration::from_secs(5);

/// What the plugins said last.
#[derive(Debug)]
pub struct Answer {
    list: Arc<Conflist>,
    at: Instant,
    said: Result<(), String>,
}

impl Cni {
    /// Asks the plugins of the network, or tells what they said a few seconds ago.
    /// Networks older than STATUS are well. Answers in time whatever plugins do,
    /// and keeps to itself: it takes no turn from pods, nor waits for one.
    pub async fn health(self: &Arc<Self>, list: Arc<Conflist>) -> Result<(), String> {
        if !list.speaks("1.1.0") {
            return Ok(());
        }
        let (cni, name) = (self.clone(), list.name.clone());
        // Apart from the caller: its question is answered for the next one too.
        let asked = tokio::spawn(async move { cni.ask(list).await });
        match timeout(LIMIT, asked).await {
            Ok(Ok(said)) => said,
            Ok(Err(_)) => Err("berthd is stopping".into()),
            Err(_) => Err(format!(
                "CNI network {name}: its plugins have not answered STATUS within {} s",
                LIMIT.as_secs()
            )),
        }
    }

    /// One at a time: who comes second gets the answer of the first.
    async fn ask(&self, list: Arc<Conflist>) -> Result<(), String> {
        let mut last = self.last_status.lock().await;
        if let Some(answer) = last.as_ref()
            && Arc::ptr_eq(&answer.list, &list)
            && answer.at.elapsed() < FRESH
        {
            return answer.said.clone();
        }
        let said = self.ask_plugins(&list).await.map_err(|e| e.to_string());
        *last = Some(Answer {
            list,
            at: Instant::now(),
            said: said.clone(),
        });
        said
    }

    async fn ask_plugins(&self, list: &Conflist) -> Result<(), Error> {
        let begin = Instant::now();
        for plugin in &list.plugins {
            let request = Request::of_network(Verb::Status, list, plugin, &[]);
            let left = PLUGINS_LIMIT.saturating_sub(begin.elapsed());
            match self.run(request, left).await {
                Ok(_) => {}
                Err(e) if e.is_unknown_verb() => {
                    tracing::debug!(plugin = Conflist::kind(plugin), "the plugin does not know STATUS");
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
