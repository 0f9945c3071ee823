//! The machine of a container: its states with their data, what may be asked in each, and what events do to it.
//!
//! ```text
//!              launched            Start            started
//!   Creating ------------> Created -----> Starting -----------> Running
//!      | launch failed        | Stop          | start failed       | Stop (signal sent, grace runs)
//!      v                      v               v                    v
//!   (forgotten)            Stopping <---------|----------------- Stopping
//!                             | exit          | exit               | exit         Remove
//!                             +-----------> Exited <---------------+  ---------------------> Removing -> (forgotten)
//!   any of the living --- shim lost without an exit record ---> Unknown --- killed by cgroup ---> Exited(255)
//! ```
//! An exit may come in every living state (the process, or a recovery, says so). Pure: no lock, no await, no clock.
//! Runs in the sandbox's task. Must never hold a resource: those are beside it in the task.

use serde::{Deserialize, Serialize};

use super::view::{ContainerState, Exit, ExitReason};

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    /// The intent is recorded; snapshot, spec and shim are being made.
    Creating,
    /// Its init waits before exec.
    Created {
        /// Init.
        pid: i32,
    },
    /// The shim was told to let the init exec.
    Starting {
        /// Init.
        pid: i32,
    },
    /// The user's program runs.
    Running {
        /// Init.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// The shim was told to stop it.
    Stopping {
        /// Init.
        pid: i32,
        /// Nanoseconds since the epoch; 0: it never ran.
        started_at: i64,
        /// Milliseconds between signal and kill: told again after a restart of the daemon.
        grace_ms: u64,
    },
    /// Ended.
    Exited(Exit),
    /// The shim is gone and left no record; what it left running is being killed.
    Unknown {
        /// Nanoseconds since the epoch; 0: it never ran.
        started_at: i64,
    },
    /// Its files are being taken away.
    Removing(Exit),
}

/// What may be asked of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Let its program run.
    Start,
    /// Signal, then kill after so many milliseconds.
    Stop {
        /// See above.
        grace_ms: u64,
    },
    /// Take it away, killing it first if need be.
    Remove,
    /// Change its limits.
    Update,
}

/// What to do about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Begin the work.
    Begin,
    /// Wait for the same work under way.
    Join,
    /// Wait for it, and ask its shim for a shorter grace.
    Hasten {
        /// The new grace.
        grace_ms: u64,
    },
    /// Kill it (grace 0); the request goes on when it has exited.
    KillFirst,
    /// Wait for the creation or start under way; the request goes on after it.
    After,
    /// Nothing to do: it is so already.
    Done,
}

/// Not in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Denied {
    /// The state, as told to the caller.
    pub state: &'static str,
}

/// What happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Its init waits.
    Launched {
        /// Init.
        pid: i32,
    },
    /// A start is on its way to the shim.
    StartSent,
    /// Its program runs.
    Started {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Its program could not be run.
    StartFailed(Exit),
    /// A stop is on its way to the shim.
    StopSent {
        /// Milliseconds.
        grace_ms: u64,
    },
    /// It ended.
    Exited(Exit),
    /// Its shim is gone without a record.
    Lost,
    /// Its files are about to go.
    RemoveBegun,
    /// They could not all be taken; a repeat goes on.
    RemoveFailed,
}

impl State {
    /// The state's name in an error.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created { .. } => "created, not started",
            Self::Starting { .. } => "starting",
            Self::Running { .. } => "running",
            Self::Stopping { .. } => "stopping",
            Self::Exited(_) => "exited",
            Self::Unknown { .. } => "in an unknown state: its shim is gone",
            Self::Removing(_) => "being removed",
        }
    }

    /// What others see.
    pub(crate) fn outside(&self) -> ContainerState {
        match self {
            Self::Creating | Self::Created { .. } | Self::Starting { .. } | Self::Stopping { started_at: 0, .. } => {
                ContainerState::Created
            }
            Self::Running { started_at, .. } | Self::Stopping { started_at, .. } => {
                ContainerState::Running { started_at: *started_at }
            }
            Self::Exited(exit) | Self::Removing(exit) => ContainerState::Exited(exit.clone()),
            Self::Unknown { .. } => ContainerState::Unknown,
        }
    }

    /// Its init, while there is one.
    pub(crate) fn pid(&self) -> Option<i32> {
        match self {
            Self::Created { pid } | Self::Starting { pid } | Self::Running { pid, .. } | Self::Stopping { pid, .. } => {
                Some(*pid)
            }
            Self::Creating | Self::Exited(_) | Self::Unknown { .. } | Self::Removing(_) => None,
        }
    }

    /// Whether a process of it may still be there.
    pub(crate) fn alive(&self) -> bool {
        match self {
            Self::Creating
            | Self::Created { .. }
            | Self::Starting { .. }
            | Self::Running { .. }
            | Self::Stopping { .. }
            | Self::Unknown { .. } => true,
            Self::Exited(_) | Self::Removing(_) => false,
        }
    }

    /// When its program was started; 0: never.
    pub(crate) fn started_at(&self) -> i64 {
        match self {
            Self::Creating | Self::Created { .. } | Self::Starting { .. } => 0,
            Self::Running { started_at, .. } | Self::Stopping { started_at, .. } | Self::Unknown { started_at } => {
                *started_at
            }
            Self::Exited(exit) | Self::Removing(exit) => exit.started_at,
        }
    }

    /// The state after an event. Events that come too late (an answer after the exit) change nothing.
    pub(crate) fn after(&self, event: &Event) -> Self {
        match (self, event) {
            (Self::Creating, Event::Launched { pid }) => Self::Created { pid: *pid },
            (Self::Created { pid }, Event::StartSent) => Self::Starting { pid: *pid },
            (Self::Starting { pid } | Self::Created { pid }, Event::Started { started_at }) => {
                Self::Running { pid: *pid, started_at: *started_at }
            }
            // The stop overtook the answer to the start.
            (Self::Stopping { pid, started_at: 0, grace_ms }, Event::Started { started_at }) => {
                Self::Stopping { pid: *pid, started_at: *started_at, grace_ms: *grace_ms }
            }
            (Self::Starting { .. } | Self::Created { .. } | Self::Stopping { .. }, Event::StartFailed(exit)) => {
                Self::Exited(exit.clone())
            }
            (
                Self::Created { pid } | Self::Starting { pid } | Self::Running { pid, .. } | Self::Stopping { pid, .. },
                Event::StopSent { grace_ms },
            ) => Self::Stopping { pid: *pid, started_at: self.started_at(), grace_ms: *grace_ms },
            (Self::Exited(exit), Event::RemoveBegun) => Self::Removing(exit.clone()),
            (Self::Removing(exit), Event::RemoveFailed) => Self::Exited(exit.clone()),
            (state, Event::Exited(exit)) if state.alive() => Self::Exited(exit.clone()),
            (state, Event::Lost) if state.alive() => Self::Unknown { started_at: state.started_at() },
            (state, _) => state.clone(),
        }
    }
}

