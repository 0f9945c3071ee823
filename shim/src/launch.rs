//! Starting processes in containers: `create` makes a container whose init waits before exec, `exec` adds a process to one.
//! Runs in the container's single-threaded shim (or the OCI command line); the child between clone and exec runs `sys::child`.
//! Owns the plan, the detached mounts and the gate until they are handed over in [`Created`] and [`Execed`].
//! Must never leave anything behind when it fails: mounts live in the child's namespace only, the cgroup is removed.

mod capability;
mod create;
mod devices;
mod error;
mod exec;
mod hooks;
mod idmap;
mod image;
mod lsm;
mod mounts;
mod namespaces;
mod options;
mod place;
mod plan;
pub mod probe;
mod process;
mod rootfs;
mod schedule;
mod staging;
mod sysctl;

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use capability::NAMES as CAPABILITY_NAMES;
pub use create::{Created, create, start_through};
pub use error::LaunchError;
pub use exec::{ExecRequest, ExecTarget, Execed, exec, start_time};
pub use hooks::{ContainerState, Point, run_hooks, run_hooks_inside};
pub use idmap::write_maps as write_id_maps;
use namespaces::Namespaces;
pub use namespaces::in_own_pid_namespace;
pub use rootfs::mount_root;
pub use staging::{ROOT as STAGED_ROOT, Staging, stage};

use crate::spec::Spec;

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
    /// Folders to make inside the root filesystem, writable even when it is read-only: an image's volumes.
    pub volumes: &'a [String],
    /// Images' trees to mount in place of the spec's mounts with the same destinations.
    pub image_volumes: &'a [ImageVolume],
    /// Sources of binds that must have no symbolic link in them: whoever resolved them has followed all there were.
    pub resolved_sources: &'a [String],
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
    pub gate: Gate,
}

/// Who lets the init go.
pub enum Gate {
    /// [`Created::start`]; dropping [`Created`] before it makes the init end.
    Creator,
    /// Whoever connects to this listening seqpacket socket: see [`start_through`].
    Listener(OwnedFd),
}

/// An overlay root filesystem.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayRootfs {
    /// Top layer first. Never empty.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    /// On the filesystem of `upper`.
    pub work: PathBuf,
    /// Nobody reads `upper` after a power failure: the kernel need not write the whole filesystem out when the container ends.
    pub volatile: bool,
    /// In a user namespace: the layers hold the ids of the container, shift them by its mappings.
    pub idmapped: bool,
}

/// An image's tree for a container, always read-only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageVolume {
    /// As the spec's mount has it.
    pub destination: String,
    /// Top first. At least two: the kernel stacks nothing less without a writable layer.
    pub lower: Vec<PathBuf>,
    /// Folder of the tree to mount; empty: all of it.
    pub sub_path: String,
}

/// The standard streams of a process.
pub enum ChildStdio {
    Fds {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// A terminal of the container's own devpts; its master comes back.
    Terminal,
}

fn c_string(step: &'static str, text: &str) -> Result<CString, LaunchError> {
    CString::new(text).map_err(|_| LaunchError::invalid(step, text.replace('\0', "\\0"), "has a byte of value zero"))
}

/// Writes to a file of procfs in one call.
fn write_file(path: &str, value: &[u8]) -> rustix::io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::io::write(&file, value)? {
        written if written == value.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}
