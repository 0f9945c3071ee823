//! Streaming sessions (exec, attach, port-forward): the protocols that clients speak, and the tokens that lead them here.
//! Runs on the daemon's workers, one task per session. Owns the sessions that wait for their client.
//! Must never keep a container's output: that is between its shim and the client. The sessions themselves come with the RPCs.

pub mod channel;
pub mod spdy;
pub mod tokens;
pub mod upgrade;
