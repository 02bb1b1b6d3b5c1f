//! Records of the network: subnets, attachments, addresses, host ports.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Error, Store, Transaction};

/// A subnet of the built-in bridge. `family` is 4 or 6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetRow {
    pub family: u8,
    pub subnet: String,
}

/// An address, as its offset in the subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressRow {
    pub family: u8,
    pub offset: u32,
    pub sandbox: String,
}

/// A host port of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRow {
    pub protocol: u8,
    pub family: u8,
    pub host_port: u16,
    /// Empty: every address of the node.
    pub host_ip: String,
    pub pod_port: u16,
    pub sandbox: String,
}

/// Offsets of a family that may be given out.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    pub family: u8,
    pub first: u32,
    pub last: u32,
}

/// Why a claim was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No address of the family is free.
    Exhausted { family: u8 },
    /// Another sandbox has the host port.
    PortTaken { port: PortRow, sandbox: String },
}

const ADDRESS: &str = "SELECT family, offset, sandbox FROM network_addresses";
const PORT: &str = "SELECT protocol, family, host_port, host_ip, pod_port, sandbox FROM network_ports";

impl Store {
    /// The recorded subnets, the primary one first.
    pub fn network_subnets(&self) -> Result<Vec<SubnetRow>, Error> {
        self.read("list subnets", |c| {
            c.prepare_cached("SELECT family, subnet FROM network_subnets ORDER BY position")?
                .query_map([], |row| {
                    Ok(SubnetRow {
                        family: row.get(0)?,
                        subnet: row.get(1)?,
                    })
                })?
                .collect()
        })
    }

    /// Replaces the subnets; no address of the old ones may be in use.
    pub fn network_set_subnets(&self, subnets: &[SubnetRow]) -> Result<(), Error> {
        self.write("record subnets", |t| {
            t.execute("DELETE FROM network_subnets", [])?;
            for (position, row) in (0i64..).zip(subnets) {
                t.execute(
                    "INSERT INTO network_subnets (family, position, subnet, last) VALUES (?, ?, ?, 0)",
                    params![row.family, position, row.subnet],
                )?;
            }
            Ok(())
        })
    }

    /// The name of the bridge that was made, if there is one.
    pub fn network_bridge(&self) -> Result<Option<String>, Error> {
        self.read("look up the bridge", |c| {
            c.prepare_cached("SELECT name FROM network_bridge")?
                .query_row([], |row| row.get(0))
                .optional()
        })
    }

    /// Records the bridge that is about to be made, or that there is none now.
    pub fn network_set_bridge(&self, name: Option<&str>) -> Result<(), Error> {
        self.write("record the bridge", |t| {
            t.execute("DELETE FROM network_bridge", [])?;
            if let Some(name) = name {
                t.execute("INSERT INTO network_bridge (name) VALUES (?)", [name])?;
            }
            Ok(())
        })
    }

    /// Records that the sandbox is being attached, with an address of each pool
    /// and its host ports: all of it, or nothing when something is refused.
    /// Gives the offsets in the order of the pools.
    pub fn network_claim(
        &self,
        sandbox: &str,
        record: &str,
        pools: &[Pool],
        ports: &[PortRow],
    ) -> Result<Result<Vec<u32>, Refused>, Error> {
        self.write("claim addresses", |t| {
            for port in ports {
                if let Some(holder) = port_holder(t, port)? {
                    let port = port.clone();
                    return Ok(Err(Refused::PortTaken {
                        port,
                        sandbox: holder,
                    }));
                }
            }
            let mut offsets = Vec::with_capacity(pools.len());
            for pool in pools {
                match free_offset(t, pool)? {
                    Some(offset) => offsets.push(offset),
                    None => return Ok(Err(Refused::Exhausted { family: pool.family })),
                }
            }
            put_attachment(t, sandbox, record)?;
            for (pool, offset) in pools.iter().zip(&offsets) {
                t.prepare_cached("INSERT INTO network_addresses (family, offset, sandbox) VALUES (?, ?, ?)")?
                    .execute(params![pool.family, offset, sandbox])?;
                t.prepare_cached("UPDATE network_subnets SET last = ? WHERE family = ?")?
                    .execute(params![offset, pool.family])?;
            }
            for port in ports {
                t.prepare_cached(
                    "INSERT INTO network_ports (protocol, family, host_port, host_ip, pod_port, sandbox)
                     VALUES (?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    port.protocol,
                    port.family,
                    port.host_port,
                    port.host_ip,
                    port.pod_port,
                    sandbox
                ])?;
            }
            Ok(Ok(offsets))
        })
    }

