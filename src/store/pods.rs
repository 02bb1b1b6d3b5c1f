//! The records of sandboxes and containers. Knows rows, not what is in them: the
//! objects' own state is JSON made by `pod`, the request is protobuf.

use rusqlite::{OptionalExtension, Row, params};

use super::{Error, Store, Transaction};

/// A row of `sandboxes` or `containers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRow {
    /// 64 hex digits.
    pub id: String,
    /// Unique among the rows of its table.
    pub name: String,
    /// The sandbox's id; empty in the row of a sandbox.
    pub sandbox: String,
    /// The object as JSON.
    pub record: String,
    /// The CRI request, protobuf.
    pub config: Vec<u8>,
}

fn sandbox_row(row: &Row<'_>) -> rusqlite::Result<PodRow> {
    Ok(PodRow {
        id: row.get(0)?,
        name: row.get(1)?,
        record: row.get(2)?,
        config: row.get(3)?,
        sandbox: String::new(),
    })
}

fn container_row(row: &Row<'_>) -> rusqlite::Result<PodRow> {
    Ok(PodRow {
        id: row.get(0)?,
        name: row.get(1)?,
        record: row.get(2)?,
        config: row.get(3)?,
        sandbox: row.get(4)?,
    })
}

impl Store {
    /// All sandboxes, in no order.
    pub fn sandboxes(&self) -> Result<Vec<PodRow>, Error> {
        self.read("list sandboxes", |c| {
            c.prepare("SELECT id, name, record, config FROM sandboxes")?
                .query_map([], sandbox_row)?
                .collect()
        })
    }

    /// All containers, in no order.
    pub fn containers(&self) -> Result<Vec<PodRow>, Error> {
        self.read("list containers", |c| {
            c.prepare("SELECT id, name, record, config, sandbox FROM containers")?
                .query_map([], container_row)?
                .collect()
        })
    }

