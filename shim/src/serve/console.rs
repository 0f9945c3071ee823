//! A socket on which a runtime's command line hands over a terminal's master (`--console-socket`).
//! Runs in the shim's only thread; receives after the command has ended, so nothing is waited for.
//! Owns the socket file in the run directory until it is dropped.
//! Must never take more than one descriptor, or one that is no terminal.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::io::{self, Errno};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// A listening socket.
pub(super) struct Console {
    path: String,
    listener: OwnedFd,
}

impl Console {
    /// Listens in the working directory.
    pub(super) fn listen(name: &str) -> io::Result<Console> {
        let path = format!("{name}.tty");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(path.as_str())?)?;
        rustix::net::listen(&listener, 1)?;
        Ok(Console { path, listener })
    }

    /// For `--console-socket`; the command's working directory is this process's.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The master that has been sent.
    pub(super) fn receive(self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let connection = rustix::net::accept_with(&self.listener, flags)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 256];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        rustix::net::recvmsg(&connection, &mut [IoSliceMut::new(&mut name)], &mut ancillary, flags)?;
        let mut received = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let master = received.next().ok_or(Errno::NOMSG)?;
        rustix::termios::tcgetwinsize(&master)?;
        Ok(master)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = rustix::fs::unlink(self.path.as_str());
    }
}
