//! `berthd audit`: every kernel object and folder of one berthd, and every one
//! that no record owns.
//!
//! It only looks: the records are read without the right to write them, and
//! nothing is asked of a berthd that runs. What that one makes or removes at the
//! same time could look like a left-over, so what seems to be one is looked for
//! again, and only what is still there then is reported.

mod cgroups;
mod disk;
mod records;

use std::{collections::BTreeSet, fmt::Write as _, path::PathBuf, thread, time::Duration};

use serde::Serialize;

use self::records::Records;
use crate::{config::Config, instance::Instance, network, store};

/// How often is looked for what seems to be left over, and the pause between.
const LOOKS: usize = 4;
const PAUSE: Duration = Duration::from_millis(250);

/// Errors of an audit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("audit: {0}")]
    Store(#[from] store::Error),
    #[error("audit: {0}")]
    Record(#[from] crate::pod::Error),
    #[error("audit: {0}")]
    Network(#[from] network::Error),
    #[error("audit: {0}")]
    Cgroup(#[from] crate::cgroup::Error),
    #[error("audit: read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Thing {
    /// "mount", "namespace", "cgroup", "link", "table", "address", "shim", "folder".
    pub kind: &'static str,
    /// Its path or name.
    pub name: String,
    /// "sandbox ID", "container ID", "instance"; None: no record owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

impl Thing {
    fn new(kind: &'static str, name: impl Into<String>, owner: Option<String>) -> Thing {
        let name = name.into();
        Thing { kind, name, owner }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub owned: Vec<Thing>,
    pub orphans: Vec<Thing>,
}

/// Of which berthd.
#[derive(Debug)]
pub struct Subject {
    pub root: PathBuf,
    pub state: PathBuf,
    pub config: Config,
}

/// Looks until what seems to be left over has been there all the time. Blocks.
pub fn audit(subject: &Subject) -> Result<Report, Error> {
    let mut report = look(subject)?;
    for _ in 1..LOOKS {
        if report.orphans.is_empty() {
            break;
        }
        thread::sleep(PAUSE);
        let before: BTreeSet<_> = report.orphans.into_iter().collect();
        report = look(subject)?;
        report.orphans.retain(|orphan| before.contains(orphan));
    }
    Ok(report)
}

fn look(subject: &Subject) -> Result<Report, Error> {
    let instance = Instance::of(&subject.state);
    // The kernel first: what is recorded in between has an owner.
    let mut things = Vec::new();
    let mounts = disk::mounts(subject)?;
    let shims = disk::shims(subject)?;
    let folders = disk::folders(subject)?;
    let groups = cgroups::all()?;
    let named = match subject.config.network.bridge.as_str() {
        "" => instance.bridge.clone(),
        name => name.to_owned(),
    };
    let early = Records::read(subject)?;
    let bridge = early.bridge.clone().unwrap_or(named);
    let wire = network::audit::look(&bridge, &instance.table, subject.config.network.masquerade)?;
    let records = Records::read(subject)?;

    things.extend(
        mounts
            .into_iter()
            .map(|mount| disk::judge_mount(mount, subject, &records)),
    );
    things.extend(
        shims
            .into_iter()
            .map(|(pid, id)| Thing::new("shim", format!("{pid} of {id}"), records.owner_of_bundle(&id))),
    );
    things.extend(
        folders
            .into_iter()
            .map(|folder| disk::judge_folder(folder, &records)),
    );
    things.extend(cgroups::judge(groups, subject, &instance, &records));
    things.extend(judge_network(wire, subject, &instance, &records));
    things.sort();
    let (owned, orphans) = things.into_iter().partition(|thing| thing.owner.is_some());
    Ok(Report { owned, orphans })
}

fn judge_network(
    seen: network::audit::Seen,
    subject: &Subject,
    instance: &Instance,
    records: &Records,
) -> Vec<Thing> {
    let mut things = Vec::new();
    let whole = |owned: bool| owned.then(|| "instance".to_owned());
    if let Some(bridge) = seen.bridge {
        let recorded = records.bridge.as_ref() == Some(&bridge);
        // One of a name that somebody chose, and that was there before, is theirs.
        if recorded || subject.config.network.bridge.is_empty() {
            things.push(Thing::new("link", bridge, whole(recorded)));
        }
    }
    if seen.table {
        let used = records.bridge.is_some() || !records.attached.is_empty();
        things.push(Thing::new(
            "table",
            format!("inet {}", instance.table),
            whole(used),
        ));
    }
    for port in seen.ports {
        let owner = records
            .attached
            .iter()
            .find(|id| network::veth_name(id) == port)
            .map(|id| format!("sandbox {id}"));
        things.push(Thing::new("link", port, owner));
    }
    for (address, sandbox) in &records.addresses {
        let owner = records
            .sandboxes
            .contains_key(sandbox)
            .then(|| format!("sandbox {sandbox}"));
        things.push(Thing::new("address", address, owner));
    }
    things
}

impl Report {
    /// Lines for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for thing in &self.owned {
            let owner = thing.owner.as_deref().unwrap_or_default();
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:<10} {}  ({owner})", thing.kind, thing.name);
        }
        if self.orphans.is_empty() {
            let _ = writeln!(text, "nothing is left over");
        } else {
            let _ = writeln!(text, "left over, owned by no record:");
        }
        for thing in &self.orphans {
            let _ = writeln!(text, "  {:<10} {}", thing.kind, thing.name);
        }
        text
    }
}
