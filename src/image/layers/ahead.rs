//! Writing to the disk while there is more to come.
//!
//! An image is told of when its bytes are on the disk. If all of them waited in the page
//! cache for that, a pull would end with a second and more in which nothing is unpacked.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use rustix::io::Errno;

use crate::image::walk;

/// After how many bytes the disk begins: enough for it to write in large pieces.
const PORTION: u64 = 64 << 20;

/// Of a thread that makes one system call.
const STACK: usize = 64 << 10;

#[derive(Debug)]
pub struct Ahead {
    /// Opened by itself: a failed write is told once for each, and [`super::Layers::sync`]
    /// must hear of it.
    folder: OwnedFd,
    waiting: AtomicU64,
    busy: AtomicBool,
}

impl Ahead {
    pub fn new(layers: &OwnedFd) -> Result<Arc<Ahead>, Errno> {
        Ok(Arc::new(Ahead {
            folder: walk::open_folder(layers.as_fd(), c".")?,
            waiting: AtomicU64::new(0),
            busy: AtomicBool::new(false),
        }))
    }

    /// So many bytes were unpacked into files.
    pub fn unpacked(self: &Arc<Self>, bytes: u64) {
        let waiting = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if waiting < PORTION || self.busy.swap(true, Ordering::Acquire) {
            return;
        }
        self.waiting.store(0, Ordering::Relaxed);
        let this = Arc::clone(self);
        let write = move || {
            // What fails is heard by the sync at the end.
            let _ = rustix::fs::syncfs(&this.folder);
            this.busy.store(false, Ordering::Release);
        };
        let thread = thread::Builder::new().name("sync".into()).stack_size(STACK);
        if thread.spawn(write).is_err() {
            self.busy.store(false, Ordering::Release);
        }
    }
}
