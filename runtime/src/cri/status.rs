//! The one place where a failure becomes a gRPC status: its code, and its whole chain as one sentence, once.
//! Runs at the end of every RPC, in the task of the RPC. Owns the kinds of failure that a face can add to the engine's.
//! Must never log (`rpc.rs` does, once) and never lose a cause.

use keelson_imageservice::{PullError, RemoveError};
use tonic::{Code, Status};

use crate::{container::ContainerError, engine::ErrorKind, logging, sandbox::SandboxError};

/// Why an RPC failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{field}: {reason}")]
    Invalid { field: String, reason: String },
    #[error("{field}: {reason}")]
    Unsupported { field: String, reason: String },
    #[error("{rpc}: the caller's deadline of {seconds} s passed; what was begun goes on, ask again")]
    Deadline { rpc: &'static str, seconds: f64 },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error(transparent)]
    RemoveImage(#[from] RemoveError),
    #[error("{act}")]
    Host { act: &'static str, source: std::io::Error },
}

pub(super) fn invalid(field: &str, reason: impl Into<String>) -> Failure {
    Failure::Invalid { field: field.to_owned(), reason: reason.into() }
}

pub(super) fn unsupported(field: &str, reason: impl Into<String>) -> Failure {
    Failure::Unsupported { field: field.to_owned(), reason: reason.into() }
}

/// Longest message sent, bytes: it travels in a header block, which clients bound.
const MESSAGE_MAX: usize = 6 * 1024;

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut message = logging::chain(&failure);
        if let Some(prefix) = prefix(&failure) {
            message = format!("{prefix}: {message}");
        }
        if message.len() > MESSAGE_MAX {
            message.truncate(message.floor_char_boundary(MESSAGE_MAX));
            message.push_str(" ..");
        }
        Status::new(code(&failure), message)
    }
}

fn code(failure: &Failure) -> Code {
    match failure {
        Failure::Invalid { .. } => Code::InvalidArgument,
        Failure::Unsupported { .. } => of_kind(ErrorKind::Unsupported),
        Failure::Deadline { .. } => Code::DeadlineExceeded,
        Failure::Sandbox(error) => of_kind(error.kind()),
        Failure::Container(error) => of_kind(error.kind()),
        Failure::Pull(error) => of_pull(error),
        Failure::RemoveImage(error) => of_kind(ErrorKind::of(error)),
        Failure::Host { source, .. } => of_kind(ErrorKind::of(source)),
    }
}

fn of_kind(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::Exists => Code::AlreadyExists,
        // UNIMPLEMENTED is for whole RPCs: clients take it as leave to fall back for good.
        ErrorKind::State | ErrorKind::Unsupported => Code::FailedPrecondition,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Internal => Code::Internal,
    }
}

fn of_pull(error: &PullError) -> Code {
    match error {
        PullError::NotFound { .. } => Code::NotFound,
    }
}

/// The word at the beginning of a message by which kubelet knows a failure it explains to the pod's owner.
fn prefix(_: &Failure) -> Option<&'static str> {
    None
}
