//! The host's side: its network namespace, a few netlink sockets bound to it, its nf_tables.
//! Any thread may borrow; a small fixed number of sockets is also the cap on how many requests press on the kernel's one network
//! lock. Owns the descriptors. Must never act on another namespace, whichever thread calls.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::MetadataExt,
    },
    sync::{
        Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    counters::HostCounters,
    netlink::Socket,
    netns::{self, NetnsError},
    nfnetlink::Nftables,
};

/// Requests beyond these wait here rather than in the kernel.
const SOCKETS: usize = 4;

/// The network namespace in which the network was opened.
#[derive(Debug)]
pub(crate) struct Home {
    namespace: File,
    inode: u64,
    sockets: [Mutex<Socket>; SOCKETS],
    turn: AtomicUsize,
    nftables: Mutex<Nftables>,
    counters: HostCounters,
}

impl Home {
    /// The calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let namespace = File::open("/proc/thread-self/ns/net")?;
        let inode = namespace.metadata()?.ino();
        let socket = || Socket::open(None).map(Mutex::new);
        let sockets = [socket()?, socket()?, socket()?, socket()?];
        let nftables = Mutex::new(Nftables::open()?);
        Ok(Self { namespace, inode, sockets, turn: AtomicUsize::new(0), nftables, counters: HostCounters::open()? })
    }

    /// The namespace's number, the same for every process that looks at it.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Lends a netlink socket of the host; waits while all are lent.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Socket) -> T) -> T {
        act(&mut self.take())
    }

    /// Lends the host's nf_tables; one transaction at a time.
    pub(crate) fn nftables<T>(&self, act: impl FnOnce(&mut Nftables) -> T) -> T {
        act(&mut self.nftables.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The host's interfaces as they count traffic.
    pub(crate) fn counters(&self) -> &HostCounters {
        &self.counters
    }

    /// Runs `act` where `/proc/sys/net` is the host's: here, or on a thread of its own when the caller is elsewhere.
    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let here = std::fs::metadata("/proc/thread-self/ns/net").map_err(|source| NetnsError::Enter { source })?;
        if here.ino() == self.inode { Ok(act()) } else { netns::inside(self.namespace.as_fd(), act) }
    }

    /// Takes the lock that keeps networks of other daemons in this namespace from choosing at the same time; it is held until
    /// the returned file is dropped.
    pub(crate) fn exclusive(&self) -> io::Result<File> {
        let file = File::open(format!("/proc/self/fd/{}", self.namespace.as_raw_fd()))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive))?;
        Ok(file)
    }

    fn take(&self) -> MutexGuard<'_, Socket> {
        for socket in &self.sockets {
            match socket.try_lock() {
                Ok(guard) => return guard,
                Err(TryLockError::Poisoned(guard)) => return guard.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        let [one, two, three, four] = &self.sockets;
        let wait = match self.turn.fetch_add(1, Ordering::Relaxed) % SOCKETS {
            0 => one,
            1 => two,
            2 => three,
            _ => four,
        };
        wait.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
