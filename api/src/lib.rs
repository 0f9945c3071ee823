//! Words that both sides of a socket share: ids, digests, and the protocol between the daemon and its shims.
//! Compiled into the daemon, the shim and the tests. Owns nothing but plain data.
//! Must never do I/O, read a clock, or depend on an async runtime: the shim links this crate.
#![warn(missing_docs)]

pub mod chain;
pub mod digest;
pub mod exit;
pub mod id;
pub mod shim;

pub use chain::chain;
pub use digest::Digest;
pub use exit::ExitRecord;
pub use id::{ContainerId, ExecId, SandboxId};
