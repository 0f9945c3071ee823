//! Netlink without a library: messages built and read by bounds-checked code, one synchronous request path.
//! Runs on the caller's thread, which blocks for as long as the kernel works on the request; no call waits for an answer that
//! the kernel has not already queued. Owns sockets only.
//! Must never trust a length found in a message, nor read a reply that it cannot account for as success.

pub mod address;
pub mod diag;
pub mod link;
mod message;
pub mod route;
mod socket;

pub use message::{Attribute, Attributes, Batch, Malformed, Message, MessageWriter, Messages};
pub use socket::{NetlinkError, Socket};

/// Address families as netlink writes them.
pub mod family {
    pub const UNSPEC: u8 = 0;
    pub const INET: u8 = 2;
    pub const INET6: u8 = 10;
}

/// `nlmsghdr.nlmsg_flags`.
pub mod flags {
    pub const REQUEST: u16 = 0x1;
    pub const ACK: u16 = 0x4;
    pub const DUMP_INTR: u16 = 0x10;
    pub const DUMP: u16 = 0x300;
    pub const EXCL: u16 = 0x200;
    pub const REPLACE: u16 = 0x100;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
    pub const CAPPED: u16 = 0x100;
    pub const ACK_TLVS: u16 = 0x200;
}

/// Marks an attribute that holds attributes.
pub const NESTED: u16 = 0x8000;
