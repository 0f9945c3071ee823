//! What others see of a container: an immutable value replaced at each change by the task of the container's sandbox.
//! Read from any task without waiting; lists and statuses are made of these alone.
//! Owns no resource. Must never be built from anything but the machine's state.

use std::{path::PathBuf, sync::Arc};

use keelson_api::{ContainerId, SandboxId};
use serde::{Deserialize, Serialize};

use super::spec::{ContainerSpec, Volume};
use crate::resources::Resources;

/// Where a container is in its life, as far as others care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started (or about to be).
    Created,
    /// Its process runs (also while being stopped).
    Running {
        /// Since when, nanoseconds since the epoch.
        started_at: i64,
    },
    /// Ended.
    Exited(Exit),
    /// Keelson cannot tell; only stop and remove make sense.
    Unknown,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, 128 + signal.
    pub code: i32,
    /// In one word.
    pub reason: ExitReason,
    /// In a sentence; empty when the code says all.
    pub message: String,
    /// When its process was started, nanoseconds since the epoch; 0: never.
    pub started_at: i64,
    /// When it ended, nanoseconds since the epoch.
    pub finished_at: i64,
}

/// Why a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Another exit code, or a signal.
    Error,
    /// The kernel's OOM killer.
    OomKilled,
    /// Its program could not be started.
    StartError,
    /// Nobody saw its end (code 255).
    Unknown,
}

/// The user the process began as.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub additional_gids: Vec<u32>,
}

/// A container as it is now.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Its id.
    pub id: ContainerId,
    /// In which sandbox.
    pub sandbox: SandboxId,
    /// What was asked for.
    pub spec: Arc<ContainerSpec>,
    /// In its life.
    pub state: ContainerState,
    /// When it was asked for, nanoseconds since the epoch; strictly increasing within one daemon.
    pub created_at: i64,
    /// Id of its image, `sha256:..`.
    pub image_id: String,
    /// The image as `repository@digest` where it has one, else its id.
    pub image_ref: String,
    /// Log file, absolute; empty: none.
    pub log_path: PathBuf,
    /// Volumes with the host paths as resolved, those of the image included.
    pub volumes: Vec<Volume>,
    /// Limits as they are applied now.
    pub resources: Resources,
    /// Linux signal number that stops it.
    pub stop_signal: i32,
    /// The user its process began as.
    pub user: User,
    /// Its init in the daemon's PID namespace, while there is one.
    pub pid: Option<i32>,
    /// Its run directory.
    pub run_dir: PathBuf,
}
