//! Why an image was not pulled. The front turns each variant into a code and a prefix that the kubelet knows.
//! Plain data, cheap to clone: all callers that joined one pull get the same error. Owns nothing.
//! Must never print a source in `Display`: whoever reports it prints the chain once.

use std::{sync::Arc, time::Duration};

use keelson_api::Digest;

use crate::{
    layer::UnpackError,
    manifest::ManifestError,
    reference::InvalidReference,
    registry::{Attempts, Cause, HostsError, InvalidCredentials},
    store::CommitError,
};

/// Why an image was not pulled. Nothing half-made is left.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The name is not a reference.
    #[error("pull image")]
    InvalidReference {
        /// Which part is wrong.
        source: InvalidReference,
    },
    /// The credentials hold nothing that can be sent.
    #[error("pull `{reference}`")]
    InvalidCredentials {
        /// As asked.
        reference: String,
        /// What is wrong with them.
        source: InvalidCredentials,
    },
    /// `hosts.toml` for the registry cannot be used.
    #[error("pull `{reference}`")]
    Hosts {
        /// As asked.
        reference: String,
        /// File, line and reason.
        source: Arc<HostsError>,
    },
    /// No endpoint of the registry could be reached or was well.
    #[error("pull `{reference}`: {what}: registry unavailable")]
    RegistryUnavailable {
        /// As asked.
        reference: String,
        /// `manifest`, `config sha256:..`, `layer 2 of 5 sha256:..`.
        what: String,
        /// Every endpoint and its cause.
        source: Attempts,
    },
    /// The registry has no such image, or lacks a part of it.
    #[error("pull `{reference}`: {what}: not found")]
    NotFound {
        /// As asked.
        reference: String,
        /// Which part.
        what: String,
        /// Every endpoint and its cause.
        source: Attempts,
    },
    /// The registry refuses this caller.
    #[error("pull `{reference}`: {what}: access denied")]
    Unauthorized {
        /// As asked.
        reference: String,
        /// Which part.
        what: String,
        /// Every endpoint and its cause.
        source: Attempts,
    },
    /// The registry answered with something that is not what was asked for.
    #[error("pull `{reference}`: {what}: unusable answer")]
    BadAnswer {
        /// As asked.
        reference: String,
        /// Which part.
        what: String,
        /// Every endpoint and its cause.
        source: Attempts,
    },
    /// What was pulled is not an image that this node can run.
    #[error("pull `{reference}`: manifest {digest}")]
    InvalidManifest {
        /// As asked.
        reference: String,
        /// Which document.
        digest: Digest,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A layer is broken, hostile or too large.
    #[error("pull `{reference}`: {what}")]
    Unpack {
        /// As asked.
        reference: String,
        /// Which layer.
        what: String,
        /// Why.
        source: Arc<UnpackError>,
    },
    /// The disk is full.
    #[error("pull `{reference}`: {what}: no space left on the image filesystem")]
    NoSpace {
        /// As asked.
        reference: String,
        /// During what.
        what: String,
        /// What ran out where.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The image could not be recorded.
    #[error("pull `{reference}`")]
    Commit {
        /// As asked.
        reference: String,
        /// Why.
        source: Arc<CommitError>,
    },
    /// The caller's time is up; the pull goes on for those who ask again.
    #[error("pull `{reference}`: not done within {} s; it goes on, ask again to join it", limit.as_secs_f32())]
    DeadlineExceeded {
        /// As asked.
        reference: String,
        /// The caller's time.
        limit: Duration,
    },
    /// The work was ended from outside: the daemon is stopping.
    #[error("pull `{reference}`: interrupted; pull again")]
    Interrupted {
        /// As asked.
        reference: String,
    },
}

/// What a face must tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullFailure {
    /// No such image, or a part of it is missing.
    NotFound,
    /// The registry refuses this caller.
    Unauthorized,
    /// No endpoint could be reached or was well.
    Unavailable,
    /// The transfer stalled, or the caller's time is up.
    Timeout,
    /// What was asked, configured or pulled makes no sense.
    Invalid,
    /// The disk is full.
    Exhausted,
    /// Our own trouble.
    Internal,
}

