//! Why an operation on a container failed, in words a person can act on and kinds a face can map to its own codes.
//! Plain values, made by the sandbox's task and read by faces. Owns nothing.
//! Must never carry its source in its own text: the chain is printed once, by the room that stops the error.

use std::{path::PathBuf, time::Duration};

use keelson_api::ContainerId;

use crate::engine::ErrorKind;

/// See the variants.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ContainerError {
    /// No container with this id.
    #[error("container `{id}` not found")]
    NotFound {
        /// The id or prefix asked for, cut to 80 characters.
        id: String,
    },
    /// No sandbox with this id.
    #[error("sandbox `{id}` not found")]
    SandboxNotFound {
        /// The id asked for, cut to 80 characters.
        id: String,
    },
    /// The sandbox is not ready.
    #[error("create container in sandbox {sandbox}: it is {state}")]
    SandboxState {
        /// Which sandbox.
        sandbox: String,
        /// The state it is in.
        state: &'static str,
    },
    /// The request is wrong; nothing was touched.
    #[error("container spec: {field}: {reason}")]
    Invalid {
        /// Which part of the request.
        field: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// The image is not on the node.
    #[error("image `{image}` is not on this node: pull it first")]
    ImageMissing {
        /// As asked for.
        image: String,
    },
    /// An image cannot be mounted as a volume.
    #[error("mount image `{image}` on `{}`: {reason}", path.display())]
    ImageVolume {
        /// As asked for.
        image: String,
        /// Where in the container.
        path: PathBuf,
        /// Why, with all causes.
        reason: String,
        /// What kind of failure it is.
        kind: ErrorKind,
    },
    /// The host or this version lacks what the request needs.
    #[error("container spec: {field}: {reason}")]
    Unsupported {
        /// Which part of the request.
        field: String,
        /// What is lacking.
        reason: String,
    },
    /// A file of the image is not what it must be.
    #[error("read `{path}` of the image: {reason}")]
    ImageFile {
        /// In the image.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The container is not in a state for this.
    #[error("{act} container {id}: it is {state}")]
    State {
        /// What was asked.
        act: &'static str,
        /// Which container.
        id: ContainerId,
        /// The state it is in.
        state: &'static str,
    },
    /// The shim or the kernel refused a step; what was made before is undone.
    #[error("{act} container {id}: {stage}")]
    Failed {
        /// `create`, `start`, ..
        act: &'static str,
        /// Which container.
        id: ContainerId,
        /// The step.
        stage: &'static str,
        /// What the step said.
        #[source]
        source: std::sync::Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The program could not be started; the container has exited with `StartError`.
    #[error("start container {id}: {message}")]
    Start {
        /// Which container.
        id: ContainerId,
        /// Step, object, errno and hint.
        message: String,
        /// The request is to blame, not the host.
        invalid: bool,
    },
    /// The exec took longer than allowed; everything it started is killed.
    #[error("exec in container {id}: timed out after {timeout:?}, killed")]
    ExecTimeout {
        /// Which container.
        id: ContainerId,
        /// The limit.
        timeout: Duration,
    },
    /// A checkpoint could not be written or restored.
    #[error("{act}{}", of(id.as_ref()))]
    Checkpoint {
        /// `checkpoint`, `open checkpoint`, ..
        act: &'static str,
        /// Which container, when there is one.
        id: Option<ContainerId>,
        /// Why.
        #[source]
        source: crate::checkpoint::CheckpointError,
    },
    /// The daemon is ending.
    #[error("{act}: the daemon is stopping; ask again when it is back")]
    Draining {
        /// What was asked.
        act: &'static str,
    },
}

impl ContainerError {
    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::SandboxNotFound { .. } | Self::ImageMissing { .. } => ErrorKind::NotFound,
            Self::Invalid { .. } | Self::ImageFile { .. } | Self::Start { invalid: true, .. } => ErrorKind::Invalid,
            Self::ImageVolume { kind, .. } => *kind,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::State { .. } | Self::SandboxState { .. } => ErrorKind::State,
            Self::Failed { source, .. } => ErrorKind::of(source.as_ref()),
            Self::Start { invalid: false, .. } => ErrorKind::Internal,
            Self::Checkpoint { source, .. } => source.kind(),
            Self::ExecTimeout { .. } => ErrorKind::Timeout,
            Self::Draining { .. } => ErrorKind::Unavailable,
        }
    }
}

fn of(id: Option<&ContainerId>) -> String {
    id.map(|id| format!(" container {id}")).unwrap_or_default()
}
