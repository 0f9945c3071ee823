//! The only crate with `unsafe`: system calls that rustix does not offer as safe functions, wrapped so that the rest may forbid it.
//! Each module says which process and thread may call it; none logs, none keeps global state that outlives a call's meaning.
//! Owns the file descriptors and mappings it returns, as `OwnedFd` and guards.
//! Must never grow policy: what to mount, whom to run and when is decided by its callers.
#![warn(missing_docs)]

pub mod bpf;
pub mod child;
pub mod fd;
pub mod init;
pub mod inside;
pub mod memfd;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod pidfd;
pub mod process;
mod raw;
pub mod seccomp;
pub mod signalfd;
pub mod spawn;
