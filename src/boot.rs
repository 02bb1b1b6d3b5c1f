//! Whether the machine stopped while berthd ran: a power cut, a crash, a reset.
//!
//! The state folder does not outlive a boot, and has the boot's id in a file; the records do,
//! and say whether berthd was stopped politely. A new boot over records of which nobody took
//! leave is an unclean stop of the machine. The death of berthd alone is none: what it wrote
//! is in the kernel's hands.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::store::{self, Store};

/// In the state folder: the id of the boot in which all was found in order.
pub const MARK: &str = "boot";

/// The boot that berthd runs in.
#[derive(Debug)]
pub struct Boot {
    mark: PathBuf,
    id: String,
    unclean: bool,
}

impl Boot {
    /// To be called once, when berthd starts: it forgets that the last one took leave.
    pub fn begin(store: &Store, state: &Path) -> Result<Boot, store::Error> {
        // Without the file (there is always one) each start is taken for a new boot.
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mark = state.join(MARK);
        let known = !id.is_empty() && fs::read_to_string(&mark).is_ok_and(|known| known == id);
        let took_leave = store.forget_leave()?;
        Ok(Boot {
            mark,
            id,
            unclean: !known && !took_leave,
        })
    }

    /// What may have been lost must be looked at, and [`Boot::in_order`] be called then.
    pub fn was_unclean(&self) -> bool {
        self.unclean
    }

    /// All was looked at: the next start of berthd in this boot need not.
    pub fn in_order(&self) {
        if let Err(error) = fs::write(&self.mark, &self.id) {
            let path = self.mark.display();
            tracing::warn!(%path, %error, "the next start takes this boot for another, and reads all layers");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_stops_are_unclean() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("berth.db")).unwrap();
        let state = dir.path().join("state");
        let boot = |wipe: bool| {
            if wipe {
                let _ = fs::remove_dir_all(&state);
                fs::create_dir(&state).unwrap();
            }
            Boot::begin(&store, &state).unwrap()
        };
        let first = boot(true);
        assert!(first.was_unclean());
        // It died before all was looked at.
        assert!(boot(false).was_unclean());
        first.in_order();
        assert!(!boot(false).was_unclean(), "the same boot");
        assert!(boot(true).was_unclean(), "a new boot, and nobody took leave");
        store.take_leave().unwrap();
        assert!(!boot(true).was_unclean());
        assert!(boot(true).was_unclean(), "the leave was of the boot before");
        // A state folder on a disk keeps the mark of another boot.
        fs::write(state.join(MARK), "another\n").unwrap();
        assert!(boot(false).was_unclean());
    }
}
