//! Streaming sessions (exec, attach, port-forward): the URLs that RPCs hand out, and the loopback server behind them.
//! Runs on the daemon's workers: one task for the listener, one per connection, which becomes the session's.
//! Owns the sessions that wait for their client, and those that run.
//! Must never keep a container's output: a slow client holds up its process's pipe, not this daemon's memory.
//!
//! A session's layers, from the wire inwards: `server` (connections, TLS, bounds), `route` (HTTP, upgrade), `spdy`, `websocket` or
//! `tunnel` (framing), `channel` (named streams), `remote` or `forward` (what is carried), `node` (the engine's side).

pub mod channel;
mod engine;
mod forward;
mod life;
pub mod node;
mod remote;
mod route;
pub mod server;
mod session;
pub mod spdy;
pub mod tokens;
pub mod tunnel;
pub mod upgrade;
pub mod websocket;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use keelson_api::{ContainerId, SandboxId};

use node::Streams;
use tokens::{Tokens, TooMany};

/// How the server is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamingConfig {
    /// Where it listens; port 0 is any free one.
    pub address: SocketAddr,
    /// Certificate chain and private key, PEM files; without them plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// A session in which nothing moves for so long ends.
    pub idle_timeout: Duration,
    /// A client that has come must open its streams within this.
    pub creation_timeout: Duration,
}

/// What a session is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A program in a running container.
    Exec {
        /// Where.
        container: ContainerId,
        /// The program and its arguments; never empty.
        args: Vec<String>,
        /// Its streams.
        streams: Streams,
    },
    /// The first process of a running container.
    Attach {
        /// Which.
        container: ContainerId,
        /// Its streams.
        streams: Streams,
    },
    /// Ports of a pod.
    PortForward {
        /// Which.
        sandbox: SandboxId,
        /// For clients that do not name a port with each stream.
        ports: Vec<u16>,
    },
}

impl Ask {
    /// The first part of the URL's path.
    #[must_use]
    pub fn path(&self) -> &'static str {
        match self {
            Ask::Exec { .. } => "exec",
            Ask::Attach { .. } => "attach",
            Ask::PortForward { .. } => "portforward",
        }
    }
}

/// Numbers for whoever shows them.
#[derive(Debug, Default)]
pub struct Counts {
    running: AtomicU64,
    started: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    /// Sessions that run now.
    #[must_use]
    pub fn running(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }

    /// Sessions that were begun since the daemon started.
    #[must_use]
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Requests that were answered with an error: unknown token, no common protocol, too many sessions.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// A handle on the server for those who hand out its URLs; clones are the same server.
#[derive(Clone)]
pub struct Streaming {
    base: Arc<str>,
    tokens: Arc<Tokens<Ask>>,
    counts: Arc<Counts>,
}

/// Why no URL can be handed out.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// As many wait as may.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The kernel gives no random bytes.
    #[error("make streaming token")]
    Random(#[from] std::io::Error),
}

impl Streaming {
    /// The URL at which a client finds this session, once, within a minute.
    ///
    /// # Errors
    /// See [`UrlError`].
    pub fn url(&self, ask: Ask) -> Result<String, UrlError> {
        let mut random = [0; 12];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(std::io::Error::from)?;
        let path = ask.path();
        let token = self.tokens.keep(random, ask)?;
        Ok(format!("{}/{path}/{token}", self.base))
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}
