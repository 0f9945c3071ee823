//! The life of one container as a type: what state it is in, which requests that state takes, and what each of them means.
//! Pure, in the shim's only thread: no clock, no system call; effects are the supervisor's.
//! Owns the container in whichever state it is; there is no flag beside the state.
//! Must never let a request reach a container that cannot take it, nor lengthen a grace period that was promised.
//!
//! ```text
//!            Launch          Start             Stop, Delete           init ended
//!   Empty ----------> Created ------> Running --------------> Stopping ----------> Ending ------> Ended
//!     |                  |               |  init ended            ^                  ^    output drained,
//!     | Delete, last     |               +------------------------|------------------+    cgroup gone
//!     v peer gone        +----------------------------------------+ Stop, Delete     |
//!   (process ends)       +-----------------------------------------------------------+ init ended
//! ```

use std::time::{Duration, Instant};

use keelson_api::ExitRecord;
use keelson_api::shim::{self, Call};

use super::drain::Drain;

/// Where the container is in its life. `C` is the container.
#[derive(Debug)]
pub(super) enum Phase<C> {
    /// Not launched, or the launch failed.
    Empty,
    /// Init waits before exec.
    Created { container: C },
    /// The user's program runs. Nanoseconds since the epoch.
    Running { container: C, started_at: i64 },
    /// It is to end.
    Stopping { container: C, started_at: i64, end: End },
    /// Init is dead and its exit record written; the rest is being killed, the output drained.
    Ending { container: C, record: ExitRecord, drain: Drain },
    /// Everything is over; this process ends as soon as its replies are sent.
    Ended { record: ExitRecord },
}

/// How a container is being made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It has been sent this signal and has until then.
    Grace { signal: i32, kill_at: Instant },
    /// Everything in it has been sent SIGKILL; asked again then.
    Killed { again_at: Instant },
}

/// What a request comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Launch,
    Start,
    /// Tell the state.
    Tell,
    /// Tell how it ended.
    TellExit,
    Signal,
    /// Send the signal, if there is one that was not sent before, and kill then; answer at the end.
    Stop {
        signal: Option<i32>,
        kill_at: Instant,
    },
    /// Kill everything now; answer at the end.
    Kill,
    /// Nothing to do any more; answer at the end.
    AwaitEnd,
    Exec,
    Attach,
    /// End a session, if it has not ended by itself.
    EndSession,
    ReopenLog,
    /// Write the processes to files.
    Checkpoint,
    /// Start from files.
    Restore,
    /// Hold or let go.
    Pause,
    /// Answer, and end this process.
    End,
}

/// Why a request is refused: the state does not take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("a container has already been launched in this shim")]
    AlreadyLaunched,
    #[error("no container has been launched")]
    NotLaunched,
    #[error("the container has already been started")]
    AlreadyStarted,
    #[error("the container has not been started")]
    NotStarted,
    #[error("the container is being stopped")]
    Stopping,
    #[error("the container has ended")]
    Ended,
    #[error("a checkpoint or a restore of the container is under way")]
    Busy,
    #[error("the request names no call that this shim knows (protocol {})", shim::PROTOCOL)]
    Unknown,
}

/// A grace period longer than this is the same as this: no clock overflows.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What `call` means in `phase`.
pub(super) fn decide<C>(phase: &Phase<C>, call: &Call, now: Instant) -> Result<Step, Denied> {
    use Phase::{Created, Empty, Ended, Ending, Running, Stopping};
    match call {
        Call::Launch(_) => match phase {
            Empty => Ok(Step::Launch),
            Created { .. } | Running { .. } | Stopping { .. } | Ending { .. } | Ended { .. } => {
                Err(Denied::AlreadyLaunched)
            }
        },
        Call::Start(_) => match phase {
            Empty => Err(Denied::NotLaunched),
            Created { .. } => Ok(Step::Start),
            Running { .. } => Err(Denied::AlreadyStarted),
            Stopping { .. } => Err(Denied::Stopping),
            Ending { .. } | Ended { .. } => Err(Denied::Ended),
        },
        Call::State(_) => match phase {
            // Until the record may be told, the container counts as running.
            Empty | Created { .. } | Running { .. } | Stopping { .. } | Ending { .. } => Ok(Step::Tell),
            Ended { .. } => Ok(Step::TellExit),
        },
        Call::Signal(_) => match phase {
            Empty => Err(Denied::NotLaunched),
            Created { .. } | Running { .. } | Stopping { .. } => Ok(Step::Signal),
            Ending { .. } | Ended { .. } => Err(Denied::Ended),
        },
        Call::Stop(stop) => decide_stop(phase, stop, now),
        Call::ExecSync(_) | Call::OpenExec(_) => match phase {
            Empty => Err(Denied::NotLaunched),
            Created { .. } => Err(Denied::NotStarted),
            Running { .. } | Stopping { end: End::Grace { .. }, .. } => Ok(Step::Exec),
            Stopping { end: End::Killed { .. }, .. } => Err(Denied::Stopping),
            Ending { .. } | Ended { .. } => Err(Denied::Ended),
        },
        // Who is attached before the start misses nothing.
        Call::Attach(_) => match phase {
            Empty => Err(Denied::NotLaunched),
            Created { .. } | Running { .. } | Stopping { .. } => Ok(Step::Attach),
            Ending { .. } | Ended { .. } => Err(Denied::Ended),
        },
        Call::EndSession(_) => Ok(Step::EndSession),
        Call::ReopenLog(_) => match phase {
            Empty => Err(Denied::NotLaunched),
            Created { .. } | Running { .. } | Stopping { .. } | Ending { .. } => Ok(Step::ReopenLog),
            Ended { .. } => Err(Denied::Ended),
        },
        Call::Checkpoint(_) => match phase {
            Empty => Err(Denied::NotLaunched),
            Created { .. } => Err(Denied::NotStarted),
            Running { .. } => Ok(Step::Checkpoint),
            Stopping { .. } => Err(Denied::Stopping),
            Ending { .. } | Ended { .. } => Err(Denied::Ended),
        },
        Call::Restore(_) => match phase {
            Empty => Err(Denied::NotLaunched),
            Created { .. } => Ok(Step::Restore),
            Running { .. } => Err(Denied::AlreadyStarted),
            Stopping { .. } => Err(Denied::Stopping),
            Ending { .. } | Ended { .. } => Err(Denied::Ended),
        },
        Call::Pause(pause) => match phase {
            Empty => Err(Denied::NotLaunched),
            Created { .. } if pause.on => Err(Denied::NotStarted),
            Stopping { .. } if pause.on => Err(Denied::Stopping),
            Created { .. } | Running { .. } | Stopping { .. } => Ok(Step::Pause),
            Ending { .. } | Ended { .. } => Err(Denied::Ended),
        },
        Call::Delete(_) => match phase {
            Empty | Ended { .. } => Ok(Step::End),
            Created { .. } | Running { .. } | Stopping { .. } => Ok(Step::Kill),
            Ending { .. } => Ok(Step::AwaitEnd),
        },
    }
}

