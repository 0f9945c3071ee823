//! Who waits for which reply of a shim: one answer for a request, two for a session, whose streams come with the first.
//! Used by the callers' tasks and by the one that reads; the lock is held for map look-ups alone.
//! Owns the waiters, never the shim. Must never keep a descriptor that nobody waits for.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use keelson_api::shim::Outcome;
use tokio::sync::{oneshot, watch};

/// A session's first answer: the streams' description with its descriptors, or why there is no session.
pub(crate) type Opened = (Outcome, Vec<OwnedFd>);
/// A session's last answer, when it has come.
pub(crate) type Ended = watch::Receiver<Option<Outcome>>;

/// Who waits for one number.
pub(super) enum Waiter {
    /// For its only answer.
    Answer(oneshot::Sender<Outcome>),
    /// For a session's streams; later for its end.
    Opening(oneshot::Sender<Opened>, watch::Sender<Option<Outcome>>),
    /// For a session's end.
    Open(watch::Sender<Option<Outcome>>),
}

/// See the module; `None`: the connection is over.
pub(super) struct Pending(Mutex<Option<HashMap<u64, Waiter>>>);

impl Pending {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Some(HashMap::new())))
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, Waiter>>> {
        // Nothing that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits from now on; false when there will be no answer.
    pub(super) fn insert(&self, seq: u64, waiter: Waiter) -> bool {
        self.lock().as_mut().map(|waiting| waiting.insert(seq, waiter)).is_some()
    }

    /// Nobody waits any more.
    pub(super) fn forget(&self, seq: u64) {
        if let Some(waiting) = self.lock().as_mut() {
            waiting.remove(&seq);
        }
    }

    /// Whether the session still waits for its end.
    pub(super) fn waits(&self, seq: u64) -> bool {
        self.lock().as_ref().is_some_and(|waiting| waiting.contains_key(&seq))
    }

    /// The shim is gone: everybody who waits learns that there will be no answer.
    pub(super) fn close(&self) {
        self.lock().take();
    }

    /// A reply has come, with the descriptors that belong to it. Who asked may have gone.
    pub(super) fn answer(&self, seq: u64, outcome: Outcome, fds: Vec<OwnedFd>) {
        let mut waiting = self.lock();
        let Some(waiting) = waiting.as_mut() else { return };
        match waiting.remove(&seq) {
            None => {}
            Some(Waiter::Answer(sender)) => drop(sender.send(outcome)),
            Some(Waiter::Opening(first, end)) => {
                if matches!(outcome, Outcome::Streams(_)) {
                    waiting.insert(seq, Waiter::Open(end));
                }
                drop(first.send((outcome, fds)));
            }
            Some(Waiter::Open(end)) => drop(end.send_replace(Some(outcome))),
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().as_ref().is_some_and(HashMap::is_empty)
    }
}
