//! Detach: unpublish ports, delete the interface, free the addresses, forget the record; each step may have been done before.
//! Runs on the caller's thread; goes on past failures, tells them all, and then keeps the record so that it can be called again.
//! Owns nothing beyond the call. Must never free an address whose interface may still be there.

use std::collections::HashSet;

use keelson_api::SandboxId;
use rustix::io::Errno;

use super::{Network, SetupError, elements};
use crate::{
    attachment::Attachment,
    bridge, fault,
    file::FileError,
    firewall::PortChange,
    forwarding::ForwardingError,
    ipam,
    netlink::{Batch, NetlinkError, link},
    netns::NetnsError,
    nfnetlink::Transaction,
};

/// Why something of an attachment may be left.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// Its host ports.
    #[error("detach sandbox {sandbox}: unpublish its host ports")]
    Ports {
        /// The sandbox.
        sandbox: SandboxId,
        /// Why.
        #[source]
        source: SetupError,
    },
    /// Its interface.
    #[error("detach sandbox {sandbox}")]
    Link {
        /// The sandbox.
        sandbox: SandboxId,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// A lease or its record.
    #[error("detach sandbox {sandbox}")]
    Record {
        /// The sandbox.
        sandbox: SandboxId,
        /// Which file, and why.
        #[source]
        source: FileError,
    },
    /// More than one of these.
    #[error("detach sandbox {sandbox}: {}", list(failures))]
    Several {
        /// The sandbox.
        sandbox: SandboxId,
        /// All that failed.
        failures: Vec<DetachError>,
    },
    /// The bridge or the firewall's table, when the network was closed.
    #[error("close network")]
    Close {
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// Forwarding, when the network was closed.
    #[error("close network")]
    Forwarding {
        /// Why.
        #[source]
        source: ForwardingError,
    },
    /// The host's network could not be looked at, when the network was closed.
    #[error("close network")]
    Look {
        /// Why.
        #[source]
        source: SetupError,
    },
    /// The host's network namespace could not be entered, when the network was closed.
    #[error("close network")]
    Namespace {
        /// Why.
        #[source]
        source: NetnsError,
    },
    /// A test made it fail.
    #[cfg(test)]
    #[error("fail as armed at {point}")]
    Armed {
        /// Where.
        point: &'static str,
    },
}

fn list(failures: &[DetachError]) -> String {
    let texts = failures.iter().map(|failure| {
        let source = std::error::Error::source(failure).map(|source| format!(": {source}")).unwrap_or_default();
        format!("{failure}{source}")
    });
    texts.collect::<Vec<_>>().join("; ")
}

/// What closing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Bridge and table are gone, forwarding is as it was.
    Removed,
    /// This many sandboxes are attached; all was left.
    InUse(usize),
}

macro_rules! fault_point {
    ($point:literal) => {
        if fault::strikes($point) {
            #[cfg(test)]
            return Err(DetachError::Armed { point: $point });
        }
    };
}

impl Network {
    /// Takes away all that a sandbox has. Nothing attached: nothing done. Works when its namespace, the bridge or the firewall's
    /// table are gone.
    ///
    /// # Errors
    /// When something may be left; call again.
    pub fn detach(&self, sandbox: &SandboxId) -> Result<(), DetachError> {
        let _turn = self.turn(sandbox);
        self.take_down(sandbox)
    }

