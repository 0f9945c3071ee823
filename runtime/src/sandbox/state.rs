//! The machine of a sandbox: its states with their data, and what may be asked in each.
//!
//! ```text
//!              made              Stop               all dead, network let go
//!   Creating --------> Ready ----------> Stopping -------------------------> NotReady
//!      | failed          | Remove            ^ recovery goes on                  | Remove
//!      v                 v                                                       v
//!   (undone, forgotten)  Stop first, then ---------------------------------> Removing -> (forgotten)
//!   a reboot: Creating is forgotten, Ready and Stopping become NotReady, Removing goes on.
//! ```
//! Pure: no lock, no await, no clock. Runs in the sandbox's task.
//! Must never hold a resource: those are beside it in the task.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::view::SandboxPhase;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    /// The intent is recorded; namespaces, network and files are being made.
    Creating,
    /// Containers can be made in it.
    Ready {
        /// Its addresses, the primary first.
        addresses: Vec<IpAddr>,
        /// Who holds the shared PID namespace.
        holder_pid: Option<i32>,
    },
    /// Its containers are being killed; its network goes then.
    Stopping,
    /// Nothing of it runs. What the kernel still holds of it is on the teardown queue until `released`.
    NotReady {
        /// Network, namespaces and mounts are given back.
        released: bool,
    },
    /// Its containers and files are being taken away.
    Removing,
}

/// What may be asked of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Make it ready: a repeat of the call that made it.
    Run,
    /// Make a container in it.
    CreateContainer,
    /// Kill what runs in it, let its network go.
    Stop,
    /// Stop it and take it away.
    Remove,
}

/// What to do about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Begin the work.
    Begin,
    /// Wait for the same work under way.
    Join,
    /// Wait for the work under way, then decide anew.
    After,
    /// Stop it; the request goes on then.
    StopFirst,
    /// It is so already.
    Done,
}

/// Not in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Denied {
    /// The state, as told to the caller.
    pub state: &'static str,
}

impl State {
    /// The state's name in an error.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Ready { .. } => "ready",
            Self::Stopping => "stopping",
            Self::NotReady { .. } => "not ready (stopped, or left from before a reboot)",
            Self::Removing => "being removed",
        }
    }

    /// What others see; `None`: nothing yet.
    pub(crate) fn phase(&self) -> Option<SandboxPhase> {
        match self {
            Self::Creating => None,
            Self::Ready { .. } => Some(SandboxPhase::Ready),
            Self::Stopping | Self::NotReady { .. } | Self::Removing => Some(SandboxPhase::NotReady),
        }
    }

    /// Its addresses, while it has them.
    pub(crate) fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Ready { addresses, .. } => addresses,
            Self::Creating | Self::Stopping | Self::NotReady { .. } | Self::Removing => &[],
        }
    }

    /// What it is after a reboot; `None`: it never was.
    pub(crate) fn after_reboot(&self) -> Option<Self> {
        match self {
            Self::Creating => None,
            Self::Ready { .. } | Self::Stopping | Self::NotReady { .. } => Some(Self::NotReady { released: false }),
            Self::Removing => Some(Self::Removing),
        }
    }
}

/// What to do about a request in a state.
pub(crate) fn decide(state: &State, request: Request) -> Result<Step, Denied> {
    let denied = Err(Denied { state: state.name() });
    match (request, state) {
        (Request::Run, State::Creating) => Ok(Step::Join),
        (Request::Run, State::Ready { .. }) => Ok(Step::Done),
        (Request::Run, State::Stopping | State::NotReady { .. } | State::Removing) => denied,

        (Request::CreateContainer, State::Ready { .. }) => Ok(Step::Begin),
        (Request::CreateContainer, State::Creating | State::Stopping | State::NotReady { .. } | State::Removing) => {
            denied
        }

        (Request::Stop, State::Creating) => Ok(Step::After),
        (Request::Stop, State::Ready { .. }) => Ok(Step::Begin),
        (Request::Stop, State::Stopping) => Ok(Step::Join),
        (Request::Stop, State::NotReady { .. } | State::Removing) => Ok(Step::Done),

        (Request::Remove, State::Creating) => Ok(Step::After),
        (Request::Remove, State::Ready { .. } | State::Stopping) => Ok(Step::StopFirst),
        (Request::Remove, State::NotReady { .. }) => Ok(Step::Begin),
        (Request::Remove, State::Removing) => Ok(Step::Join),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states() -> Vec<State> {
        vec![
            State::Creating,
            State::Ready { addresses: vec![], holder_pid: None },
            State::Stopping,
            State::NotReady { released: false },
            State::NotReady { released: true },
            State::Removing,
        ]
    }

    #[test]
    fn stop_and_remove_are_never_denied() {
        for state in states() {
            assert!(decide(&state, Request::Stop).is_ok(), "{state:?}");
            assert!(decide(&state, Request::Remove).is_ok(), "{state:?}");
        }
    }

    #[test]
    fn a_repeated_run_joins_or_returns_the_first_but_never_revives() {
        let answers: Vec<_> = states().iter().map(|state| decide(state, Request::Run).ok()).collect();
        assert_eq!(answers, [Some(Step::Join), Some(Step::Done), None, None, None, None]);
    }

    #[test]
    fn containers_are_made_in_ready_sandboxes_alone() {
        for state in states() {
            let ready = state.phase() == Some(SandboxPhase::Ready);
            assert_eq!(decide(&state, Request::CreateContainer).is_ok(), ready, "{state:?}");
        }
    }

    #[test]
    fn a_reboot_leaves_no_sandbox_ready_and_forgets_only_the_unborn() {
        for state in states() {
            let after = state.after_reboot();
            assert_eq!(after.is_none(), state == State::Creating, "{state:?}");
            assert!(after.is_none_or(|after| after.phase() == Some(SandboxPhase::NotReady)), "{state:?}");
        }
    }

    #[test]
    fn following_the_steps_every_request_ends() {
        // The model: what each step's completion makes of the state.
        for start in states() {
            for request in [Request::Run, Request::Stop, Request::Remove] {
                let mut state = start.clone();
                let mut turns = 0;
                loop {
                    turns += 1;
                    assert!(turns < 5, "{start:?} {request:?} goes round");
                    state = match (decide(&state, request), &state) {
                        (Ok(Step::Done | Step::Begin | Step::Join) | Err(_), _) => break,
                        (Ok(Step::After), _) => State::Ready { addresses: vec![], holder_pid: None },
                        (Ok(Step::StopFirst), _) => State::NotReady { released: false },
                    };
                }
            }
        }
    }
}
