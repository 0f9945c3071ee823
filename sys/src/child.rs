//! A child process that becomes a container's: its whole way from clone to exec as a list of prepared operations.
//! The list is built by the parent, which may allocate; the child walks it with raw system calls alone and tells
//! `(operation, part, errno)` when one fails. Runs in the shim and in its children.
//! Owns the descriptors inside the operations, in the parent; the child's copies are all close-on-exec.
//! Must never allocate, lock, log or panic in the child.

mod describe;
mod mount;
mod op;
mod resolve;
mod run;
mod terminal;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{self, Errno};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};

pub use op::{
    Attributes, Capabilities, Device, Exec, Identity, Mount, MountSource, Node, Op, Parameter, Propagation, Shared,
    Strings, Terminal,
};

use crate::namespace::NamespaceKinds;
use crate::raw;

/// Where a child gave up.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Index of the operation in the plan.
    pub op: u32,
    /// Which part of it: an index or a step, see [`Op::describe`].
    pub part: u32,
    /// Why.
    pub errno: i32,
}

/// What a child tells its parent.
#[derive(Debug)]
pub enum Message {
    /// It is at [`Op::Sync`] and waits for [`Channel::go_on`].
    Sync,
    /// It is at [`Op::Gate`] and waits for [`Channel::go_on`].
    Ready,
    /// The master of its terminal.
    Terminal(OwnedFd),
    /// It failed and has ended; the words are empty but for a starter at [`Op::GateListener`].
    Failed(Report, Vec<u8>),
    /// It has exec'd, or ended without a word.
    End,
}

const SYNC: u8 = b's';
const READY: u8 = b'r';
const TERMINAL: u8 = b't';
const GO: u8 = b'g';
/// Longest word of a child, bytes.
const MESSAGE_MAX: usize = 512;

/// How to clone.
#[derive(Debug, Clone, Copy, Default)]
pub struct CloneOptions<'a> {
    /// New namespaces of the child.
    pub namespaces: NamespaceKinds,
    /// A cgroup v2 directory to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// A user namespace to enter before the clone, so that the new namespaces belong to it.
    pub user: Option<BorrowedFd<'a>>,
}

/// A child that is under way, or has exec'd; nobody has reaped it.
#[derive(Debug)]
pub struct Child {
    /// In the caller's pid namespace.
    pub pid: i32,
    /// Close-on-exec.
    pub pidfd: OwnedFd,
}

impl Child {
    /// Kills and reaps it. That the channel is dropped would not do: a child that another thread has forked meanwhile has a copy of
    /// it, until it execs or closes what it does not need. Neither call fails on a child that nobody has reaped.
    pub fn end(self) {
        let _ = crate::pidfd::send_signal(&self.pidfd, libc::SIGKILL);
        let _ = crate::pidfd::wait(&self.pidfd);
    }
}

/// The parent's end of the talk with a child.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// A channel and the child's end of it, which [`fork`] or [`run`] takes.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, childs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel(ours), childs))
    }

    /// Connects to a child that waits at [`Op::GateListener`]: `socket` is a connected seqpacket socket.
    pub fn from_socket(socket: OwnedFd) -> Channel {
        Channel(socket)
    }

    /// Waits for the child's next word.
    pub fn receive(&self) -> io::Result<Message> {
        let mut bytes = [0_u8; MESSAGE_MAX];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let length = loop {
            let mut buffers = [std::io::IoSliceMut::new(&mut bytes)];
            match rustix::net::recvmsg(&self.0, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => break message.bytes,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => break 0,
                Err(errno) => return Err(errno),
            }
        };
        match (length, bytes) {
            (0, _) => Ok(Message::End),
            (1, [SYNC, ..]) => Ok(Message::Sync),
            (1, [READY, ..]) => Ok(Message::Ready),
            (1, [TERMINAL, ..]) => {
                let fd = control.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                    _ => None,
                });
                fd.map(Message::Terminal).ok_or(Errno::PROTO)
            }
            (12.., bytes) => {
                let [op, part, errno] = [0, 4, 8].map(|at| word(&bytes, at));
                let words = bytes.get(12..length).unwrap_or_default().to_vec();
                Ok(Message::Failed(Report { op, part, errno: errno.cast_signed() }, words))
            }
            _ => Err(Errno::PROTO),
        }
    }

    /// Lets a waiting child go on.
    pub fn go_on(&self) -> io::Result<()> {
        rustix::net::send(&self.0, &[GO], rustix::net::SendFlags::NOSIGNAL).map(drop)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn word(bytes: &[u8; MESSAGE_MAX], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

struct Start<'a> {
    ops: &'a [Op],
    socket: i32,
    /// The parent's end, which a copied descriptor table holds too: open here it would hide the parent's death.
    others: i32,
    report: *mut Report,
    /// A user namespace to enter, then clone again with these arguments.
    user: i32,
    inner: Option<&'a raw::CloneArgs>,
    inner_result: io::Result<i32>,
}

/// Clones a child that copies this process's memory and walks `ops`; what it has to say comes through the channel, whose other
/// end it is given. Returns as soon as it is born.
pub fn fork(ops: &[Op], (channel, socket): (&Channel, OwnedFd), options: CloneOptions<'_>) -> io::Result<Child> {
    let mut start = Start {
        ops,
        socket: socket.as_raw_fd(),
        others: channel.0.as_raw_fd(),
        report: std::ptr::null_mut(),
        user: -1,
        inner: None,
        inner_result: Err(Errno::IO),
    };
    let mut pidfd = -1;
    let mut arguments = arguments(&options, &mut pidfd);
    let mask = raw::block_all_signals();
    let pid = match options.user {
        None => {
            // SAFETY: without CLONE_VM the child walks copies; `run::entry` makes raw system calls only and never returns.
            unsafe { raw::clone3_call(&arguments, run::entry, (&raw mut start).cast()) }
        }
        Some(user) => {
            // A process between: it enters the user namespace and clones a sibling of itself there, into our descriptor table.
            arguments.flags |= raw::CLONE_PARENT;
            arguments.exit_signal = 0;
            start.user = user.as_raw_fd();
            start.inner = Some(&arguments);
            clone_through(&mut start)
        }
    };
    raw::restore_signals(mask);
    let pid = pid?;
    // SAFETY: the clone succeeded, so the kernel stored a new descriptor that nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if options.user.is_none() {
        return Ok(Child { pid, pidfd });
    }
    // The process between may be in a pid namespace that its parent only chose for its children: what it was told is a number there.
    match crate::pidfd::number(&pidfd) {
        Ok(pid) => Ok(Child { pid, pidfd }),
        Err(errno) => {
            Child { pid, pidfd }.end();
            Err(errno)
        }
    }
}

