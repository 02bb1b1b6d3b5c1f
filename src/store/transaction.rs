//! A transaction that writes.

use std::ops::Deref;

use rusqlite::Connection;

/// Changes that are there together or not at all: rolled back unless it is committed.
/// rusqlite's own reads the text of its two statements anew each time; here they are kept.
#[derive(Debug)]
pub struct Transaction<'a>(&'a Connection);

impl<'a> Transaction<'a> {
    /// Takes the lock for writing at once.
    pub fn begin(connection: &'a Connection) -> rusqlite::Result<Transaction<'a>> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Transaction(connection))
    }

    pub fn commit(self) -> rusqlite::Result<()> {
        self.0.prepare_cached("COMMIT")?.execute([]).map(drop)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // After a commit, and after errors that SQLite rolls back itself, nothing is open. A
        // failure here leaves the transaction open, and the next one tells that.
        if !self.0.is_autocommit() {
            let _ = self.0.execute_batch("ROLLBACK");
        }
    }
}

impl Deref for Transaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0
    }
}
