//! Bringing what is in the log of the records (SQLite's WAL) into the file, apart from those
//! who write.
//!
//! SQLite does so itself within the commit that makes the log 1000 pages long, and syncs
//! the disk twice for it: every fortieth pod would wait for that, and all who write with it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

/// Commits between two of them; each makes the log about two pages longer.
const EVERY: u32 = 500;

/// Pages of the log at which the commit does it after all: nobody else has for long.
pub const AT_LAST: u32 = 16_000;

/// When it is done, and by whom.
#[derive(Debug)]
pub struct Checkpoints {
    path: PathBuf,
    commits: AtomicU32,
    runs: Arc<AtomicBool>,
}

impl Checkpoints {
    /// Of the records in the file `path`.
    pub fn of(path: &Path) -> Checkpoints {
        Checkpoints {
            path: path.into(),
            commits: AtomicU32::new(0),
            runs: Arc::default(),
        }
    }

    /// Counts a commit; the last of so many begins one, and does not wait for it.
    pub fn count(&self) {
        if self.commits.fetch_add(1, Ordering::Relaxed) + 1 < EVERY || self.runs.swap(true, Ordering::Relaxed)
        {
            return;
        }
        self.commits.store(0, Ordering::Relaxed);
        let (path, runs) = (self.path.clone(), self.runs.clone());
        let begun = thread::Builder::new()
            .name("checkpoint".into())
            .stack_size(256 * 1024)
            .spawn(move || {
                if let Err(error) = checkpoint(&path) {
                    tracing::warn!(path = %path.display(), %error, "the log of the records grows: it cannot be brought into their file");
                }
                runs.store(false, Ordering::Relaxed);
            });
        if begun.is_err() {
            // The next commit tries it again.
            self.runs.store(false, Ordering::Relaxed);
        }
    }
}

/// As far as it goes without anybody having to wait.
fn checkpoint(path: &Path) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::ZERO)?;
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use super::{super::Store, *};

    #[test]
    fn what_is_written_comes_into_the_file_by_and_by() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("berth.db");
        let store = Store::open(&path).unwrap();
        let long = "v".repeat(10_000);
        store.put_setting("long", &long).unwrap();
        let before = fs::read(&path).unwrap();
        for number in 0..EVERY {
            store.put_setting("k", &number.to_string()).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let now = fs::read(&path).unwrap();
            if now.len() > before.len() && now.windows(100).any(|part| part == &long.as_bytes()[..100]) {
                break;
            }
            assert!(Instant::now() < deadline, "nothing has come into the file");
            thread::sleep(Duration::from_millis(5));
        }
        // And those who write go on.
        store.put_setting("k", "last").unwrap();
    }
}
