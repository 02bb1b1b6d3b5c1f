//! The scope of all shims, beside the service of berthd.
//!
//! In berthd's cgroup a shim would be counted as berthd's, be signalled by
//! `systemctl kill`, and be complained of whenever systemd starts berthd anew over
//! processes that it takes for left over. So the fork server is moved out, and its copies
//! begin outside; those that it made before that are moved one by one. All that is apart
//! from the path of a start, for to move a process takes the kernel a grace period.

use std::{fs::OpenOptions, io::Write, sync::Arc};

use super::{STOP_TIMEOUT_USEC, blocking_io, holds, systemd::Systemd, unit};
use crate::cgroup::Layout;

/// The scope, which systemd makes with the first process in it and removes after the last.
#[derive(Debug)]
pub struct Shims {
    systemd: Arc<Systemd>,
    /// Of its cgroup.
    path: String,
    turn: tokio::sync::Mutex<()>,
}

/// The path of the scope; `instance` is the name of the berthd.
pub fn path(instance: &str) -> String {
    format!("/system.slice/{instance}-shims.scope")
}

impl Shims {
    pub(super) fn new(systemd: Arc<Systemd>, instance: &str) -> Shims {
        Shims {
            systemd,
            path: path(instance),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Moves a shim in, or the fork server, unless it is there. It must be a child that
    /// nobody has waited for, so that the pid is its own. One that cannot be moved stays
    /// where it is and works as well.
    pub async fn take(&self, pid: u32) {
        if self.has(pid) {
            return;
        }
        let _turn = self.turn.lock().await;
        let unit = unit::name(&self.path);
        let scope = [
            ("Description", "shims of Berth".into()),
            ("Slice", "system.slice".into()),
            // To put processes into it is ours.
            ("Delegate", true.into()),
            ("PIDs", vec![pid].into()),
            ("DefaultDependencies", false.into()),
            ("CollectMode", "inactive-or-failed".into()),
            ("TimeoutStopUSec", STOP_TIMEOUT_USEC.into()),
            ("TasksMax", u64::MAX.into()),
        ];
        let moved = match self.add(pid).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let done = || holds(&self.path, pid);
                let made = self.systemd.start_scope(unit, &scope, done).await;
                made.map_err(|error| error.to_string())
            }
            added => added.map_err(|error| error.to_string()),
        };
        if let Err(error) = moved {
            tracing::debug!(pid, unit, error, "move a shim out of berthd's cgroup");
        }
    }

    /// Whether it is in here, as it says itself (cgroups(7)).
    fn has(&self, pid: u32) -> bool {
        let told = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        told.lines()
            .any(|line| line.strip_prefix("0::") == Some(&self.path))
    }

    async fn add(&self, pid: u32) -> std::io::Result<()> {
        let root = Layout::detect()
            .ok()
            .and_then(|layout| layout.hierarchies.iter().find(|hierarchy| hierarchy.is_v2()))
            .ok_or(std::io::ErrorKind::Unsupported)?;
        let file = root.folder(&self.path).join("cgroup.procs");
        blocking_io(move || {
            let mut file = OpenOptions::new().write(true).open(file)?;
            file.write_all(pid.to_string().as_bytes())
        })
        .await
    }
}
