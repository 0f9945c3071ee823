//! The end of attachments: interfaces are deleted in groups, because the kernel takes as long for many as for one; then their
//! addresses are freed and their records forgotten.
//! One thread, made at the first detach, that ends with the network after finishing its queue. What it has still to do is on disk
//! as records, so that a next daemon finds it. Owns the queue.
//! Must never free an address whose interface may still be there.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use keelson_api::SandboxId;
use rustix::io::Errno;

use super::{Core, DetachError};
use crate::{
    attachment::Attachment,
    ipam,
    netlink::{Batch, NetlinkError, link},
};

/// Interfaces deleted at once: the more, the less each costs, and the longer others wait for the kernel's network lock.
const AT_ONCE: usize = 32;
/// How long the first waits for company when nobody waits for it.
const GATHER: Duration = Duration::from_millis(30);
/// Between attempts at what failed.
const RETRY: Duration = Duration::from_secs(1);
/// `KEEL` in a group's number, and this process in its lower half.
const GROUP: u32 = 0x4b45_0000;

/// An attachment on its way out.
#[derive(Debug)]
pub(super) struct Leaving {
    attachment: Attachment,
    since: Instant,
    /// Somebody waits: no gathering.
    urgent: bool,
    /// When an attempt failed, the next is due then.
    retry: Option<Instant>,
    failures: u32,
    error: Option<DetachError>,
}

impl Leaving {
    pub(super) fn new(attachment: Attachment) -> Self {
        Self { attachment, since: Instant::now(), urgent: false, retry: None, failures: 0, error: None }
    }

    pub(super) fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// When it may be taken; `full` and `hurry`: without waiting for company.
    fn due(&self, full: bool, hurry: bool) -> Instant {
        match self.retry {
            Some(retry) if !self.urgent => retry,
            Some(_) | None if full || hurry || self.urgent => self.since,
            Some(_) | None => self.since + GATHER,
        }
    }
}

/// Starts the thread.
pub(super) fn start(core: Arc<Core>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("network-reaper".into()).stack_size(256 * 1024).spawn(move || {
        let gone = Gone(&core);
        while let Some(batch) = next(gone.0) {
            gone.0.reap(&batch);
        }
    })
}

/// Tells those who wait when the thread is no more, however it ended.
struct Gone<'a>(&'a Core);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.state().reaper = super::Reaper::Ended;
        self.0.changed.notify_all();
    }
}