impl PullError {
    /// Which kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> PullFailure {
        match self {
            Self::NotFound { .. } => PullFailure::NotFound,
            Self::Unauthorized { .. } => PullFailure::Unauthorized,
            Self::RegistryUnavailable { source, .. } => match source.decisive() {
                Some(Cause::Stalled { .. }) => PullFailure::Timeout,
                _ => PullFailure::Unavailable,
            },
            Self::DeadlineExceeded { .. } => PullFailure::Timeout,
            Self::InvalidReference { .. } | Self::InvalidCredentials { .. } | Self::Hosts { .. } => {
                PullFailure::Invalid
            }
            Self::BadAnswer { .. } | Self::InvalidManifest { .. } => PullFailure::Invalid,
            Self::Unpack { source, .. } => match **source {
                UnpackError::Io { .. } | UnpackError::Read { .. } | UnpackError::Cancelled => PullFailure::Internal,
                UnpackError::DiskFull { .. } => PullFailure::Exhausted,
                UnpackError::Size { .. }
                | UnpackError::Digest { .. }
                | UnpackError::DiffId { .. }
                | UnpackError::Inflate { .. }
                | UnpackError::Archive { .. }
                | UnpackError::Refused { .. }
                | UnpackError::Limit { .. } => PullFailure::Invalid,
            },
            Self::NoSpace { .. } => PullFailure::Exhausted,
            Self::Commit { .. } | Self::Interrupted { .. } => PullFailure::Internal,
        }
    }

    /// The variant that fits what the endpoints said.
    pub(super) fn from_attempts(reference: &str, what: &str, source: Attempts) -> Self {
        let (reference, what) = (reference.to_owned(), what.to_owned());
        match source.decisive() {
            Some(Cause::NotFound { .. }) => Self::NotFound { reference, what, source },
            Some(Cause::Unauthorized { .. } | Cause::Forbidden { .. } | Cause::Token { refused: true, .. }) => {
                Self::Unauthorized { reference, what, source }
            }
            Some(Cause::Digest { .. } | Cause::TooLarge { .. } | Cause::Protocol { .. } | Cause::Redirect { .. }) => {
                Self::BadAnswer { reference, what, source }
            }
            Some(Cause::Status { status, .. }) if status.is_client_error() => {
                Self::BadAnswer { reference, what, source }
            }
            None
            | Some(
                Cause::Connect { .. }
                | Cause::Tls { .. }
                | Cause::Setup { .. }
                | Cause::Timeout { .. }
                | Cause::Stalled { .. }
                | Cause::Broken { .. }
                | Cause::Throttled { .. }
                | Cause::Status { .. }
                | Cause::Token { .. },
            ) => Self::RegistryUnavailable { reference, what, source },
        }
    }

    pub(super) fn unpack(reference: &str, what: &str, source: Arc<UnpackError>) -> Self {
        let (reference, what) = (reference.to_owned(), what.to_owned());
        match *source {
            UnpackError::DiskFull { .. } => Self::NoSpace { reference, what, source },
            UnpackError::Cancelled => Self::Interrupted { reference },
            _ => Self::Unpack { reference, what, source },
        }
    }

    pub(super) fn commit(reference: &str, source: CommitError) -> Self {
        let mut inner: Option<&(dyn std::error::Error + 'static)> = Some(&source);
        while let Some(error) = inner {
            let io = error.downcast_ref::<std::io::Error>();
            if io.is_some_and(|io| {
                matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            }) {
                let what = "record image".to_owned();
                return Self::NoSpace { reference: reference.to_owned(), what, source: Arc::new(source) };
            }
            inner = error.source();
        }
        Self::Commit { reference: reference.to_owned(), source: Arc::new(source) }
    }
}

impl From<InvalidReference> for PullError {
    fn from(source: InvalidReference) -> Self {
        Self::InvalidReference { source }
    }
}
