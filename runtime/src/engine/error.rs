//! Kinds of failure, for faces to map to their own codes, and why the engine could not be opened.
//! Plain values in any task. Owns nothing.
//! Must never grow a kind that no face treats differently.

use std::path::PathBuf;

use keelson_shim::cgroup::CgroupError;
use rustix::io::Errno;

/// What a caller must tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such object.
    NotFound,
    /// The request is wrong.
    Invalid,
    /// Another object has the name.
    Exists,
    /// Not in a state for this.
    State,
    /// The host or this version lacks something.
    Unsupported,
    /// A limit of the node is reached: disk, addresses, tasks.
    Exhausted,
    /// It took too long.
    Timeout,
    /// Ask again later.
    Unavailable,
    /// The host failed.
    Internal,
}

impl ErrorKind {
    fn of_port(error: &keelson_network::PortError) -> Self {
        use keelson_network::PortError;
        match error {
            PortError::Taken { .. } => Self::Exists,
            // Something of the host has to be stopped first.
            PortError::Listening { .. } => Self::State,
            PortError::Twice { .. }
            | PortError::Zero { .. }
            | PortError::Loopback { .. }
            | PortError::Family { .. } => Self::Invalid,
        }
    }

    /// The kind that a cause stands for: full disks and spent tables are told apart from the rest.
    #[must_use]
    pub fn of(cause: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(cause);
        while let Some(error) = next {
            if let Some(failure) = error.downcast_ref::<crate::shim_client::ShimError>() {
                return failure.kind();
            }
            if let Some(kind) = error.downcast_ref::<CgroupError>().and_then(of_cgroup) {
                return kind;
            }
            if let Some(attach) = error.downcast_ref::<keelson_network::AttachError>() {
                match attach {
                    keelson_network::AttachError::Exhausted { .. } => return Self::Exhausted,
                    keelson_network::AttachError::Port { source, .. } => return Self::of_port(source),
                    _ => {}
                }
            }
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                match io.kind() {
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => return Self::Exhausted,
                    std::io::ErrorKind::TimedOut => return Self::Timeout,
                    _ => {}
                }
            }
            next = error.source();
        }
        Self::Internal
    }
}

/// What a cgroup refused, and why: a value that no kernel takes, a host that lacks something, memory that is in use.
fn of_cgroup(error: &CgroupError) -> Option<ErrorKind> {
    match error {
        CgroupError::BadValue { .. }
        | CgroupError::BadPath { .. }
        | CgroupError::BadSlice { .. }
        | CgroupError::BadDevice { .. }
        | CgroupError::Write { source: Errno::INVAL | Errno::RANGE, .. } => Some(ErrorKind::Invalid),
        CgroupError::NoController { .. }
        | CgroupError::NoFile { .. }
        | CgroupError::Unsupported { .. }
        | CgroupError::Enable { .. } => Some(ErrorKind::Unsupported),
        CgroupError::Shrink { .. } | CgroupError::Write { source: Errno::BUSY, .. } => Some(ErrorKind::State),
        _ => None,
    }
}

/// Why the engine could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder or file of ours.
    #[error("{act} `{path}`")]
    Io {
        /// What was attempted.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Another daemon works on the same folder.
    #[error(
        "lock `{path}`: another keelson daemon (pid {pid}) works on this folder: stop it, or give this one folders of its own"
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// As the other wrote it; 0 when it cannot be read.
        pid: i32,
    },
    /// The records were written by a newer keelson.
    #[error(
        "read `{path}`: layout version {found}, this program knows {known}: use the newer program, or empty the folder"
    )]
    Version {
        /// Which record.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest known here.
        known: u32,
    },
    /// The image service.
    #[error("open the image service")]
    Images(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The network.
    #[error("open the network")]
    Network(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Cgroups of the host.
    #[error("detect cgroups")]
    Cgroups(#[source] Box<dyn std::error::Error + Send + Sync>),
}