    /// Detaches every sandbox that is not in `live`, and frees leases of sandboxes nobody knows. Returns the detached ones.
    ///
    /// # Errors
    /// The first failure, after all were tried.
    pub fn retain(&self, live: &HashSet<SandboxId>) -> Result<Vec<SandboxId>, DetachError> {
        let gone: HashSet<SandboxId> = {
            let state = self.state();
            let known = state.attachments.keys().chain(state.ipam.owners());
            known.filter(|sandbox| !live.contains(*sandbox)).cloned().collect()
        };
        let mut failure = None;
        let mut detached = Vec::new();
        for sandbox in gone {
            match self.detach(&sandbox) {
                Ok(()) => detached.push(sandbox),
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        detached.sort();
        failure.map_or(Ok(detached), Err)
    }

    /// Removes the bridge and the firewall's table and puts forwarding back, when no sandbox is attached. The choice of networks
    /// stays recorded. The network may be used again afterwards.
    ///
    /// # Errors
    /// When something may be left; call again.
    pub fn close(&self) -> Result<Closed, DetachError> {
        let _one = self.setup.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let attached = self.state().attachments.len();
        if attached != 0 {
            return Ok(Closed::InUse(attached));
        }
        *self.ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        let closed = self.home.inside(|| self.close_inside());
        closed.map_err(|source| DetachError::Namespace { source })?.map(|()| Closed::Removed)
    }

    fn close_inside(&self) -> Result<(), DetachError> {
        let close = |source| DetachError::Close { source };
        let around = self.look().map_err(|source| DetachError::Look { source })?;
        let ours = around.bridge.as_ref().is_some_and(|link| link.alias == Some(bridge::mark(self.dir())));
        if ours {
            let mut batch = Batch::new();
            link::delete(&mut batch, &self.config.bridge);
            self.home.with(|socket| socket.execute(batch)).or_else(absent).map_err(close)?;
        }
        let restored = self.forwarding.restore(&around.links).map_err(|source| DetachError::Forwarding { source });
        let table = self.config.table.as_str();
        let removed = self.home.nftables(|nftables| {
            if nftables.rules(table)?.is_empty() {
                return Ok(());
            }
            let mut transaction = Transaction::on(table);
            transaction.delete_table();
            nftables.commit(transaction).or_else(absent)
        });
        removed.map_err(close)?;
        restored
    }

    /// After a failed attach: its own error is the one to tell, so failures here are logged.
    pub(super) fn give_up(&self, sandbox: &SandboxId) {
        if let Err(error) = self.take_down(sandbox) {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%sandbox, %error, source, "undoing a failed attach is left to detach");
        }
    }

    /// Takes the effects away but keeps leases and record, for making them again.
    pub(super) fn unmake(&self, known: &Attachment) {
        for failure in [self.unpublish(known), self.unlink_of(known)].into_iter().filter_map(Result::err) {
            tracing::debug!(sandbox = %known.sandbox, error = %failure, "taking an old attachment away");
        }
    }

    fn take_down(&self, sandbox: &SandboxId) -> Result<(), DetachError> {
        let known = self.attachment(sandbox);
        let mut failures = Vec::new();
        if let Some(known) = &known {
            failures.extend(self.unpublish(known).err());
            fault_point!("unpublished");
            failures.extend(self.unlink_of(known).err());
            fault_point!("unlinked");
        }
        if failures.is_empty() {
            let dir = self.lease_dir();
            let addresses = self.state().ipam.of(sandbox);
            for address in addresses {
                match ipam::remove(&dir, address) {
                    Ok(()) => self.state().ipam.release(address),
                    Err(source) => failures.push(DetachError::Record { sandbox: sandbox.clone(), source }),
                }
            }
            fault_point!("released");
        }
        if failures.is_empty() && known.is_some() {
            let removed = self.records.remove(sandbox);
            failures.extend(removed.err().map(|source| DetachError::Record { sandbox: sandbox.clone(), source }));
            fault_point!("forgotten");
        }
        if failures.is_empty() {
            let mut state = self.state();
            state.book.release(sandbox);
            state.attachments.remove(sandbox);
            return Ok(());
        }
        match failures.pop() {
            Some(one) if failures.is_empty() => Err(one),
            Some(last) => {
                failures.push(last);
                Err(DetachError::Several { sandbox: sandbox.clone(), failures })
            }
            None => Ok(()),
        }
    }

    fn unpublish(&self, known: &Attachment) -> Result<(), DetachError> {
        let sandbox = &known.sandbox;
        self.state().published.remove(sandbox);
        if known.ports.is_empty() {
            return Ok(());
        }
        let failed = |source| DetachError::Ports { sandbox: sandbox.clone(), source };
        // Not set up by this daemon yet: setting up makes the maps as they must be, without these.
        match self.is_ready() {
            Some(ready) => {
                let gone = elements(&known.ports, known);
                self.publish(&ready, PortChange::Delete(&gone)).map_err(failed)?;
            }
            None => {
                self.set_up().map_err(failed)?;
            }
        }
        self.forget_flows(known);
        Ok(())
    }

    fn unlink_of(&self, known: &Attachment) -> Result<(), DetachError> {
        self.unlink(known).map_err(|source| DetachError::Link { sandbox: known.sandbox.clone(), source })
    }

    /// Deletes the host's end, and with it the pod's.
    pub(super) fn unlink(&self, known: &Attachment) -> Result<(), NetlinkError> {
        let mut batch = Batch::new();
        link::delete(&mut batch, &known.host_interface);
        self.home.with(|socket| socket.execute(batch)).or_else(absent)
    }
}

/// What is not there needs no deleting.
fn absent(error: NetlinkError) -> Result<(), NetlinkError> {
    match error.errno() {
        Some(Errno::NODEV | Errno::NOENT) => Ok(()),
        Some(_) | None => Err(error),
    }
}
