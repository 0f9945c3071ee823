//! The registry client: which endpoints serve an image, how to prove who asks, and how bytes arrive whole.
//! Async, on the daemon's runtime; configuration files and certificates are read on blocking threads.
//! Owns connections, tokens and the cache of `hosts.toml`. Must never show a credential to a host that it was not given for, nor
//! believe a byte whose digest it has not seen computed.

mod auth;
mod blob;
mod body;
mod challenge;
mod credentials;
mod endpoint;
mod error;
mod exchange;
mod hosts;
mod session;
mod tls;

use std::{path::PathBuf, sync::Arc, time::Duration};

use self::{auth::Tokens, hosts::Hosts};
pub(crate) use self::{
    blob::{Ended, Fetch},
    session::{Resolved, Session},
};
pub use self::{
    credentials::{Credentials, InvalidCredentials},
    error::{Attempt, Attempts, Cause, Shown},
    hosts::HostsError,
};
use crate::reference::Reference;

/// How patient the client is. There is no bound on a whole transfer: a large layer over a slow line is honest.
#[derive(Debug, Clone)]
pub struct Timing {
    /// From request to the head of its answer, connecting included.
    pub answer: Duration,
    /// Length of a window in which the floor must be reached. Only time spent waiting for the network counts.
    pub window: Duration,
    /// Least bytes a second: a drip feed holds up a pod as well as silence does.
    pub floor: u64,
    /// Pause before the first retry; doubles.
    pub backoff: Duration,
    /// Longest `Retry-After` that is waited for.
    pub retry_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            window: Duration::from_secs(30),
            floor: 1024,
            backoff: Duration::from_millis(250),
            retry_after: Duration::from_secs(20),
        }
    }
}

/// The client; one per image service.
#[derive(Debug)]
pub(crate) struct Registry {
    hosts: Hosts,
    tokens: Tokens,
    timing: std::sync::RwLock<Timing>,
    /// Bytes of one manifest or index.
    manifest_max: u64,
}

impl Registry {
    pub(crate) fn new(hosts_dir: PathBuf, manifest_max: u64) -> Self {
        let timing = std::sync::RwLock::default();
        Self { hosts: Hosts::new(hosts_dir), tokens: Tokens::default(), timing, manifest_max }
    }

    pub(crate) fn set_timing(&self, timing: Timing) {
        *self.timing.write().unwrap_or_else(std::sync::PoisonError::into_inner) = timing;
    }

    /// Reads the configuration for the reference's registry and makes ready to ask it.
    pub(crate) async fn session(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Session, HostsError> {
        let (registry, host) = (self.clone(), reference.host().to_owned());
        let loaded = tokio::task::spawn_blocking(move || registry.hosts.endpoints(&host)).await;
        let stopping = |_| HostsError { path: PathBuf::new(), line: None, reason: "the daemon is stopping".to_owned() };
        let endpoints = loaded.map_err(stopping)??;
        let timing = self.timing.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        Ok(Session::new(self.clone(), reference.clone(), credentials, (endpoints, timing)))
    }
}
