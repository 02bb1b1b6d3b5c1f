//! Streaming sessions. One breaks with the berthd that serves it, and ends then; what comes
//! to its end brings what was asked for. A berthd that stops politely says so.

use anyhow::Context;

use super::{HUNG, Worker};
use crate::{Client, Result, WebSocket, chaos::model::Expected, streams::exec_of};

/// Where nothing listens in any pod.
const CLOSED: u16 = 9;

/// What a session is told that is cut off by a stop.
const CUT: &str = "berthd is stopping";

impl Worker {
    /// Runs a session; None when it broke.
    async fn session<T>(&mut self, what: &str, act: impl Future<Output = Result<T>>) -> Option<T> {
        match tokio::time::timeout(HUNG, act).await {
            Ok(done) => done.ok(),
            Err(_) => {
                self.wrong_answer(what, "", format!("the session is still open after {HUNG:?}"));
                None
            }
        }
    }

    fn ended(&self, whole: bool) {
        self.shared
            .summary(|summary| summary.sessions += u64::from(whole));
    }

    /// An exec with input, whose output is the same.
    pub(super) async fn exec_session(&mut self) {
        let Some((at, nr)) = self.pick(Some(Expected::Started)) else {
            return self.start().await;
        };
        let id = self.pods[at].containers[nr].id.clone();
        let (answer, _) = self
            .persist("Exec", async |client: Client| {
                client.exec_url(exec_of(&id, &["cat"])).await
            })
            .await;
        let url = match answer {
            Ok(url) => url,
            Err(_) if self.may_have_ended(at, nr) => return,
            Err(status) => return self.wrong_answer("Exec", &id, status),
        };
        let mark = self.rng.u64(..).to_string();
        let talk = async {
            let mut socket = WebSocket::connect(&url, "v5.channel.k8s.io").await?;
            socket.send.data(0, mark.as_bytes()).await?;
            socket.send.close(0).await?;
            socket.receive.finish().await
        };
        let Some(session) = self.session("Exec", talk).await else {
            return;
        };
        // Without a status it broke.
        let is_cut = session.status["message"]
            .as_str()
            .is_some_and(|told| told.contains(CUT));
        let failed =
            !session.status.is_null() && !session.succeeded() && !is_cut && !self.may_have_ended(at, nr);
        if failed || (session.succeeded() && session.stdout() != mark) {
            return self.wrong_answer("Exec", &id, session);
        }
        self.ended(session.succeeded());
    }

    /// A port of a pod where nothing listens: that is what must be said.
    pub(super) async fn forward(&mut self) {
        let Some(at) = self.pick_pod() else { return };
        if !self.pods[at].own_network || !self.pods[at].ready {
            return;
        }
        let pod = self.pods[at].pod.clone();
        let (answer, _) = self
            .persist("PortForward", async |client: Client| {
                client.forward_url(&pod, &[CLOSED]).await
            })
            .await;
        let url = match answer {
            Ok(url) => url,
            Err(status) => return self.wrong_answer("PortForward", &pod.id, status),
        };
        let talk = async {
            let url = format!("{url}?port={CLOSED}");
            let mut socket = WebSocket::connect(&url, "v4.channel.k8s.io").await?;
            socket.send.data(0, b"anybody?").await?;
            let mut said = Vec::new();
            while let Some((channel, data)) = socket.receive.message().await? {
                if channel == 1 {
                    said.extend_from_slice(&data);
                }
            }
            // Both channels begin with the port, in two bytes.
            let said = said.get(2..).context("nothing was said")?;
            Ok(String::from_utf8_lossy(said).into_owned())
        };
        if let Some(said) = self.session("PortForward", talk).await {
            let is_cut = said.is_empty() || said.contains(CUT);
            if !is_cut && !said.contains("refused") {
                return self.wrong_answer("PortForward", &pod.id, said);
            }
            self.ended(!is_cut);
        }
    }
}
