//! Flow control windows of the sending side.
//!
//! The clients of the CRI (moby/spdystream in kubelet, kubectl and crictl) keep no
//! windows: they send no WINDOW_UPDATE and ignore ours, so one who waits for them
//! waits for ever. Other clients keep the specification's. So all is counted, but
//! nothing waits until the client has shown, by a WINDOW_UPDATE or by its initial
//! window in SETTINGS, that it keeps windows.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

/// The window of a stream and of a connection before anything was said.
pub const DEFAULT: u32 = 64 * 1024;

/// The stream was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset;

/// What may be sent on a connection.
#[derive(Debug)]
pub struct Shared {
    kept: AtomicBool,
    allowance: Mutex<i64>,
    changed: Notify,
}

/// What may be sent on one stream.
#[derive(Debug)]
pub struct Window {
    shared: Arc<Shared>,
    allowance: Mutex<i64>,
    reset: AtomicBool,
}

impl Shared {
    pub fn new() -> Arc<Shared> {
        Arc::new(Shared {
            kept: AtomicBool::new(false),
            allowance: Mutex::new(i64::from(DEFAULT)),
            changed: Notify::new(),
        })
    }

    /// The client keeps windows.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }

    /// The client may be sent `delta` bytes more in all.
    pub fn grow(&self, delta: u32) {
        add(&self.allowance, i64::from(delta));
        self.changed.notify_waiters();
    }
}

impl Window {
    /// The window of a new stream.
    pub fn new(shared: Arc<Shared>, initial: u32) -> Arc<Window> {
        Arc::new(Window {
            shared,
            allowance: Mutex::new(i64::from(initial)),
            reset: AtomicBool::new(false),
        })
    }

    /// For transports without windows.
    pub fn unlimited() -> Arc<Window> {
        Window::new(Shared::new(), DEFAULT)
    }

    /// The client may be sent `delta` bytes more on this stream (fewer, if a
    /// SETTINGS made all windows smaller).
    pub fn grow(&self, delta: i64) {
        add(&self.allowance, delta);
        self.shared.changed.notify_waiters();
    }

    /// The client has reset the stream: whoever waits to write is woken.
    pub fn reset(&self) {
        self.reset.store(true, Ordering::Release);
        self.shared.changed.notify_waiters();
    }

    pub fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Acquire)
    }

    /// Waits until the client resets the stream.
    pub async fn was_reset(&self) {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_reset() {
                return;
            }
            changed.await;
        }
    }

    /// Waits until something may be sent and takes it: 1 to `want` bytes.
    pub async fn take(&self, want: usize) -> Result<usize, Reset> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if self.is_reset() {
                return Err(Reset);
            }
            if let Some(granted) = self.try_take(want) {
                return Ok(granted);
            }
            changed.await;
        }
    }

    fn try_take(&self, want: usize) -> Option<usize> {
        let kept = self.shared.kept.load(Ordering::Acquire);
        let mut own = self.allowance.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = self
            .shared
            .allowance
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut granted = i64::try_from(want).ok()?;
        if kept {
            granted = granted.min(*own).min(*all);
            if granted <= 0 {
                return None;
            }
        }
        *own = own.saturating_sub(granted);
        *all = all.saturating_sub(granted);
        usize::try_from(granted).ok()
    }
}

fn add(allowance: &Mutex<i64>, delta: i64) {
    let mut allowance = allowance.lock().unwrap_or_else(PoisonError::into_inner);
    *allowance = allowance.saturating_add(delta);
}

#[cfg(test)]
mod tests {
    use std::{future::Future, time::Duration};

    use super::*;

    async fn waits(future: impl Future) -> bool {
        tokio::time::timeout(Duration::from_millis(30), future)
            .await
            .is_err()
    }

    #[tokio::test]
    async fn nothing_waits_for_a_client_without_windows() {
        let window = Window::new(Shared::new(), DEFAULT);
        for _ in 0..10 {
            assert_eq!(window.take(100_000).await, Ok(100_000));
        }
    }

    #[tokio::test]
    async fn a_client_with_windows_gets_no_more_than_it_allows() {
        let shared = Shared::new();
        let window = Window::new(shared.clone(), DEFAULT);
        shared.keep();
        assert_eq!(window.take(100_000).await, Ok(65_536));
        assert!(waits(window.take(1)).await);
        window.grow(10);
        assert!(waits(window.take(1)).await, "the connection's window is used up");
        shared.grow(4);
        assert_eq!(window.take(100).await, Ok(4));
    }

    #[tokio::test]
    async fn a_reset_wakes_the_writer() {
        let shared = Shared::new();
        let window = Window::new(shared.clone(), 0);
        shared.keep();
        let taken = tokio::spawn({
            let window = window.clone();
            async move { window.take(1).await }
        });
        tokio::task::yield_now().await;
        window.reset();
        assert_eq!(taken.await.unwrap(), Err(Reset));
    }
}
