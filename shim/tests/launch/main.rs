//! The launcher against a real kernel: containers from a busybox root filesystem, looked at from inside and from outside.
//! Each test runs as root on a thread of its own; what it makes has a name of its own.
//! Owns temporary folders, cgroups named `keelson-launch-*` and the processes it starts, and takes them away again.
//! Must never leave anything: every container is checked for mounts, cgroups and processes after its end.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say when they skip"
)]

mod delegation;
mod exec;
mod files;
mod harness;
mod hostile;
mod identity;
mod images;
mod namespaces;
mod start;
