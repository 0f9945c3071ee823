//! The network against a real kernel, in network namespaces made for the test: one plays the host, others pods and the world
//! outside. This machine's own network is never touched. Needs root.

mod crash;
mod lab;
mod mend;
mod rules;
mod speed;
mod traffic;
