//! The records: one SQLite file under the root, in WAL mode.
//!
//! A commit is a write without fsync (`synchronous=NORMAL`): it survives the
//! death of berthd, and after a power cut the file is consistent, at worst some
//! seconds old. That is what pods need. An image is committed through
//! [`Store::durable`], which syncs.
//!
//! All access is through one connection under a mutex: a commit takes tens of
//! microseconds, so no thread is worth handing it to. On a disk that stands still it takes
//! as long as that: see [`aside`].

mod checkpoint;
pub mod network;
mod pods;
mod transaction;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
};

use rusqlite::{Connection, OpenFlags};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
};

use self::checkpoint::Checkpoints;
pub use self::{pods::PodRow, transaction::Transaction};
use crate::{
    failpoint,
    kind::{HasKind, Kind},
};

pub mod images;

/// Migrations: entry N brings `user_version` from N to N + 1.
const MIGRATIONS: &[&str] = &[
    concat!(
        include_str!("pods.sql"),
        include_str!("images.sql"),
        include_str!("network.sql"),
    ),
    include_str!("seals.sql"),
];

/// Errors of the records; each names the file or the step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open records {path}: {source}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error(
        "records {path} are of version {found}, this berthd knows {known}: start the berthd that wrote them, or use another root"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("{step} in the records: {source}")]
    Query {
        step: &'static str,
        source: rusqlite::Error,
    },
    #[error("{step} in the records: {message}")]
    Damaged { step: &'static str, message: String },
}

impl HasKind for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Query { source, .. }
                if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) =>
            {
                Kind::ResourceExhausted
            }
            Error::Damaged { .. } => Kind::DataLoss,
            _ => Kind::Internal,
        }
    }
}

/// The open records.
pub struct Store {
    connection: Mutex<Connection>,
    checkpoints: Checkpoints,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Opens or makes the file, and migrates it to this version.
    pub fn open(path: &Path) -> Result<Store, Error> {
        let open = |source| Error::Open {
            path: path.into(),
            source,
        };
        let mut connection = Connection::open(path).map_err(open)?;
        connection
            .execute_batch(
                // A migration may put a table in another's place: keys are looked at again after.
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
                 PRAGMA foreign_keys = OFF; PRAGMA cache_size = -512; PRAGMA busy_timeout = 5000;",
            )
            .map_err(open)?;
        connection.set_prepared_statement_cache_capacity(48);
        migrate(path, &mut connection)?;
        let rest = format!(
            "PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = {}",
            checkpoint::AT_LAST
        );
        connection.execute_batch(&rest).map_err(open)?;
        Ok(Store {
            connection: Mutex::new(connection),
            checkpoints: Checkpoints::of(path),
        })
    }

    /// Opens records that are there to look at them: nothing is made or migrated, and
    /// a berthd that runs on them goes on.
    pub fn open_read_only(path: &Path) -> Result<Store, Error> {
        let open = |source| Error::Open {
            path: path.into(),
            source,
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(open)?;
        connection
            .execute_batch("PRAGMA busy_timeout = 5000")
            .map_err(open)?;
        let (found, known) = versions(&connection).map_err(open)?;
        if found != known {
            return Err(Error::Newer {
                path: path.into(),
                found,
                known,
            });
        }
        Ok(Store {
            connection: Mutex::new(connection),
            checkpoints: Checkpoints::of(path),
        })
    }

    /// Reads the whole file and looks whether it is one, as after an unclean stop of the
    /// machine.
    pub fn verify(&self) -> Result<(), Error> {
        let step = "look for damage";
        let said = self.read(step, |c| {
            c.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
        })?;
        match said.as_str() {
            "ok" => Ok(()),
            _ => Err(Error::Damaged {
                step,
                message: format!(
                    "{said}; nothing was changed: put a copy of the root in its place, or start with an empty root"
                ),
            }),
        }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a transaction rolled it back: the connection is sound.
        lock_aside(&self.connection)
    }

    /// Reads. `step` names what is done, for the error: "list images".
    pub fn read<T>(
        &self,
        step: &'static str,
        f: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        f(&self.connection()).map_err(|source| Error::Query { step, source })
    }

    /// Runs one transaction; an error rolls all of it back.
    pub fn write<T>(
        &self,
        step: &'static str,
        f: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        failpoint::reach_part("before", step);
        let done = aside(|| transact(&self.connection(), f));
        let done = done.map_err(|source| Error::Query { step, source });
        failpoint::reach_part("after", step);
        self.checkpoints.count();
        done
    }

    /// As [`Store::write`], and the commit has reached the disk when this
    /// returns. Blocks for as long as the disk takes.
    pub fn durable<T>(
        &self,
        step: &'static str,
        f: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        failpoint::reach_part("before", step);
        let (done, back) = aside(|| {
            let connection = self.connection();
            let done = connection
                .execute_batch("PRAGMA synchronous = FULL")
                .and_then(|()| transact(&connection, f));
            (done, connection.execute_batch("PRAGMA synchronous = NORMAL"))
        });
        failpoint::reach_part("after", step);
        self.checkpoints.count();
        done.and_then(|value| back.map(|()| value))
            .map_err(|source| Error::Query { step, source })
    }
}

/// Runs what may have to wait for the disk. Where tasks are served by few threads, another
/// one takes this one's place meanwhile: a disk that stands still must not be in the way of
/// those who do not need it.
fn aside<T>(f: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(f),
        _ => f(),
    }
}

