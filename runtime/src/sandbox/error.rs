//! Why an operation on a sandbox failed, in words a person can act on and kinds a face can map to its own codes.
//! Plain values, made by the sandbox's task and read by faces. Owns nothing.
//! Must never carry its source in its own text: the chain is printed once, by the room that stops the error.

use keelson_api::SandboxId;

use crate::engine::ErrorKind;

/// See the variants.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SandboxError {
    /// No sandbox with this id.
    #[error("sandbox `{id}` not found")]
    NotFound {
        /// The id or prefix asked for, cut to 80 characters.
        id: String,
    },
    /// The request is wrong; nothing was touched.
    #[error("sandbox spec: {field}: {reason}")]
    Invalid {
        /// Which part of the request.
        field: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// The host lacks what the request needs.
    #[error("sandbox spec: {field}: {reason}")]
    Unsupported {
        /// Which part of the request.
        field: String,
        /// What is lacking.
        reason: String,
    },
    /// A sandbox with this key exists and is of no more use.
    #[error("sandbox {name} exists already as {id} and is not ready: remove it, or raise the attempt")]
    Exists {
        /// The key, printed.
        name: String,
        /// The sandbox that has it.
        id: SandboxId,
    },
    /// The sandbox is not in a state for this.
    #[error("{act} in sandbox {id}: it is {state}")]
    State {
        /// What was asked.
        act: &'static str,
        /// Which sandbox.
        id: SandboxId,
        /// The state it is in.
        state: &'static str,
    },
    /// A step of it failed; what was made before is undone.
    #[error("{act} sandbox {id}: {stage}")]
    Failed {
        /// `run`, `stop`, `remove`.
        act: &'static str,
        /// Which sandbox.
        id: SandboxId,
        /// The step.
        stage: &'static str,
        /// What the step said.
        #[source]
        source: std::sync::Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Containers or resources of it could not be taken down; a repeat goes on from there.
    #[error("{act} sandbox {id}: {failures}")]
    Teardown {
        /// `stop`, `remove`.
        act: &'static str,
        /// Which sandbox.
        id: SandboxId,
        /// Every failure, separated by `; `.
        failures: String,
    },
    /// The daemon is ending.
    #[error("{act}: the daemon is stopping; ask again when it is back")]
    Draining {
        /// What was asked.
        act: &'static str,
    },
}

impl SandboxError {
    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Exists { .. } => ErrorKind::Exists,
            Self::State { .. } => ErrorKind::State,
            Self::Failed { source, .. } => ErrorKind::of(source.as_ref()),
            Self::Teardown { .. } => ErrorKind::Internal,
            Self::Draining { .. } => ErrorKind::Unavailable,
        }
    }
}
