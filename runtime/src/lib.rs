//! The keelson daemon as a library: the engine (sandbox and container machines, store, recovery, shim clients) and its faces.
//! Runs in the `keelson` process: tokio workers for requests, the blocking pool and a few owned threads for kernel work.
//! Owns the state and root directories while it runs. Must never hold a container's data plane: that is the shim's.

mod apparmor;
mod checkpoint;
pub mod cli;
pub mod config;
pub mod container;
pub mod cri;
mod dirs;
pub mod engine;
pub mod logging;
pub mod observe;
mod oci;
mod reconcile;
mod recover;
pub mod resources;
pub mod retire;
pub mod sandbox;
mod seccomp;
mod selinux;
pub mod session;
mod shim_client;
pub mod socket;
pub mod stats;
mod store;
pub mod streaming;
pub mod user_namespace;
mod users;
