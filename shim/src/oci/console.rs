//! Handing a terminal's master to whoever asked for it by `--console-socket`.
//! In `create` and `exec`; blocks until the receiver has room for one message.
//! Owns nothing.
//! Must never keep the master: it is the receiver's.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::error::{OciError, system};

/// Sends the master with the name of its kind, as runtimes do.
pub(super) fn send(master: &OwnedFd, socket: &Path) -> Result<(), OciError> {
    let connection = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(system("make socket"))?;
    let address = SocketAddrUnix::new(socket).map_err(system("name console socket"))?;
    rustix::net::connect(&connection, &address).map_err(system("connect to console socket"))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(OciError::Invalid("send terminal: no room for one descriptor".to_owned()));
    }
    rustix::net::sendmsg(&connection, &[IoSlice::new(b"/dev/ptmx")], &mut ancillary, SendFlags::NOSIGNAL)
        .map_err(system("send terminal"))?;
    Ok(())
}
