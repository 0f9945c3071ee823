//! Pod networking in process: namespaces, a bridge, addresses, masquerade, host ports, and the files names are resolved by.
//! Used by the daemon, on threads that may block; nothing here is async and nothing is shelled out to.
//! Owns the bridge, one nftables table, the interfaces and addresses of pods, and the records of all that in its folder.
//! Must never touch an interface, a table or a route that it did not make (but one that it is told to lend, `loan`), nor know a word
//! of images or CRI.
#![warn(missing_docs)]

pub mod address;
pub mod attachment;
pub mod bridge;
pub mod config;
mod conntrack;
pub mod counters;
pub mod dns;
mod fault;
mod file;
mod firewall;
pub mod forwarding;
mod home;
pub mod ipam;
pub mod loan;
#[allow(missing_docs, reason = "mirrors the kernel's names")]
pub mod netlink;
pub mod netns;
mod nfnetlink;
pub mod port;
pub mod service;
pub mod subnet;
pub mod sysctl;

pub use address::{IpNet, Ipv4Net, Ipv6Net, Mac};
pub use attachment::{Attachment, INTERFACE};
pub use config::{Config, Subnet};
pub use loan::{Loan, LoanError};
pub use netlink::link::Traffic;
pub use netns::Netns;
pub use port::{PortError, PortMapping, Protocol};
pub use service::{AttachError, AttachRequest, Closed, DetachError, Network, NotReady, OpenError, SetupError};
