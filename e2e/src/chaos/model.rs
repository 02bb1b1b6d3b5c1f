//! What should exist, as one client knows it.

use std::path::PathBuf;

use crate::Pod;

/// A pod that was made and not removed.
#[derive(Clone, Debug)]
pub struct ModelPod {
    pub pod: Pod,
    pub ready: bool,
    pub own_network: bool,
    /// Its containers share one PID namespace, which an init of the pod holds.
    pub shared_pid: bool,
    pub containers: Vec<ModelContainer>,
}

/// A container that was made and not removed.
#[derive(Clone, Debug)]
pub struct ModelContainer {
    pub id: String,
    pub log: PathBuf,
    pub script: Script,
    pub state: Expected,
}

/// What a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Counts lines until it is killed.
    Counts,
    /// Ends by itself with a code.
    Ends(i32),
    /// Does not end at SIGTERM, and has children.
    Stubborn,
}

impl Script {
    pub fn text(self) -> String {
        match self {
            Script::Counts => "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done".into(),
            Script::Ends(code) => format!("echo 0; sleep 0.05; exit {code}"),
            Script::Stubborn => {
                "trap '' TERM; sleep 1000 & setsid sleep 1000 & while :; do sleep 1000; done".into()
            }
        }
    }
}

/// The state that a container must be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Created,
    /// Started, and not stopped by the client: it runs, or has ended if that is its nature.
    Started,
    /// Stopped by the client: it has ended.
    Stopped,
}

impl ModelContainer {
    /// Whether it may have ended, and with which codes.
    pub fn may_end_with(&self, doomed: bool) -> Vec<i32> {
        let mut codes = Vec::new();
        if let Script::Ends(code) = self.script {
            codes.push(code);
        }
        if doomed || self.state == Expected::Stopped {
            // SIGKILL, and SIGTERM for programs that heed it.
            codes.extend([137, 143]);
        }
        codes
    }

    pub fn must_have_ended(&self) -> bool {
        self.state == Expected::Stopped
    }
}
