//! The streaming server over real sockets, with processes and pods that stand in for the engine's.
//! Plain tests, no root: one runtime per test. What a real node adds is in the e2e scenarios.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

#[allow(dead_code, reason = "shared with the flood")]
mod clients;
mod exec;
mod forward;
mod lab;
mod requests;
