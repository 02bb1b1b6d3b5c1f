//! The packet filter, over nfnetlink: one transaction per change, no exec of nft.

mod expression;
mod message;
mod ruleset;

pub use ruleset::{HostPort, Table};

use super::wire::{Error, Wire};

/// An open nfnetlink socket.
#[derive(Debug)]
pub struct Nftables {
    wire: Wire,
}

impl Nftables {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Nftables, Error> {
        Ok(Nftables {
            wire: Wire::open(netlink_sys::protocols::NETLINK_NETFILTER, "netfilter")?,
        })
    }

    /// Makes the table anew, atomically, with all the ports.
    pub fn install(&mut self, table: &Table, ports: &[HostPort]) -> Result<(), Error> {
        table
            .install(ports)
            .commit(&mut self.wire, "install nftables table", &table.name)
    }

    /// Whether the table is there: `nft flush ruleset` takes everybody's.
    pub fn exists(&mut self, table: &Table) -> Result<bool, Error> {
        match message::get_table(&mut self.wire, &table.name) {
            Err(e) if e.errno() == libc::ENOENT => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// Adds ports; those that are there already are fine. `ENOENT`: the table is gone.
    pub fn add(&mut self, table: &Table, ports: &[HostPort]) -> Result<(), Error> {
        if ports.is_empty() {
            return Ok(());
        }
        table
            .add(ports)
            .commit(&mut self.wire, "add host ports to nftables table", &table.name)
    }

    /// Removes ports; those that are not there are fine, and so is a table that
    /// is not.
    pub fn remove(&mut self, table: &Table, ports: &[HostPort]) -> Result<(), Error> {
        let operation = "remove host ports from nftables table";
        if ports.is_empty() {
            return Ok(());
        }
        match table.remove(ports).commit(&mut self.wire, operation, &table.name) {
            // A transaction fails whole: take them one by one.
            Err(e) if e.errno() == libc::ENOENT => {}
            done => return done,
        }
        for port in ports {
            for batch in table.remove_one(port) {
                match batch.commit(&mut self.wire, operation, &table.name) {
                    Err(e) if e.errno() != libc::ENOENT => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Deletes the table; one that is not there is fine.
    pub fn delete(&mut self, table: &Table) -> Result<(), Error> {
        match table
            .delete()
            .commit(&mut self.wire, "delete nftables table", &table.name)
        {
            Err(e) if e.errno() == libc::ENOENT => Ok(()),
            done => done,
        }
    }
}
