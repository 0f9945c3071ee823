//! What of the changes of a sandbox and its containers is told to those who listen to events.
//! Part of the sandbox's task, so that each sandbox's events are in order; nothing here waits.
//! Owns nothing. Must never tell of a state that cannot be seen yet: views are replaced first.

use keelson_api::ContainerId;

use super::Task;
use crate::{container::state::State, engine::events::EventKind};

impl Task {
    /// The sandbox itself has come to this.
    pub(super) fn tell(&self, kind: EventKind) {
        self.shared.events.tell(kind, None, || self.entry.view(), || self.shared.created_now());
    }

    /// A container of it has come to this.
    pub(super) fn tell_of(&self, id: &ContainerId, kind: EventKind) {
        self.shared.events.tell(kind, Some(id), || self.entry.view(), || self.shared.created_now());
    }
}

/// The last event of a container's life so far; none while it is being made.
pub(super) fn reached(state: &State) -> Option<EventKind> {
    match state {
        State::Creating => None,
        State::Created { .. }
        | State::Starting { .. }
        | State::Stopping { started_at: 0, .. }
        | State::Unknown { started_at: 0 } => Some(EventKind::Created),
        State::Running { .. } | State::Stopping { .. } | State::Unknown { .. } => Some(EventKind::Started),
        State::Exited(_) | State::Removing(_) => Some(EventKind::Stopped),
    }
}