fn clone_through(start: &mut Start<'_>) -> io::Result<i32> {
    let mut pidfd = -1;
    let outer = raw::CloneArgs {
        flags: raw::CLONE_VM | raw::CLONE_VFORK | raw::CLONE_FILES | raw::CLONE_PIDFD,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..raw::CloneArgs::default()
    };
    // SAFETY: CLONE_VFORK suspends this thread until the process between has ended; `start` lives in the caller.
    unsafe { raw::clone3_call(&outer, run::enter_user_namespace, std::ptr::from_mut(start).cast()) }?;
    // SAFETY: the clone succeeded, so the kernel stored a new descriptor that nobody else knows.
    let between = unsafe { OwnedFd::from_raw_fd(pidfd) };
    crate::pidfd::wait(&between)?;
    start.inner_result
}

/// Runs `ops` in a child up to a successful exec, sharing memory with it meanwhile (vfork): the cheapest way, for plans without
/// [`Op::Gate`] and [`Op::Sync`]. `socket` is needed only for [`Op::Terminal`]. The outer error is the clone's.
pub fn run(ops: &[Op], socket: Option<OwnedFd>, options: CloneOptions<'_>) -> io::Result<Result<Child, Report>> {
    let mut report = Report { op: 0, part: 0, errno: 0 };
    let mut start = Start {
        ops,
        socket: socket.as_ref().map_or(-1, AsRawFd::as_raw_fd),
        others: -1,
        report: &raw mut report,
        user: -1,
        inner: None,
        inner_result: Err(Errno::IO),
    };
    let mut pidfd = -1;
    let mut arguments = arguments(&options, &mut pidfd);
    arguments.flags |= raw::CLONE_VM | raw::CLONE_VFORK;
    let mask = raw::block_all_signals();
    // SAFETY: CLONE_VFORK suspends this thread until the child has exec'd or ended; `start` and `report` live here.
    let pid = unsafe { raw::clone3_call(&arguments, run::entry, (&raw mut start).cast()) };
    raw::restore_signals(mask);
    let pid = pid?;
    // SAFETY: the clone succeeded, so the kernel stored a new descriptor that nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: `report` is a local that the child, ended or exec'd by now, may have written through a raw pointer.
    let report = unsafe { std::ptr::read_volatile(&raw const report) };
    if report.errno != 0 {
        crate::pidfd::wait(&pidfd)?;
        return Ok(Err(report));
    }
    Ok(Ok(Child { pid, pidfd }))
}

fn arguments(options: &CloneOptions<'_>, pidfd: &mut i32) -> raw::CloneArgs {
    let mut flags = u64::from(options.namespaces.bits()) | raw::CLONE_PIDFD | raw::CLONE_CLEAR_SIGHAND;
    let mut cgroup = 0;
    if let Some(fd) = options.cgroup {
        flags |= raw::CLONE_INTO_CGROUP;
        cgroup = fd.as_raw_fd() as u64;
    }
    raw::CloneArgs {
        flags,
        pidfd: std::ptr::from_mut(pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup,
        ..raw::CloneArgs::default()
    }
}

#[cfg(test)]
mod tests;