/// Waits for work; `None`: the network is closed and nothing is left.
fn next(core: &Core) -> Option<Vec<Attachment>> {
    let mut state = core.state();
    loop {
        let closing = state.closing;
        if closing && state.leaving.values().all(|leaving| leaving.failures > 0) {
            return None;
        }
        let now = Instant::now();
        let full = state.leaving.len() >= AT_ONCE;
        let hurry = closing || state.leaving.values().any(|leaving| leaving.urgent);
        let mut due: Vec<(Instant, SandboxId)> =
            state.leaving.iter().map(|(id, leaving)| (leaving.due(full, hurry), id.clone())).collect();
        due.sort();
        match due.first() {
            Some((first, _)) if *first <= now => {
                due.retain(|(at, _)| *at <= now + GATHER);
                due.truncate(AT_ONCE);
                return Some(
                    due.iter().filter_map(|(_, id)| Some(state.leaving.get(id)?.attachment.clone())).collect(),
                );
            }
            Some((first, _)) => {
                let wait = first.saturating_duration_since(now);
                state = core.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
            }
            None => state = core.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl Core {
    fn reap(&self, batch: &[Attachment]) {
        let mut failed = self.delete(batch);
        for attachment in batch {
            let sandbox = &attachment.sandbox;
            let at = failed.iter().position(|(other, _)| other == sandbox);
            let outcome = match at {
                Some(at) => Err(failed.swap_remove(at).1),
                None => self.forget(sandbox),
            };
            let mut state = self.state();
            match outcome {
                Ok(()) => {
                    state.leaving.remove(sandbox);
                }
                Err(error) => {
                    tracing::warn!(%sandbox, %error, source = ?std::error::Error::source(&error), "detaching is tried again");
                    if let Some(leaving) = state.leaving.get_mut(sandbox) {
                        leaving.retry = Some(Instant::now() + RETRY);
                        leaving.urgent = false;
                        leaving.failures += 1;
                        leaving.error = Some(error);
                    }
                }
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Deletes the interfaces; returns those that may still be there.
    fn delete(&self, batch: &[Attachment]) -> Vec<(SandboxId, DetachError)> {
        let mut requests = Batch::new();
        let group = GROUP | (std::process::id() & 0xffff);
        match batch {
            [one] => link::delete(&mut requests, &one.host_interface),
            many => {
                many.iter().for_each(|attachment| link::set_group(&mut requests, &attachment.host_interface, group));
                link::delete_group(&mut requests, group);
            }
        }
        let refused = match self.home.with(|socket| socket.execute_each(requests)) {
            Ok(refused) => refused,
            Err(error) => vec![(batch.len(), error)],
        };
        let mut failed = Vec::new();
        for (index, error) in refused {
            if is_absent(&error) {
                continue;
            }
            match batch.get(index) {
                Some(attachment) => failed.push((attachment.sandbox.clone(), link_failed(&attachment.sandbox, error))),
                // The deletion of all: each is asked for alone.
                None => return batch.iter().filter_map(|attachment| self.delete_one(attachment)).collect(),
            }
        }
        failed
    }

    fn delete_one(&self, attachment: &Attachment) -> Option<(SandboxId, DetachError)> {
        let error = self.unlink(attachment).err()?;
        Some((attachment.sandbox.clone(), link_failed(&attachment.sandbox, error)))
    }

    /// Deletes the host's end of a pair, and with it the pod's.
    pub(super) fn unlink(&self, attachment: &Attachment) -> Result<(), NetlinkError> {
        let mut batch = Batch::new();
        link::delete(&mut batch, &attachment.host_interface);
        self.home.with(|socket| socket.execute(batch)).or_else(absent)
    }

    /// Frees the addresses and removes the record, in this order: a lease without a record is freed at the next start.
    pub(super) fn forget(&self, sandbox: &SandboxId) -> Result<(), DetachError> {
        let failed = |source| DetachError::Record { sandbox: sandbox.clone(), source };
        self.faults("unlinked")?;
        let (dir, addresses) = {
            let state = self.state();
            (state.ipam.dir().to_owned(), state.ipam.of(sandbox))
        };
        for address in addresses {
            ipam::remove(&dir, address).map_err(failed)?;
            self.state().ipam.release(address);
        }
        self.faults("released")?;
        self.records.remove(sandbox).map_err(failed)?;
        self.faults("forgotten")?;
        self.state().book.release(sandbox);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn faults(&self, point: &'static str) -> Result<(), DetachError> {
        if self.faults.strike(point) { Err(DetachError::Armed { point }) } else { Ok(()) }
    }

    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, reason = "the test build fails here")]
    pub(super) fn faults(&self, point: &'static str) -> Result<(), DetachError> {
        self.faults.strike(point);
        Ok(())
    }

    /// Waits until a sandbox that leaves has left.
    pub(super) fn wait_gone(&self, sandbox: &SandboxId) -> Result<(), DetachError> {
        let mut state = self.state();
        let failures = state.leaving.get(sandbox).map_or(0, |leaving| leaving.failures);
        loop {
            let ended = state.reaper == super::Reaper::Ended;
            match state.leaving.get_mut(sandbox) {
                None => return Ok(()),
                Some(leaving) if leaving.failures > failures => {
                    return Err(leaving.error.take().unwrap_or(DetachError::Unfinished { sandbox: sandbox.clone() }));
                }
                Some(_) if ended => return Err(DetachError::Unfinished { sandbox: sandbox.clone() }),
                Some(leaving) if !leaving.urgent => {
                    leaving.urgent = true;
                    self.changed.notify_all();
                }
                Some(_) => {}
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all that leave now have left; the first failure is told after all were tried.
    pub(super) fn wait_all_gone(&self) -> Result<(), DetachError> {
        let leaving: HashSet<SandboxId> = {
            let mut state = self.state();
            state.leaving.values_mut().for_each(|leaving| leaving.urgent = true);
            state.leaving.keys().cloned().collect()
        };
        self.changed.notify_all();
        let outcomes: Vec<_> = leaving.iter().map(|sandbox| self.wait_gone(sandbox)).collect();
        outcomes.into_iter().collect()
    }
}

fn link_failed(sandbox: &SandboxId, source: NetlinkError) -> DetachError {
    DetachError::Link { sandbox: sandbox.clone(), source }
}

/// What is not there needs no deleting.
pub(super) fn absent(error: NetlinkError) -> Result<(), NetlinkError> {
    if is_absent(&error) { Ok(()) } else { Err(error) }
}

fn is_absent(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(Errno::NODEV | Errno::NOENT))
}