/// What to do about a request in a state.
pub(crate) fn decide(state: &State, request: &Request) -> Result<Step, Denied> {
    let denied = Err(Denied { state: state.name() });
    match (request, state) {
        // CRI and people repeat a start whose answer they lost: it is so already.
        (Request::Start, State::Running { .. }) => Ok(Step::Done),
        (Request::Start, State::Created { .. }) => Ok(Step::Begin),
        (Request::Start, State::Starting { .. }) => Ok(Step::Join),
        (
            Request::Start,
            State::Creating | State::Stopping { .. } | State::Exited(_) | State::Unknown { .. } | State::Removing(_),
        ) => denied,

        (Request::Stop { .. }, State::Exited(_) | State::Removing(_)) => Ok(Step::Done),
        (Request::Stop { grace_ms }, State::Stopping { grace_ms: now, .. }) if grace_ms < now => {
            Ok(Step::Hasten { grace_ms: *grace_ms })
        }
        (Request::Stop { .. }, State::Stopping { .. }) => Ok(Step::Join),
        (Request::Stop { .. }, State::Created { .. } | State::Starting { .. } | State::Running { .. }) => {
            Ok(Step::Begin)
        }
        (Request::Stop { .. } | Request::Remove, State::Creating) => Ok(Step::After),
        (Request::Stop { .. } | Request::Remove, State::Unknown { .. }) => Ok(Step::KillFirst),

        (Request::Remove, State::Exited(_)) => Ok(Step::Begin),
        (Request::Remove, State::Removing(_)) => Ok(Step::Join),
        (
            Request::Remove,
            State::Created { .. } | State::Starting { .. } | State::Running { .. } | State::Stopping { .. },
        ) => Ok(Step::KillFirst),

        (Request::Update, State::Created { .. } | State::Starting { .. } | State::Running { .. }) => Ok(Step::Begin),
        (
            Request::Update,
            State::Creating | State::Stopping { .. } | State::Exited(_) | State::Unknown { .. } | State::Removing(_),
        ) => denied,
    }
}

impl Exit {
    /// What an exit record says, in the words of a view.
    #[must_use]
    pub fn of(record: &keelson_api::ExitRecord) -> Self {
        let reason = if record.oom_killed && record.code != 0 {
            ExitReason::OomKilled
        } else if record.code == 0 {
            ExitReason::Completed
        } else {
            ExitReason::Error
        };
        let message = match (reason, record.signal) {
            (ExitReason::OomKilled, _) => "killed by the kernel: out of memory under its limit".to_owned(),
            (_, Some(signal)) => format!("ended by signal {signal}"),
            (_, None) => String::new(),
        };
        Self { code: record.code, reason, message, started_at: record.started_at, finished_at: record.finished_at }
    }

    /// Nobody saw how it ended.
    #[must_use]
    pub fn unseen(started_at: i64, finished_at: i64, message: &str) -> Self {
        Self { code: 255, reason: ExitReason::Unknown, message: message.to_owned(), started_at, finished_at }
    }

    /// Its program could not be run.
    #[must_use]
    pub fn not_started(finished_at: i64, message: String) -> Self {
        Self { code: 128, reason: ExitReason::StartError, message, started_at: 0, finished_at }
    }
}

#[cfg(test)]
mod tests;
