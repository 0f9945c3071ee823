//! Black-box harness: real daemon, real registry, real images, and an audit of what is left behind.
//! Runs in test processes and in the `keelson-e2e` tool, as root. Owns scratch folders below the cache and temp directories.
//! Must never reach a network other than loopback and namespaces it made, or end a process it did not start.

pub mod audit;
pub mod bench;
pub mod cache;
pub mod collector;
pub mod critest;
pub mod criu;
pub mod images;
pub mod kubelet;
pub mod newest;
pub mod node;
pub mod registry;
