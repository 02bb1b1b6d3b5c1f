//! What an audit sees of the built-in bridge in the kernel, and how a purge takes
//! it away.

use super::{
    BridgeError, Error,
    netlink::Netlink,
    nftables::{Nftables, Table},
};

/// What there is.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The bridge, when it is there.
    pub bridge: Option<String>,
    /// Its ports that are named as those of pods.
    pub ports: Vec<String>,
    /// The table of nftables is there.
    pub table: bool,
}

/// Looks in the network namespace of the calling thread.
pub fn look(bridge: &str, table: &str, filters: bool) -> Result<Seen, Error> {
    let mut netlink = Netlink::open().map_err(BridgeError::from)?;
    let links = netlink.links().map_err(BridgeError::from)?;
    let master = links
        .iter()
        .find(|link| link.name == bridge && link.is_bridge)
        .map(|link| link.index);
    let ports = links
        .iter()
        .filter(|link| master.is_some() && link.master == master && link.name.starts_with("bv"));
    let table = filters
        && Nftables::open()
            .and_then(|mut nftables| nftables.exists(&named(table)))
            .map_err(BridgeError::from)?;
    Ok(Seen {
        bridge: master.map(|_| bridge.to_owned()),
        ports: ports.map(|link| link.name.clone()).collect(),
        table,
    })
}

/// Deletes a link; one that is not there is fine.
pub fn delete_link(name: &str) -> Result<(), Error> {
    let deleted = Netlink::open().and_then(|mut netlink| netlink.delete_link(name));
    Ok(deleted.map_err(BridgeError::from)?)
}

/// Deletes a table of the family inet; one that is not there is fine.
pub fn delete_table(name: &str) -> Result<(), Error> {
    let deleted = Nftables::open().and_then(|mut nftables| nftables.delete(&named(name)));
    Ok(deleted.map_err(BridgeError::from)?)
}

/// A table by its name: all that looking and deleting want.
fn named(table: &str) -> Table {
    Table {
        name: table.to_owned(),
        bridge: String::new(),
        subnets: Vec::new(),
    }
}