fn decide_stop<C>(phase: &Phase<C>, stop: &shim::Stop, now: Instant) -> Result<Step, Denied> {
    let grace = Duration::from_millis(stop.grace_ms).min(LONGEST_GRACE);
    match phase {
        Phase::Empty => Err(Denied::NotLaunched),
        // An init before exec has no program that could obey.
        Phase::Created { .. } => Ok(Step::Kill),
        Phase::Running { .. } if grace.is_zero() => Ok(Step::Kill),
        Phase::Running { .. } => Ok(Step::Stop { signal: Some(stop.signal), kill_at: now + grace }),
        Phase::Stopping { end: End::Grace { signal, kill_at }, .. } => {
            // A second SIGTERM means "at once" to many programs: the same signal is not sent again.
            let signal = (stop.signal != *signal).then_some(stop.signal);
            let kill_at = (*kill_at).min(now + grace);
            Ok(if grace.is_zero() { Step::Kill } else { Step::Stop { signal, kill_at } })
        }
        Phase::Stopping { end: End::Killed { .. }, .. } | Phase::Ending { .. } => Ok(Step::AwaitEnd),
        Phase::Ended { .. } => Ok(Step::TellExit),
    }
}

impl<C> Phase<C> {
    /// The container, while there is one.
    pub(super) fn container(&self) -> Option<&C> {
        match self {
            Phase::Empty | Phase::Ended { .. } => None,
            Phase::Created { container }
            | Phase::Running { container, .. }
            | Phase::Stopping { container, .. }
            | Phase::Ending { container, .. } => Some(container),
        }
    }

    /// As [`Phase::container`].
    pub(super) fn container_mut(&mut self) -> Option<&mut C> {
        match self {
            Phase::Empty | Phase::Ended { .. } => None,
            Phase::Created { container }
            | Phase::Running { container, .. }
            | Phase::Stopping { container, .. }
            | Phase::Ending { container, .. } => Some(container),
        }
    }

    /// When the user's program was started; 0 when it was not.
    pub(super) fn started_at(&self) -> i64 {
        match self {
            Phase::Empty | Phase::Created { .. } => 0,
            Phase::Running { started_at, .. } | Phase::Stopping { started_at, .. } => *started_at,
            Phase::Ending { record, .. } | Phase::Ended { record } => record.started_at,
        }
    }

    /// As told over the wire.
    pub(super) fn name(&self) -> shim::Phase {
        match self {
            Phase::Empty => shim::Phase::Empty,
            Phase::Created { .. } => shim::Phase::Created,
            Phase::Running { .. } | Phase::Stopping { .. } | Phase::Ending { .. } => shim::Phase::Running,
            Phase::Ended { .. } => shim::Phase::Stopped,
        }
    }

    /// The init has exec'd.
    pub(super) fn started(&mut self, started_at: i64) {
        *self = match std::mem::replace(self, Phase::Empty) {
            Phase::Created { container } => Phase::Running { container, started_at },
            other => other,
        };
    }

    /// The container is to end as `end` says.
    pub(super) fn stopping(&mut self, end: End) {
        let started_at = self.started_at();
        *self = match std::mem::replace(self, Phase::Empty) {
            Phase::Created { container } | Phase::Running { container, .. } | Phase::Stopping { container, .. } => {
                Phase::Stopping { container, started_at, end }
            }
            other => other,
        };
    }

    /// The init is dead and the record on disk.
    pub(super) fn ending(&mut self, record: ExitRecord, now: Instant) {
        *self = match std::mem::replace(self, Phase::Empty) {
            Phase::Created { container } | Phase::Running { container, .. } | Phase::Stopping { container, .. } => {
                Phase::Ending { container, record, drain: Drain::begin(now) }
            }
            other => other,
        };
    }

    /// Everything is over; gives the container up.
    pub(super) fn ended(&mut self) -> Option<C> {
        match std::mem::replace(self, Phase::Empty) {
            Phase::Ending { container, record, .. } => {
                *self = Phase::Ended { record };
                Some(container)
            }
            other => {
                *self = other;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
