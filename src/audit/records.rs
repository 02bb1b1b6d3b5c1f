//! Who owns what, by the records.

use std::collections::{BTreeMap, BTreeSet};

use super::{Error, Subject};
use crate::{
    pod::{Container, ContainerRecord, Sandbox, SandboxRecord},
    store::{Store, images},
};

/// What the records say at one moment.
#[derive(Debug, Default)]
pub struct Records {
    pub sandboxes: BTreeMap<String, SandboxRecord>,
    pub containers: BTreeMap<String, ContainerRecord>,
    pub layers: BTreeSet<u64>,
    pub bridge: Option<String>,
    /// Sandboxes that have or may have a network.
    pub attached: BTreeSet<String>,
    /// Addresses that were given out, by family and offset, and to whom.
    pub addresses: Vec<(String, String)>,
}

impl Records {
    /// A root without records owns nothing.
    pub fn read(subject: &Subject) -> Result<Records, Error> {
        let path = subject.root.join("berth.db");
        if !path.exists() {
            return Ok(Records::default());
        }
        let store = Store::open_read_only(&path)?;
        let mut records = Records {
            bridge: store.network_bridge()?,
            attached: store.network_sandboxes()?.into_iter().collect(),
            layers: store
                .read("list layers", images::layer_numbers)?
                .into_iter()
                .collect(),
            ..Records::default()
        };
        for row in store.network_addresses(None)? {
            let name = format!("IPv{} number {}", row.family, row.offset);
            records.addresses.push((name, row.sandbox));
        }
        for row in store.sandboxes()? {
            let sandbox = Sandbox::from_row(row)?;
            records.sandboxes.insert(sandbox.id.clone(), sandbox.record());
        }
        for row in store.containers()? {
            let container = Container::from_row(row)?;
            records
                .containers
                .insert(container.id.clone(), container.record());
        }
        Ok(records)
    }

    /// Whose bundle has this id: a container's, or that of a sandbox with an init.
    pub fn owner_of_bundle(&self, id: &str) -> Option<String> {
        if self.containers.contains_key(id) {
            return Some(format!("container {id}"));
        }
        let sandbox = self.sandboxes.get(id)?;
        sandbox.init.then(|| format!("sandbox {id}"))
    }

    pub fn owner_of_sandbox(&self, id: &str) -> Option<String> {
        self.sandboxes.contains_key(id).then(|| format!("sandbox {id}"))
    }
}
