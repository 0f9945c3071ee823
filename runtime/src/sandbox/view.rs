//! What others see of a sandbox: an immutable value replaced at each change by the task that owns the sandbox.
//! Read from any task without waiting; lists and statuses are made of these alone.
//! Owns no resource. Must never be built from anything but the machine's state.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use keelson_api::SandboxId;

use super::spec::SandboxSpec;

/// Where a sandbox is in its life, as far as others care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxPhase {
    /// Namespaces and network are there; containers can be made.
    Ready,
    /// Stopped, being stopped, or left over from before a reboot.
    NotReady,
}

/// A sandbox as it is now.
#[derive(Debug, Clone)]
pub struct SandboxView {
    /// Its id.
    pub id: SandboxId,
    /// What was asked for.
    pub spec: Arc<SandboxSpec>,
    /// In its life.
    pub phase: SandboxPhase,
    /// When it was asked for, nanoseconds since the epoch; strictly increasing within one daemon.
    pub created_at: i64,
    /// When somebody first asked for its stop, nanoseconds since the epoch.
    pub stopped_at: Option<i64>,
    /// Its addresses, the primary first; empty with the host's network or when not ready.
    pub addresses: Vec<IpAddr>,
    /// The pinned network namespace; none with the host's network.
    pub netns: Option<PathBuf>,
    /// Process that holds a shared PID namespace.
    pub holder_pid: Option<i32>,
    /// Its run directory.
    pub run_dir: PathBuf,
}
