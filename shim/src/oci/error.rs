//! Why a command failed, in the words that engines look for: some of them read the text of errors.
//! Any command.
//! Owns strings.
//! Must never say "does not exist" of anything but a container, or "not running" of one that runs.

use std::path::PathBuf;

use keelson_shim::cgroup::CgroupError;
use keelson_shim::launch::LaunchError;
use rustix::io::Errno;

use super::folder::Status;

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub(super) enum OciError {
    #[error("read arguments: {0}")]
    Usage(String),
    #[error("container id `{id}`: want 1 to 1024 of letters, digits and `_+-.`, and a letter or digit first")]
    Id { id: String },
    #[error("container `{id}` does not exist")]
    NotFound { id: String },
    #[error("container with id `{id}` exists already")]
    Exists { id: String },
    #[error("{verb} container `{id}`: container not running: it is {status}")]
    NotRunning { verb: &'static str, id: String, status: Status },
    #[error("{verb} container `{id}`: it is {status}")]
    Status { verb: &'static str, id: String, status: Status },
    #[error("container `{id}` is still alive {seconds} seconds after SIGKILL")]
    Unkillable { id: String, seconds: u64 },
    #[error("{act} `{path}`")]
    File {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read `{path}`")]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{act}")]
    System {
        act: &'static str,
        #[source]
        source: Errno,
    },
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl From<lexopt::Error> for OciError {
    fn from(error: lexopt::Error) -> OciError {
        OciError::Usage(error.to_string())
    }
}

/// For `map_err`: an act on a file.
pub(super) fn file(act: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> OciError {
    let path = path.into();
    move |source| OciError::File { act, path, source }
}

/// For `map_err`: a system call.
pub(super) fn system(act: &'static str) -> impl FnOnce(Errno) -> OciError {
    move |source| OciError::System { act, source }
}