/// Locks what is held while somebody waits for the disk.
pub fn lock_aside<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.try_lock() {
        Ok(free) => free,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => aside(|| mutex.lock().unwrap_or_else(PoisonError::into_inner)),
    }
}

fn transact<T>(
    connection: &Connection,
    f: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = Transaction::begin(connection)?;
    let value = f(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// The version of the file, and ours.
fn versions(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let found = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok((found, i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)))
}

fn migrate(path: &Path, connection: &mut Connection) -> Result<(), Error> {
    let open = |source| Error::Open {
        path: path.into(),
        source,
    };
    let (found, known) = versions(connection).map_err(open)?;
    if found > known || found < 0 {
        return Err(Error::Newer {
            path: path.into(),
            found,
            known,
        });
    }
    for (version, script) in (0i64..).zip(MIGRATIONS).skip(usize::try_from(found).unwrap_or(0)) {
        let step = connection.transaction().map_err(open)?;
        step.execute_batch(script).map_err(open)?;
        step.pragma_update(None, "user_version", version + 1)
            .map_err(open)?;
        step.commit().map_err(open)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_records_are_refused_without_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("berth.db");
        drop(Store::open(&path).unwrap());
        Connection::open(&path)
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(Store::open(&path), Err(Error::Newer { found: 99, .. })));
        assert_eq!(before, std::fs::read(&path).unwrap());
    }

    #[test]
    fn records_of_an_older_version_are_brought_to_this_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("berth.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.execute_batch(
            "PRAGMA user_version = 1;
             INSERT INTO images VALUES ('i', 'm', 5);
             INSERT INTO layers VALUES (3, 'd', '', x'', 0, 7, 1);
             INSERT INTO image_layers VALUES ('i', 0, 3);
             INSERT INTO layer_uses VALUES ('c', 3);",
        )
        .unwrap();
        drop(old);
        let store = Store::open(&path).unwrap();
        let layers = store.read("look", |c| images::image_layers(c, "i")).unwrap();
        assert_eq!(layers.len(), 1);
        assert_eq!((layers[0].number, layers[0].seal.len()), (3, 0));
        store.verify().unwrap();
        // The keys between tables still hold.
        let broken = store.write("break", |t| images::delete_layer(t, 3));
        assert!(broken.is_err());
        let twice = store.write("twice", |t| images::insert_layer(t, &layers[0]));
        assert!(twice.is_err());
        let foreign = |c: &Connection| c.prepare("PRAGMA foreign_key_check")?.exists([]);
        assert!(!store.read("look", foreign).unwrap());
    }

    #[test]
    fn a_look_changes_nothing_and_sees_what_is_written_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("berth.db");
        assert!(Store::open_read_only(&path).is_err());
        assert!(!path.exists());
        let store = Store::open(&path).unwrap();
        let look = Store::open_read_only(&path).unwrap();
        store.put_setting("k", "v").unwrap();
        let read = |c: &Connection| c.query_row("SELECT value FROM settings", [], |r| r.get::<_, String>(0));
        assert_eq!(look.read("look", read).unwrap(), "v");
        assert!(look.put_setting("k", "w").is_err());
    }

    #[test]
    fn an_error_rolls_the_whole_transaction_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("berth.db")).unwrap();
        let failed = store.write("try", |t| {
            t.execute_batch("CREATE TABLE x (a)")?;
            t.execute_batch("nonsense")
        });
        assert!(failed.is_err());
        assert!(
            store
                .read("look", |c| c.query_row("SELECT 1 FROM x", [], |_| Ok(())))
                .is_err()
        );
    }
}
