//! The one place where a failure becomes a gRPC status: its code, and its whole chain as one sentence, once.
//! Runs at the end of every RPC, in the task of the RPC. Owns the kinds of failure that a face can add to the engine's.
//! Must never log (`rpc.rs` does, once) and never lose a cause.

use keelson_imageservice::{PullError, RemoveError};
use tonic::{Code, Status};

use crate::{
    container::ContainerError,
    engine::{ErrorKind, events::EventsEnd},
    sandbox::SandboxError,
    streaming::UrlError,
};

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
    Pull(Box<PullError>),
    #[error(transparent)]
    RemoveImage(#[from] RemoveError),
    #[error("events: {0}")]
    Events(EventsEnd),
    #[error("{act} sandbox {sandbox}: it is not ready")]
    NotReady { act: &'static str, sandbox: keelson_api::SandboxId },
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error("{act}")]
    Host { act: &'static str, source: std::io::Error },
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self::Pull(Box::new(error))
    }
}

pub(super) fn invalid(field: &str, reason: impl Into<String>) -> Failure {
    Failure::Invalid { field: field.to_owned(), reason: reason.into() }
}

pub(super) fn unsupported(field: &str, reason: impl Into<String>) -> Failure {
    Failure::Unsupported { field: field.to_owned(), reason: reason.into() }
}

/// The field whose lack of support kubelet has a word for.
pub(super) const READ_ONLY_TREE: &str = "config.mounts.recursive_read_only";

/// Longest message sent, bytes: it travels in a header block, which clients bound.
const MESSAGE_MAX: usize = 6 * 1024;

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut message = keelson_api::chain(&failure);
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
        Failure::Events(EventsEnd::Slow | EventsEnd::Full) => Code::ResourceExhausted,
        Failure::Events(EventsEnd::Closed) => Code::Unavailable,
        Failure::NotReady { .. } => of_kind(ErrorKind::State),
        Failure::Url(UrlError::TooMany(_)) => of_kind(ErrorKind::Exhausted),
        Failure::Url(UrlError::Random(source)) => of_kind(ErrorKind::of(source)),
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
        PullError::InvalidReference { .. } | PullError::InvalidCredentials { .. } => Code::InvalidArgument,
        PullError::RegistryUnavailable { .. } => Code::Unavailable,
        PullError::NotFound { .. } => Code::NotFound,
        PullError::Unauthorized { .. } => Code::PermissionDenied,
        // Something has to be put right first: a file of this node, or the image itself.
        PullError::Hosts { .. }
        | PullError::BadAnswer { .. }
        | PullError::InvalidManifest { .. }
        | PullError::Unpack { .. } => Code::FailedPrecondition,
        PullError::NoSpace { .. } => Code::ResourceExhausted,
        PullError::Commit { .. } => Code::Internal,
        PullError::DeadlineExceeded { .. } => Code::DeadlineExceeded,
        PullError::Interrupted { .. } => Code::Aborted,
    }
}

/// The word at the beginning of a message by which kubelet knows a failure it explains to the pod's owner.
fn prefix(failure: &Failure) -> Option<&'static str> {
    match failure {
        Failure::Pull(error) if matches!(**error, PullError::RegistryUnavailable { .. }) => Some("RegistryUnavailable"),
        Failure::Unsupported { field, .. } if field.starts_with(READ_ONLY_TREE) => Some("RROUnsupported"),
        Failure::Container(ContainerError::ImageVolume { .. }) => Some("ImageVolumeMountFailed"),
        Failure::Invalid { .. }
        | Failure::Unsupported { .. }
        | Failure::Deadline { .. }
        | Failure::Sandbox(_)
        | Failure::Container(_)
        | Failure::Pull(_)
        | Failure::RemoveImage(_)
        | Failure::Events(_)
        | Failure::NotReady { .. }
        | Failure::Url(_)
        | Failure::Host { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use keelson_api::ContainerId;

    use super::*;

    fn status(failure: impl Into<Failure>) -> (Code, String) {
        let status = Status::from(failure.into());
        (status.code(), status.message().to_owned())
    }

    #[test]
    fn every_kind_of_the_engine_has_its_code() {
        for (kind, code) in [
            (ErrorKind::NotFound, Code::NotFound),
            (ErrorKind::Invalid, Code::InvalidArgument),
            (ErrorKind::Exists, Code::AlreadyExists),
            (ErrorKind::State, Code::FailedPrecondition),
            (ErrorKind::Unsupported, Code::FailedPrecondition),
            (ErrorKind::Exhausted, Code::ResourceExhausted),
            (ErrorKind::Timeout, Code::DeadlineExceeded),
            (ErrorKind::Unavailable, Code::Unavailable),
            (ErrorKind::Internal, Code::Internal),
        ] {
            assert_eq!(of_kind(kind), code);
        }
    }

    #[test]
    fn an_exec_that_takes_too_long_is_a_deadline() {
        let id = ContainerId::from_random([1; 32]);
        let error = ContainerError::ExecTimeout { id, timeout: std::time::Duration::from_secs(2) };
        let (code, message) = status(error);
        assert_eq!(code, Code::DeadlineExceeded);
        assert!(message.ends_with("timed out after 2s, killed"), "{message}");
    }

    #[test]
    fn a_failure_is_told_with_its_whole_chain_once() {
        let id = ContainerId::from_random([1; 32]);
        let source = std::sync::Arc::new(std::io::Error::from_raw_os_error(28));
        let error = ContainerError::Failed { act: "create", id: id.clone(), stage: "write bundle", source };
        let (code, message) = status(error);
        assert_eq!(code, Code::ResourceExhausted);
        let want = format!("create container {id}: write bundle: No space left on device (os error 28)");
        assert_eq!(message, want);
    }

    #[test]
    fn kubelet_finds_the_words_it_explains() {
        let (code, message) = status(unsupported(READ_ONLY_TREE, "needs Linux 5.12"));
        assert_eq!(
            (code, message.as_str()),
            (Code::FailedPrecondition, "RROUnsupported: config.mounts.recursive_read_only: needs Linux 5.12")
        );
    }

    #[test]
    fn an_image_that_cannot_be_mounted_has_kubelets_word_for_it() {
        let error = ContainerError::ImageVolume {
            image: "data:1".into(),
            path: "/image".into(),
            reason: "it is not on this node: pull it first".into(),
            kind: ErrorKind::NotFound,
        };
        let (code, message) = status(error);
        assert_eq!(code, Code::NotFound);
        let want = "ImageVolumeMountFailed: mount image `data:1` on `/image`: it is not on this node: pull it first";
        assert_eq!(message, want);
    }

    #[test]
    fn a_message_is_bounded_on_a_character() {
        let (_, message) = status(invalid("config", "\u{e4}".repeat(MESSAGE_MAX)));
        assert!(message.len() <= MESSAGE_MAX + 3 && message.ends_with(" .."), "{}", message.len());
    }
}
