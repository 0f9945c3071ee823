//! The shim as a library: the launcher, cgroups and seccomp, for the shim's binary, its OCI command line, the daemon and the tests.
//! Everything in it is synchronous; the launcher itself runs only in a single-threaded process.
//! Owns nothing: each module says what it owns.
//! Must never link an async runtime, gRPC or oci-spec: memory per container is a headline number.

pub mod cgroup;
pub mod launch;
pub mod mountinfo;
pub mod seccomp;
pub mod spec;