    /// Records or replaces what is known of a sandbox's network.
    pub fn network_put(&self, sandbox: &str, record: &str) -> Result<(), Error> {
        self.write("record attachment", |t| put_attachment(t, sandbox, record))
    }

    /// What was recorded of a sandbox's network.
    pub fn network_attachment(&self, sandbox: &str) -> Result<Option<String>, Error> {
        self.read("look up attachment", |c| {
            c.prepare_cached("SELECT record FROM network_attachments WHERE sandbox = ?")?
                .query_row([sandbox], |row| row.get(0))
                .optional()
        })
    }

    /// Every sandbox that has or may have a network.
    pub fn network_sandboxes(&self) -> Result<Vec<String>, Error> {
        self.read("list attachments", |c| {
            c.prepare_cached("SELECT sandbox FROM network_attachments ORDER BY sandbox")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
    }

    /// The addresses in use, of one sandbox or of all.
    pub fn network_addresses(&self, sandbox: Option<&str>) -> Result<Vec<AddressRow>, Error> {
        self.read("list addresses", |c| rows(c, ADDRESS, sandbox, address_row))
    }

    /// The host ports in use, of one sandbox or of all.
    pub fn network_ports(&self, sandbox: Option<&str>) -> Result<Vec<PortRow>, Error> {
        self.read("list host ports", |c| rows(c, PORT, sandbox, port_row))
    }

    /// Whether any address of the built-in bridge is in use.
    pub fn network_in_use(&self) -> Result<bool, Error> {
        self.read("look for addresses", |c| {
            c.prepare_cached("SELECT EXISTS (SELECT 1 FROM network_addresses)")?
                .query_row([], |row| row.get(0))
        })
    }

    /// Forgets a sandbox's network, with its addresses and ports.
    pub fn network_release(&self, sandbox: &str) -> Result<(), Error> {
        self.write("release addresses", |t| {
            for statement in [
                "DELETE FROM network_ports WHERE sandbox = ?",
                "DELETE FROM network_addresses WHERE sandbox = ?",
                "DELETE FROM network_attachments WHERE sandbox = ?",
            ] {
                t.prepare_cached(statement)?.execute([sandbox])?;
            }
            Ok(())
        })
    }
}

fn put_attachment(t: &Transaction<'_>, sandbox: &str, record: &str) -> rusqlite::Result<()> {
    t.prepare_cached(
        "INSERT INTO network_attachments (sandbox, record) VALUES (?, ?)
         ON CONFLICT (sandbox) DO UPDATE SET record = excluded.record",
    )?
    .execute([sandbox, record])?;
    Ok(())
}

/// Who has the port; one on every address collides with one on any.
fn port_holder(t: &Transaction<'_>, port: &PortRow) -> rusqlite::Result<Option<String>> {
    t.prepare_cached(
        "SELECT sandbox FROM network_ports WHERE protocol = ?1 AND family = ?2 AND host_port = ?3
         AND (host_ip = ?4 OR host_ip = '' OR ?4 = '') LIMIT 1",
    )?
    .query_row(
        params![port.protocol, port.family, port.host_port, port.host_ip],
        |row| row.get(0),
    )
    .optional()
}

/// The first free offset after the one given out last, and around.
fn free_offset(t: &Transaction<'_>, pool: &Pool) -> rusqlite::Result<Option<u32>> {
    let last: Option<u32> = t
        .prepare_cached("SELECT last FROM network_subnets WHERE family = ?")?
        .query_row([pool.family], |row| row.get(0))
        .optional()?;
    let next = last.unwrap_or(0).saturating_add(1).max(pool.first);
    // After the last one the first is next, not the last one again.
    let start = if next > pool.last { pool.first } else { next };
    match gap(t, pool.family, start, pool.last)? {
        Some(offset) => Ok(Some(offset)),
        None => gap(t, pool.family, pool.first, start),
    }
}

/// The first free offset of a range.
fn gap(t: &Transaction<'_>, family: u8, from: u32, to: u32) -> rusqlite::Result<Option<u32>> {
    let mut statement = t.prepare_cached(
        "SELECT offset FROM network_addresses WHERE family = ? AND offset BETWEEN ? AND ? ORDER BY offset",
    )?;
    let mut used = statement.query(params![family, from, to])?;
    let mut candidate = from;
    while let Some(row) = used.next()? {
        let offset: u32 = row.get(0)?;
        if offset > candidate {
            break;
        }
        candidate = offset.saturating_add(1);
    }
    Ok((candidate <= to).then_some(candidate))
}

fn rows<T>(
    c: &Connection,
    select: &str,
    sandbox: Option<&str>,
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    // Two statements, so that the one for a sandbox uses its index.
    let which = if sandbox.is_some() {
        "sandbox = ?1"
    } else {
        "?1 IS NULL"
    };
    c.prepare_cached(&format!("{select} WHERE {which}"))?
        .query_map([sandbox], read)?
        .collect()
}

fn address_row(row: &Row<'_>) -> rusqlite::Result<AddressRow> {
    Ok(AddressRow {
        family: row.get(0)?,
        offset: row.get(1)?,
        sandbox: row.get(2)?,
    })
}

fn port_row(row: &Row<'_>) -> rusqlite::Result<PortRow> {
    Ok(PortRow {
        protocol: row.get(0)?,
        family: row.get(1)?,
        host_port: row.get(2)?,
        host_ip: row.get(3)?,
        pod_port: row.get(4)?,
        sandbox: row.get(5)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("berth.db")).unwrap();
        let subnet = SubnetRow {
            family: 4,
            subnet: "10.0.0.0/29".into(),
        };
        store.network_set_subnets(&[subnet]).unwrap();
        (dir, store)
    }

    const POOL: Pool = Pool {
        family: 4,
        first: 2,
        last: 6,
    };

    fn claim(store: &Store, sandbox: &str, ports: &[PortRow]) -> Result<Vec<u32>, Refused> {
        store.network_claim(sandbox, "{}", &[POOL], ports).unwrap()
    }

    fn port(host_ip: &str, host_port: u16) -> PortRow {
        PortRow {
            protocol: 6,
            family: 4,
            host_port,
            host_ip: host_ip.into(),
            pod_port: 80,
            sandbox: String::new(),
        }
    }

    #[test]
    fn an_address_is_not_used_again_at_once() {
        let (_dir, store) = store();
        for (sandbox, offset) in [("a", 2), ("b", 3), ("c", 4)] {
            assert_eq!(claim(&store, sandbox, &[]), Ok(vec![offset]));
        }
        store.network_release("a").unwrap();
        assert_eq!(claim(&store, "d", &[]), Ok(vec![5]));
        assert_eq!(claim(&store, "e", &[]), Ok(vec![6]));
        assert_eq!(claim(&store, "f", &[]), Ok(vec![2]));
        assert_eq!(claim(&store, "g", &[]), Err(Refused::Exhausted { family: 4 }));
        assert_eq!(store.network_attachment("g").unwrap(), None);
        store.network_release("c").unwrap();
        store.network_release("c").unwrap();
        assert_eq!(claim(&store, "g", &[]), Ok(vec![4]));
        assert_eq!(store.network_addresses(None).unwrap().len(), 5);
        // Nor is the last one of the subnet.
        store.network_release("e").unwrap();
        assert_eq!(claim(&store, "h", &[]), Ok(vec![6]));
        store.network_release("h").unwrap();
        store.network_release("d").unwrap();
        assert_eq!(claim(&store, "i", &[]), Ok(vec![5]));
    }

    #[test]
    fn host_ports_collide_where_sockets_would() {
        let (_dir, store) = store();
        assert!(claim(&store, "a", &[port("", 80), port("10.1.1.1", 81)]).is_ok());
        for taken in [
            port("", 80),
            port("10.1.1.1", 80),
            port("", 81),
            port("10.1.1.1", 81),
        ] {
            let refused = claim(&store, "b", &[port("", 90), taken.clone()]);
            let sandbox = "a".to_owned();
            assert_eq!(refused, Err(Refused::PortTaken { port: taken, sandbox }));
        }
        assert_eq!(store.network_ports(Some("b")).unwrap(), []);
        let mut udp = port("", 80);
        udp.protocol = 17;
        assert!(claim(&store, "b", &[port("10.1.1.2", 81), udp]).is_ok());
        store.network_release("a").unwrap();
        assert!(claim(&store, "c", &[port("", 80)]).is_ok());
        assert_eq!(store.network_sandboxes().unwrap(), ["b", "c"]);
    }
}
