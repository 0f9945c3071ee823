//! Detach: unpublish ports on the caller's thread, then let the reaper delete the interface, free the addresses and forget the
//! record; each step may have been done before. And close: remove what serves all pods when there is none.
//! Blocks as each call says. Owns nothing beyond the call.
//! Must never let go of a sandbox whose host ports may still lead to its addresses.

use std::{collections::HashSet, sync::PoisonError};

use keelson_api::SandboxId;

use super::{
    Network, Reaper, SetupError, elements,
    reaper::{self, Leaving, absent},
};
use crate::{
    attachment::Attachment,
    bridge,
    file::FileError,
    firewall::PortChange,
    forwarding::ForwardingError,
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
        source: Box<SetupError>,
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
    /// An earlier attempt failed, or the thread that does it ended.
    #[error("detach sandbox {sandbox}: not finished; its record is kept, and it is tried again")]
    Unfinished {
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// The thread that deletes interfaces could not be started.
    #[error("start the thread that deletes interfaces")]
    Thread {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The bridge, a stray port of it or the firewall's table.
    #[error("clean up network")]
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
    /// The host's network could not be looked at.
    #[error("clean up network")]
    Look {
        /// Why.
        #[source]
        source: Box<SetupError>,
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

/// What closing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Bridge and table are gone, forwarding is as it was.
    Removed,
    /// This many sandboxes are attached; all was left.
    InUse(usize),
}

impl Network {
    /// Takes away all that a sandbox has, and waits until it is gone. Nothing attached: nothing done. Works when its namespace,
    /// the bridge or the firewall's table are gone.
    ///
    /// # Errors
    /// When something may be left; it is tried again in the background, and `detach` may be called again.
    #[tracing::instrument(level = "debug", skip_all, fields(%sandbox))]
    pub fn detach(&self, sandbox: &SandboxId) -> Result<(), DetachError> {
        let _turn = self.turn(sandbox);
        self.let_go(sandbox)?;
        self.core.wait_gone(sandbox)
    }

    /// As [`Network::detach`], but returns when the sandbox's host ports are unpublished: its interface is deleted a moment
    /// later, together with those of others (the kernel takes 10 to 40 ms for one, and hardly more for thirty), and only then
    /// are its addresses free. That it is to be done is on disk.
    ///
    /// # Errors
    /// When the host ports may still be published; then it is still attached.
    #[tracing::instrument(level = "debug", skip_all, fields(%sandbox))]
    pub fn detach_soon(&self, sandbox: &SandboxId) -> Result<(), DetachError> {
        let _turn = self.turn(sandbox);
        self.let_go(sandbox)
    }

    /// Waits until everything that was let go is gone.
    ///
    /// # Errors
    /// The first failure, after all were tried.
    pub fn settle(&self) -> Result<(), DetachError> {
        self.core.wait_all_gone()
    }

    /// Detaches every sandbox that is not in `live`, and waits until they are gone; deletes ports of the bridge that no record
    /// knows (of records that were lost). Returns the sandboxes.
    ///
    /// # Errors
    /// The first failure, after all were tried.
    pub fn retain(&self, live: &HashSet<SandboxId>) -> Result<Vec<SandboxId>, DetachError> {
        let mut gone: Vec<SandboxId> =
            self.state().attachments.keys().filter(|sandbox| !live.contains(*sandbox)).cloned().collect();
        gone.sort();
        let begun: Vec<_> = gone.iter().map(|sandbox| self.detach_soon(sandbox)).collect();
        let settled = self.settle();
        begun.into_iter().chain([settled, self.sweep()]).collect::<Result<(), DetachError>>().map(|()| gone)
    }

    fn sweep(&self) -> Result<(), DetachError> {
        let around = self.look().map_err(|source| DetachError::Look { source: Box::new(source) })?;
        let mark = bridge::mark(self.dir());
        let Some(bridge) = around.bridge.filter(|link| link.alias.as_deref() == Some(mark.as_str())) else {
            return Ok(());
        };
        let strays = around.ports.into_iter().filter(|port| {
            port.master == Some(bridge.index)
                && port.kind.as_deref() == Some("veth")
                && Attachment::is_host_name(&port.name)
        });
        for port in strays {
            let state = self.state();
            let mut known = state.attachments.values().chain(state.leaving.values().map(Leaving::attachment));
            if known.any(|known| known.host_interface == port.name) {
                continue;
            }
            drop(state);
            tracing::warn!(interface = port.name, "port of the bridge that no record knows: deleted");
            let mut batch = Batch::new();
            link::delete(&mut batch, &port.name);
            let deleted = self.core.home.with(|socket| socket.execute(batch)).or_else(absent);
            deleted.map_err(|source| DetachError::Close { source })?;
        }
        Ok(())
    }

    /// Removes the bridge and the firewall's table and puts forwarding back, when no sandbox is attached. The choice of networks
    /// stays recorded. The network may be used again afterwards.
    ///
    /// # Errors
    /// When something may be left; call again.
    pub fn close(&self) -> Result<Closed, DetachError> {
        self.settle()?;
        let _one = self.setup.lock().unwrap_or_else(PoisonError::into_inner);
        let attached = {
            let state = self.state();
            state.attachments.len() + state.leaving.len()
        };
        if attached != 0 {
            return Ok(Closed::InUse(attached));
        }
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let closed = self.core.home.inside(|| self.close_inside());
        closed.map_err(|source| DetachError::Namespace { source })?.map(|()| Closed::Removed)
    }

    fn close_inside(&self) -> Result<(), DetachError> {
        let close = |source| DetachError::Close { source };
        let around = self.look().map_err(|source| DetachError::Look { source: Box::new(source) })?;
        let ours = around.bridge.as_ref().is_some_and(|link| link.alias == Some(bridge::mark(self.dir())));
        if ours {
            let mut batch = Batch::new();
            link::delete(&mut batch, &self.config.bridge);
            self.core.home.with(|socket| socket.execute(batch)).or_else(absent).map_err(close)?;
        }
        let restored = self.forwarding.restore(&around.links).map_err(|source| DetachError::Forwarding { source });
        let table = self.config.table.as_str();
        let removed = self.core.home.nftables(|nftables| {
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

    /// After a failed attach: its own error is the one to tell, so failures here are logged. Waits, so that nothing is left when
    /// the attach returns.
    pub(super) fn give_up(&self, sandbox: &SandboxId) {
        let undone = self.let_go(sandbox).and_then(|()| self.core.wait_gone(sandbox));
        // Not recorded yet: leases alone.
        let undone = undone.and_then(|()| self.core.forget(sandbox));
        if let Err(error) = undone {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%sandbox, %error, source, "undoing a failed attach is left to detach");
        }
    }

    /// Takes the effects away but keeps leases and record, for making them again.
    pub(super) fn unmake(&self, known: &Attachment) {
        let unpublished = self.unpublish(known);
        let sandbox = &known.sandbox;
        let unlinked = self.core.unlink(known);
        let unlinked = unlinked.map_err(|source| DetachError::Link { sandbox: sandbox.clone(), source });
        for error in [unpublished, unlinked].into_iter().filter_map(Result::err) {
            tracing::warn!(%sandbox, %error, "taking an old attachment away");
        }
    }

    /// Unpublishes, and hands over to the reaper.
    fn let_go(&self, sandbox: &SandboxId) -> Result<(), DetachError> {
        let Some(known) = self.attachment(sandbox) else { return Ok(()) };
        self.unpublish(&known)?;
        self.core.faults("unpublished")?;
        self.start_reaper()?;
        let mut state = self.state();
        if let Some(attachment) = state.attachments.remove(sandbox) {
            state.leaving.insert(sandbox.clone(), Leaving::new(attachment));
        }
        drop(state);
        self.core.changed.notify_all();
        Ok(())
    }

    fn start_reaper(&self) -> Result<(), DetachError> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state().reaper != Reaper::Runs {
            let started = reaper::start(self.core.clone()).map_err(|source| DetachError::Thread { source })?;
            self.state().reaper = Reaper::Runs;
            *thread = Some(started);
        }
        Ok(())
    }

    fn unpublish(&self, known: &Attachment) -> Result<(), DetachError> {
        let sandbox = &known.sandbox;
        self.state().published.remove(sandbox);
        if known.ports.is_empty() {
            return Ok(());
        }
        let failed = |source| DetachError::Ports { sandbox: sandbox.clone(), source: Box::new(source) };
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
}