    /// Adds a sandbox.
    pub fn add_sandbox(&self, row: &PodRow) -> Result<(), Error> {
        self.write("add sandbox", |t| {
            t.prepare_cached("INSERT INTO sandboxes (id, name, record, config) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![row.id, row.name, row.record, row.config])
                .map(drop)
        })
    }

    /// Adds a container.
    pub fn add_container(&self, row: &PodRow) -> Result<(), Error> {
        self.write("add container", |t| {
            t.prepare_cached(
                "INSERT INTO containers (id, name, record, config, sandbox) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![row.id, row.name, row.record, row.config, row.sandbox])
            .map(drop)
        })
    }

    /// Writes the record of a sandbox anew; one that is not there is no error.
    pub fn put_sandbox(&self, id: &str, record: &str) -> Result<(), Error> {
        self.write("write sandbox", |t| {
            t.prepare_cached("UPDATE sandboxes SET record = ?2 WHERE id = ?1")?
                .execute([id, record])
                .map(drop)
        })
    }

    /// Writes the record of a container anew; one that is not there is no error.
    pub fn put_container(&self, id: &str, record: &str) -> Result<(), Error> {
        self.write("write container", |t| {
            t.prepare_cached("UPDATE containers SET record = ?2 WHERE id = ?1")?
                .execute([id, record])
                .map(drop)
        })
    }

    /// Forgets a sandbox; one that is not there is no error.
    pub fn delete_sandbox(&self, id: &str) -> Result<(), Error> {
        self.write("delete sandbox", |t| {
            delete(t, "DELETE FROM sandboxes WHERE id = ?1", id)
        })
    }

    /// Forgets a container; one that is not there is no error.
    pub fn delete_container(&self, id: &str) -> Result<(), Error> {
        self.write("delete container", |t| {
            delete(t, "DELETE FROM containers WHERE id = ?1", id)
        })
    }

    /// A fact about this root that is set once: its value is kept, or `value`
    /// becomes it.
    pub fn setting(&self, key: &str, value: &str) -> Result<String, Error> {
        self.write("read setting", |t| {
            let found: Option<String> = t
                .query_row("SELECT value FROM settings WHERE key = ?1", [key], |row| {
                    row.get(0)
                })
                .optional()?;
            match found {
                Some(found) => Ok(found),
                None => {
                    t.execute("INSERT INTO settings (key, value) VALUES (?1, ?2)", [key, value])?;
                    Ok(value.to_owned())
                }
            }
        })
    }

    /// Counts a start of berthd; how many there were before.
    pub fn count_start(&self) -> Result<u64, Error> {
        self.write("count a start", |t| {
            let before: Option<String> = t
                .query_row("SELECT value FROM settings WHERE key = 'starts'", [], |row| {
                    row.get(0)
                })
                .optional()?;
            let before = before.and_then(|text| text.parse().ok()).unwrap_or(0u64);
            t.execute(
                "INSERT OR REPLACE INTO settings (key, value) VALUES ('starts', ?1)",
                [(before + 1).to_string()],
            )?;
            Ok(before)
        })
    }

    /// berthd ends politely: whoever starts next need not look at what is on the disk.
    pub fn take_leave(&self) -> Result<(), Error> {
        self.durable("take leave", |t| {
            t.execute(
                "INSERT OR REPLACE INTO settings (key, value) VALUES ('left', 'politely')",
                [],
            )
            .map(drop)
        })
    }

    /// Whether the last berthd took leave; it is forgotten, for the disk too.
    pub fn forget_leave(&self) -> Result<bool, Error> {
        let took = self.read("look for the last leave", |c| {
            c.query_row("SELECT 1 FROM settings WHERE key = 'left'", [], |_| Ok(()))
                .optional()
        })?;
        if took.is_some() {
            self.durable("forget the last leave", |t| {
                t.execute("DELETE FROM settings WHERE key = 'left'", []).map(drop)
            })?;
        }
        Ok(took.is_some())
    }

    /// Sets a fact anew.
    pub fn put_setting(&self, key: &str, value: &str) -> Result<(), Error> {
        self.write("write setting", |t| {
            t.execute(
                "INSERT OR REPLACE INTO settings (key, value) VALUES (?1, ?2)",
                [key, value],
            )
            .map(drop)
        })
    }
}

fn delete(t: &Transaction<'_>, sql: &str, id: &str) -> rusqlite::Result<()> {
    t.prepare_cached(sql)?.execute([id]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, sandbox: &str) -> PodRow {
        PodRow {
            id: id.into(),
            name: format!("name of {id}"),
            sandbox: sandbox.into(),
            record: "{}".into(),
            config: vec![1, 2],
        }
    }

    #[test]
    fn rows_come_back_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("berth.db");
        let store = Store::open(&path).unwrap();
        store.add_sandbox(&row("s", "")).unwrap();
        store.add_container(&row("c", "s")).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.sandboxes().unwrap(), [row("s", "")]);
        assert_eq!(store.containers().unwrap(), [row("c", "s")]);
        store.put_sandbox("s", "{1}").unwrap();
        store.put_container("c", "{2}").unwrap();
        let changed = |row: PodRow, record: &str| PodRow {
            record: record.into(),
            ..row
        };
        assert_eq!(store.sandboxes().unwrap(), [changed(row("s", ""), "{1}")]);
        assert_eq!(store.containers().unwrap(), [changed(row("c", "s"), "{2}")]);
        // A sandbox cannot be forgotten before its containers.
        assert!(store.delete_sandbox("s").is_err());
        store.delete_container("c").unwrap();
        store.put_container("c", "{3}").unwrap();
        assert!(store.containers().unwrap().is_empty());
        store.delete_sandbox("s").unwrap();
        store.delete_sandbox("s").unwrap();
        assert!(store.sandboxes().unwrap().is_empty());
    }

    #[test]
    fn a_setting_keeps_its_first_value() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("berth.db")).unwrap();
        assert_eq!(store.setting("k", "a").unwrap(), "a");
        assert_eq!(store.setting("k", "b").unwrap(), "a");
        assert_eq!(
            (store.count_start().unwrap(), store.count_start().unwrap()),
            (0, 1)
        );
        store.put_setting("k", "b").unwrap();
        assert_eq!(store.setting("k", "c").unwrap(), "b");
    }
}
