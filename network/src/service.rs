//! The network as the daemon uses it: attach a sandbox, detach it, say what it has, say whether it works, clean up.
//! Called from many threads at once; each call does its kernel work on the caller's thread and under no lock of this room but
//! that of the socket it talks through. What a sandbox has is, in this order, leased, recorded, made; and taken down in reverse,
//! by a thread that takes many at once.
//! Owns all state of the room. Must never have something in the kernel that no record names.

mod attach;
mod detach;
mod make;
mod reaper;
mod setup;

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use keelson_api::SandboxId;

pub use attach::{AttachError, AttachRequest};
pub use detach::{Closed, DetachError};
use reaper::Leaving;
use setup::Ready;
pub use setup::SetupError;

use crate::{
    attachment::{Attachment, Records},
    config::{Config, InvalidConfig},
    fault::Faults,
    file::{FileError, failed},
    forwarding::Forwarding,
    home::Home,
    ipam::{self, Ipam},
    nfnetlink::Element,
    port::{self, Book, PortMapping},
};

/// Why the network cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration is wrong.
    #[error("open network")]
    Config {
        /// What is wrong.
        #[source]
        source: InvalidConfig,
    },
    /// Its folder cannot be used.
    #[error("open network in `{}`", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: FileError,
    },
    /// The kernel gives no netlink sockets.
    #[error("open network: netlink sockets")]
    Sockets {
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why no sandbox can be attached now.
#[derive(Debug, thiserror::Error)]
#[error("network `{bridge}` is not ready")]
pub struct NotReady {
    /// The bridge.
    pub bridge: String,
    /// Why.
    #[source]
    pub source: Box<SetupError>,
}

/// A pod network.
#[derive(Debug)]
pub struct Network {
    config: Config,
    core: Arc<Core>,
    forwarding: Forwarding,
    /// Serialises set-up; holds what it led to.
    setup: Mutex<()>,
    ready: Mutex<Option<Arc<Ready>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the calls and the reaper share.
#[derive(Debug)]
struct Core {
    home: Home,
    records: Records,
    state: Mutex<State>,
    /// A turn ended, something left, or is to leave.
    changed: Condvar,
    faults: Faults,
}

#[derive(Debug)]
struct State {
    attachments: HashMap<SandboxId, Attachment>,
    /// No longer attached, not yet gone.
    leaving: HashMap<SandboxId, Leaving>,
    /// Ports that the firewall's maps must hold, whatever became of them since.
    published: HashMap<SandboxId, Vec<(port::Map, Element)>>,
    book: Book,
    ipam: Ipam,
    busy: HashSet<SandboxId>,
    reaper: Reaper,
    closing: bool,
}

/// The state of the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaper {
    NotStarted,
    Runs,
    Ended,
}

impl Network {
    /// Opens the network whose records are in `config.dir`, in the calling thread's network namespace. Touches nothing in the
    /// kernel: the bridge and the firewall are made when the first sandbox is attached.
    ///
    /// # Errors
    /// For a wrong configuration, or when the folder cannot be used.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        config.check().map_err(|source| OpenError::Config { source })?;
        let home = Home::open().map_err(|source| OpenError::Sockets { source })?;
        let folder = |source| OpenError::Folder { dir: config.dir.clone(), source };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.dir);
        made.map_err(|error| folder(failed("create", &config.dir)(error)))?;
        let (records, found) = Records::load(config.dir.join("attachments")).map_err(folder)?;
        let mut ipam = Ipam::load(config.dir.join("ipam")).map_err(folder)?;
        let mut state_of = HashMap::new();
        let mut published = HashMap::new();
        let mut book = Book::default();
        for attachment in found {
            let ports = &attachment.ports;
            if let Err(error) = book.claim(&attachment.sandbox, ports) {
                tracing::warn!(sandbox = %attachment.sandbox, %error, "recorded host ports overlap");
            }
            published.insert(attachment.sandbox.clone(), elements(ports, &attachment));
            state_of.insert(attachment.sandbox.clone(), attachment);
        }
        // A lease is made before the record and removed before it: without a record nothing uses the address.
        let stray: HashSet<SandboxId> = ipam.owners().filter(|owner| !state_of.contains_key(*owner)).cloned().collect();
        for owner in stray {
            for address in ipam.of(&owner) {
                ipam::remove(ipam.dir(), address).map_err(folder)?;
                ipam.release(address);
                tracing::info!(sandbox = %owner, %address, "address of an attachment that was never made is free again");
            }
        }
        let forwarding = Forwarding::new(&config.dir, home.inode());
        let state = Mutex::new(State {
            attachments: state_of,
            leaving: HashMap::new(),
            published,
            book,
            ipam,
            busy: HashSet::new(),
            reaper: Reaper::NotStarted,
            closing: false,
        });
        let core = Core { home, records, state, changed: Condvar::new(), faults: Faults::default() };
        Ok(Self {
            config,
            core: Arc::new(core),
            forwarding,
            setup: Mutex::new(()),
            ready: Mutex::new(None),
            thread: Mutex::new(None),
        })
    }

    /// What a sandbox has, from memory.
    #[must_use]
    pub fn attachment(&self, sandbox: &SandboxId) -> Option<Attachment> {
        self.state().attachments.get(sandbox).cloned()
    }

    /// Every attachment, from memory.
    #[must_use]
    pub fn attachments(&self) -> Vec<Attachment> {
        self.state().attachments.values().cloned().collect()
    }

    /// Whether sandboxes can be attached. Looks at the kernel and mends what somebody took away: the bridge, its addresses, its
    /// ports, the firewall's table, forwarding. Before the first sandbox it only looks whether all that could be made.
    ///
    /// # Errors
    /// With the reason, told as what failed on what.
    pub fn status(&self) -> Result<(), NotReady> {
        let unused = self.state().attachments.is_empty() && self.is_ready().is_none();
        let outcome = if unused { self.rehearse() } else { self.set_up().map(|_| ()) };
        outcome.map_err(|source| NotReady { bridge: self.config.bridge.clone(), source: Box::new(source) })
    }

    /// Traffic of every interface of the host by name: one read for all pods, and never behind the kernel's network lock.
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    pub fn host_traffic(&self) -> io::Result<HashMap<String, crate::Traffic>> {
        self.core.home.counters().read()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.core.state()
    }

    /// Waits until no other call works on this sandbox.
    fn turn<'a>(&'a self, sandbox: &'a SandboxId) -> Turn<'a> {
        let mut state = self.state();
        while !state.busy.insert(sandbox.clone()) {
            state = self.core.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { core: &self.core, sandbox }
    }

    fn lease_dir(&self) -> PathBuf {
        self.state().ipam.dir().to_owned()
    }

    fn dir(&self) -> &Path {
        &self.config.dir
    }
}

/// What the firewall's maps must hold for these ports.
fn elements(ports: &[PortMapping], attachment: &Attachment) -> Vec<(port::Map, Element)> {
    ports.iter().flat_map(|mapping| port::elements(mapping, &attachment.addresses)).collect()
}

impl Core {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Network {
    /// Finishes what leaves; an attempt that failed is left to the next daemon, by its record.
    fn drop(&mut self) {
        self.state().closing = true;
        self.core.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that takes attachments away panicked");
        }
    }
}

/// The right to work on one sandbox.
struct Turn<'a> {
    core: &'a Core,
    sandbox: &'a SandboxId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.core.state().busy.remove(self.sandbox);
        self.core.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
