//! How much may be sent: the windows that the client gives for each stream and for the whole connection (draft 3.1, section 2.6.8).
//! A short lock over a few numbers, used by every stream's sender and by the connection's reader. Owns the counts.
//! Must never hold up a client that does not take part: the usual ones (kubelet, kubectl, crictl) send no window updates at all,
//! so windows bind only once the client has sent one, or a setting of their size.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// What every window begins with.
const INITIAL: i64 = 64 * 1024;
/// A window may not grow beyond this.
const LARGEST: i64 = 0x7fff_ffff;

/// The sending windows of one connection.
#[derive(Debug)]
pub(super) struct Windows {
    counts: Mutex<Counts>,
    changed: Notify,
}

#[derive(Debug)]
struct Counts {
    /// The client takes part in flow control.
    bind: bool,
    initial: i64,
    connection: i64,
    streams: HashMap<u32, i64>,
}

/// A window was grown beyond what the protocol allows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl Default for Windows {
    fn default() -> Self {
        let counts = Counts { bind: false, initial: INITIAL, connection: INITIAL, streams: HashMap::new() };
        Self { counts: Mutex::new(counts), changed: Notify::new() }
    }
}

impl Windows {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, stream: u32) {
        let mut counts = self.lock();
        let initial = counts.initial;
        counts.streams.insert(stream, initial);
    }

    /// Ends who waits to send on it.
    pub(super) fn close(&self, stream: u32) {
        self.lock().streams.remove(&stream);
        self.changed.notify_waiters();
    }

    /// Ends everybody who waits: the connection is over.
    pub(super) fn close_all(&self) {
        self.lock().streams.clear();
        self.changed.notify_waiters();
    }

    /// Streams with a window.
    pub(super) fn len(&self) -> usize {
        self.lock().streams.len()
    }

    /// How many of `want` bytes may be sent on the stream now; waits until that is at least one. 0: the stream is closed.
    pub(super) async fn take(&self, stream: u32, want: usize) -> usize {
        let want = i64::try_from(want).unwrap_or(LARGEST);
        loop {
            let changed = self.changed.notified();
            {
                let mut counts = self.lock();
                let Some(left) = counts.streams.get(&stream).copied() else { return 0 };
                let allowed = if counts.bind { want.min(left).min(counts.connection) } else { want };
                if allowed > 0 {
                    counts.connection -= allowed;
                    counts.streams.insert(stream, left - allowed);
                    return usize::try_from(allowed).unwrap_or_default();
                }
            }
            changed.await;
        }
    }

    /// The client's setting of the window that streams begin with; those that are open follow.
    pub(super) fn set_initial(&self, size: u32) {
        let mut counts = self.lock();
        let size = i64::from(size);
        let difference = size - counts.initial;
        counts.bind = true;
        counts.initial = size;
        for left in counts.streams.values_mut() {
            *left += difference;
        }
        drop(counts);
        self.changed.notify_waiters();
    }

    /// The client takes more.
    pub(super) fn grow(&self, stream: u32, more: u32) -> Result<(), Overflow> {
        let mut counts = self.lock();
        counts.bind = true;
        let left = if stream == 0 { Some(&mut counts.connection) } else { counts.streams.get_mut(&stream) };
        // One for a stream that has just ended is everyday.
        if let Some(left) = left {
            // Before windows bind, more was sent than they allow: they may be far below zero, never above.
            *left += i64::from(more);
            if *left > LARGEST {
                return Err(Overflow);
            }
        }
        drop(counts);
        self.changed.notify_waiters();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn windows_bind_only_who_takes_part() {
        let windows = Windows::default();
        windows.open(1);
        assert_eq!(windows.take(1, 1 << 20).await, 1 << 20);
        // What was sent before counts: the client has seen a megabyte and allows half of it.
        windows.grow(1, 1 << 19).unwrap();
        windows.grow(0, 1 << 20).unwrap();
        assert_eq!(futures_util::FutureExt::now_or_never(windows.take(1, 1)), None);
        windows.grow(1, 1 << 19).unwrap();
        assert_eq!(windows.take(1, 1 << 20).await, 64 * 1024);
    }

    #[tokio::test]
    async fn a_setting_moves_open_streams_and_a_sender_is_woken() {
        let windows = Arc::new(Windows::default());
        windows.open(1);
        windows.set_initial(10);
        assert_eq!(windows.take(1, 100).await, 10);
        let waiting = tokio::spawn({
            let windows = Arc::clone(&windows);
            async move { windows.take(1, 100).await }
        });
        tokio::task::yield_now().await;
        windows.grow(1, 7).unwrap();
        assert_eq!(waiting.await.unwrap(), 7);
        assert_eq!(windows.grow(1, 0x7fff_ffff).and_then(|()| windows.grow(1, 1)), Err(Overflow));
    }

    #[tokio::test]
    async fn who_waits_on_a_closed_stream_is_told() {
        let windows = Arc::new(Windows::default());
        windows.open(1);
        windows.set_initial(0);
        let waiting = tokio::spawn({
            let windows = Arc::clone(&windows);
            async move { windows.take(1, 100).await }
        });
        tokio::task::yield_now().await;
        windows.close(1);
        assert_eq!(waiting.await.unwrap(), 0);
    }
}
