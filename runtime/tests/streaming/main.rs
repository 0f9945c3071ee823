//! The streaming server over real sockets, with processes and pods that stand in for the engine's.
//! Plain tests, no root: one runtime per test. What a real node adds is in the e2e scenarios.

mod clients;
mod exec;
mod flood;
mod forward;
mod lab;
mod requests;
