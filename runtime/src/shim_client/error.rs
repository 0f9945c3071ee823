//! Why a shim did not do what was asked: it said so, it is gone, or it did not answer in time.
//! Plain values. Owns nothing.
//! Must never hide what the shim said: step, object, errno and hint reach the person.

use std::time::Duration;

use keelson_api::{
    ContainerId,
    shim::{Failure, FailureKind},
};

use crate::engine::ErrorKind;

/// See the variants.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ShimError {
    /// The shim said why not.
    #[error("{}", words(failure))]
    Refused {
        /// What was asked.
        act: &'static str,
        /// Of which container.
        id: String,
        /// What it said.
        failure: Box<Failure>,
    },
    /// It has ended, or closed its socket.
    #[error("{act}: the shim of {id} is gone")]
    Gone {
        /// What was asked.
        act: &'static str,
        /// Of which container.
        id: String,
    },
    /// It did not answer.
    #[error("{act}: the shim of {id} did not answer within {after:?}")]
    Deadline {
        /// What was asked.
        act: &'static str,
        /// Of which container.
        id: String,
        /// How long was waited.
        after: Duration,
    },
    /// It answered something else.
    #[error("{act}: the shim of {id} answered `{answer}`, which is no answer to that")]
    Unexpected {
        /// What was asked.
        act: &'static str,
        /// Of which container.
        id: String,
        /// What came.
        answer: &'static str,
    },
    /// The request does not fit into a frame.
    #[error("{act}: request of {bytes} bytes for {id} is longer than a shim reads")]
    TooLong {
        /// What was asked.
        act: &'static str,
        /// Of which container.
        id: String,
        /// How long.
        bytes: usize,
    },
}

impl ShimError {
    /// What could not even be asked.
    pub(crate) fn unasked(act: &'static str, id: &ContainerId, message: &str) -> Self {
        let failure = Failure { step: act.to_owned(), message: message.to_owned(), ..Failure::default() };
        Self::Refused { act, id: id.to_string(), failure: Box::new(failure) }
    }

    /// What kind of failure this is.
    #[must_use]
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { failure, .. } => match FailureKind::try_from(failure.kind) {
                Ok(FailureKind::Invalid) => ErrorKind::Invalid,
                Ok(FailureKind::State) => ErrorKind::State,
                Ok(FailureKind::Unsupported) => ErrorKind::Unsupported,
                Ok(FailureKind::System) | Err(_) => ErrorKind::Internal,
            },
            Self::Deadline { .. } => ErrorKind::Timeout,
            Self::TooLong { .. } => ErrorKind::Invalid,
            Self::Gone { .. } | Self::Unexpected { .. } => ErrorKind::Internal,
        }
    }
}

/// Step, object and cause in one line.
fn words(failure: &Failure) -> String {
    // A message that says it all already.
    if failure.message.starts_with(&failure.step) && !failure.message.is_empty() {
        return failure.message.clone();
    }
    let mut text = failure.step.clone();
    if !failure.object.is_empty() {
        text = format!("{text} `{}`", failure.object);
    }
    if !failure.message.is_empty() {
        text = format!("{text}: {}", failure.message);
    } else if failure.errno != 0 {
        text = format!("{text}: {}", std::io::Error::from_raw_os_error(failure.errno));
    }
    text
}
