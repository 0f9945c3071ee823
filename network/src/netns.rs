//! A pod's network namespace as this room holds it: a descriptor, and a netlink socket bound to it, so that everything but
//! sysctls is done from outside. `current` runs on a thread that is inside, `open` makes such a thread and ends it.
//! Owns the descriptor and the socket. Must never leave a thread of somebody else in another namespace.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    netlink::{Batch, NetlinkError, Socket, link},
    sysctl,
};

/// Why a namespace cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Its file is not there or is not a network namespace.
    #[error("open network namespace `{}`", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to let a thread in.
    #[error("enter network namespace")]
    Enter {
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A network namespace that pods live in.
#[derive(Debug)]
pub struct Netns {
    file: File,
    socket: Mutex<Socket>,
}

impl Netns {
    /// The calling thread's. Meant for the thread that made the namespace, while nothing else is in it: router advertisements
    /// are switched off for every interface to come (CVE-2020-10749), and addresses are used without waiting for duplicate
    /// detection.
    ///
    /// # Errors
    /// When the namespace's file or a netlink socket cannot be opened, or a setting not be written.
    pub fn current() -> io::Result<Self> {
        sysctl::prepare_pod().map_err(|error| io::Error::new(error.source.kind(), error))?;
        Self::bind(File::open("/proc/thread-self/ns/net")?)
    }

    /// The one pinned at `path`.
    ///
    /// # Errors
    /// When it is not there, or not a network namespace.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let at = |source| NetnsError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(at)?;
        inside(file.as_fd(), Self::current).and_then(|netns| netns.map_err(|source| NetnsError::Enter { source }))
    }

    fn bind(file: File) -> io::Result<Self> {
        Ok(Self { file, socket: Mutex::new(Socket::open(None)?) })
    }

    /// Sets the loopback interface up: all the network that a pod without one has.
    ///
    /// # Errors
    /// Of netlink.
    pub fn loopback_up(&self) -> Result<(), NetlinkError> {
        let mut batch = Batch::new();
        link::set_up(&mut batch, "lo", 1);
        self.with(|socket| socket.execute(batch))
    }

    /// Counters of the pod's interface.
    ///
    /// # Errors
    /// Of netlink.
    pub fn traffic(&self, interface: &str) -> Result<Option<link::Traffic>, NetlinkError> {
        Ok(self.with(|socket| link::get(socket, interface, true))?.and_then(|link| link.traffic))
    }

    /// Lends the namespace's netlink socket.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Socket) -> T) -> T {
        act(&mut self.socket.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs `act` on a thread of its own in the network namespace `netns`; the thread ends with it.
pub(crate) fn inside<T: Send>(netns: BorrowedFd<'_>, act: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let entered = std::thread::scope(|scope| {
        let body = || {
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            Ok(act())
        };
        let thread =
            std::thread::Builder::new().name("netns".into()).stack_size(128 * 1024).spawn_scoped(scope, body)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    entered.map_err(|source: io::Error| NetnsError::Enter { source })
}
