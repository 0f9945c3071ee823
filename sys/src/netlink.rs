//! Netlink socket options that rustix does not know.
//! Any process, any thread; never blocks.
//! Owns nothing.
//! Must never speak the protocol itself: that is the network room's.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io;

use crate::fd::last_errno;

/// Asks for error texts and for acknowledgements without the request's payload.
/// <https://man7.org/linux/man-pages/man7/netlink.7.html>
pub fn enable_ext_ack(socket: BorrowedFd<'_>) -> io::Result<()> {
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let on: libc::c_int = 1;
        // SAFETY: the value is a c_int on this stack whose size is given; the socket is open by its type.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(last_errno());
        }
    }
    Ok(())
}
