//! Starting processes in containers: `create` makes a container whose init waits before exec, `exec` adds a process to one.
//! Runs in the container's single-threaded shim (or the OCI command line); the child between clone and exec runs `sys::child`.
//! Owns the plan, the detached mounts and the gate until they are handed over in [`Created`] and [`Execed`].
//! Must never leave anything behind when it fails: mounts live in the child's namespace only, the cgroup is removed.

mod error;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use error::LaunchError;

use crate::cgroup;
use crate::spec::{Process, Spec};

/// What to create.
pub struct CreateRequest<'a> {
    pub id: &'a str,
    /// Relative paths of the spec start here.
    pub bundle: &'a Path,
    pub spec: &'a Spec,
    /// Replaces `process.env`: entries as `NAME=value` that need not be UTF-8.
    pub env: Option<&'a [Vec<u8>]>,
    /// The root filesystem; without it `root.path` of the spec is bound.
    pub overlay: Option<&'a OverlayRootfs>,
    /// Compiled seccomp program; without it `linux.seccomp` of the spec is compiled.
    pub seccomp: Option<&'a [u8]>,
    pub systemd_cgroup: bool,
    /// Run the tiny reaper of `sys::init` instead of `process.args`.
    pub builtin_init: bool,
    /// Give up lowering oom_score_adj where that is not permitted, instead of failing.
    pub clamp_oom_score: bool,
    /// Leave the old root in place and chroot: for hosts that run from an initramfs.
    pub no_pivot: bool,
    pub stdio: ChildStdio,
}

/// An overlay root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayRootfs {
    /// Top layer first. Never empty.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    /// On the filesystem of `upper`.
    pub work: PathBuf,
    /// Nobody reads `upper` after a power failure: the kernel need not sync the whole filesystem when the container ends.
    pub volatile: bool,
}

/// The standard streams of a process.
pub enum ChildStdio {
    Fds { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    /// A terminal of the container's own devpts; its master comes back.
    Terminal,
}

/// A container whose init waits just before exec. Dropping it before `start` makes the init end.
pub struct Created {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub cgroup: cgroup::Handle,
    /// The terminal's master.
    pub terminal: Option<OwnedFd>,
}

/// A running container that processes can be added to.
pub struct ExecTarget {
    _private: (),
}

/// What to execute.
pub struct ExecRequest<'a> {
    pub target: &'a ExecTarget,
    pub process: &'a Process,
    /// Replaces `process.env`: entries as `NAME=value` that need not be UTF-8.
    pub env: Option<&'a [Vec<u8>]>,
    /// Names the leaf cgroup.
    pub exec_id: &'a str,
    /// Compiled seccomp program, or none.
    pub seccomp: Option<&'a [u8]>,
    pub clamp_oom_score: bool,
    pub stdio: ChildStdio,
}

/// A process that has been executed.
pub struct Execed {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub leaf: cgroup::Leaf,
    pub terminal: Option<OwnedFd>,
}

/// Makes the container; its init waits just before exec.
pub fn create(_request: CreateRequest<'_>) -> Result<Created, LaunchError> {
    Err(LaunchError::unsupported("create", "", "not built yet"))
}

impl Created {
    /// Lets the init exec; returns when execve succeeded, or with the step that failed (the init is gone then).
    pub fn start(&mut self) -> Result<(), LaunchError> {
        Err(LaunchError::unsupported("start", "", "not built yet"))
    }

    /// What `exec` needs; to be made once, after `create`. From here on every child of this process is born in the
    /// container's pid namespace.
    pub fn exec_target(&self, _spec: &Spec) -> Result<ExecTarget, LaunchError> {
        Err(LaunchError::unsupported("exec", "", "not built yet"))
    }
}

impl ExecTarget {
    /// The container whose init is `pid`, for a process that did not create it. `start_time` is field 22 of
    /// `/proc/<pid>/stat`, recorded at create: it tells a reused pid.
    pub fn open(_pid: i32, _start_time: u64, _cgroup: &cgroup::Handle, _spec: &Spec) -> Result<ExecTarget, LaunchError> {
        Err(LaunchError::unsupported("exec", "", "not built yet"))
    }
}

/// Field 22 of `/proc/<pid>/stat`: when the process started, in clock ticks after boot.
pub fn start_time(_pid: i32) -> Result<u64, LaunchError> {
    Err(LaunchError::unsupported("read start time", "", "not built yet"))
}

/// Runs a process in a container; returns when execve succeeded, or with the step that failed.
pub fn exec(_request: ExecRequest<'_>) -> Result<Execed, LaunchError> {
    Err(LaunchError::unsupported("exec", "", "not built yet"))
}
