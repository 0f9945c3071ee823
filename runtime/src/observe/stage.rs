//! The stages of a pod's start: each has a span for the trace and a histogram for the page, by one call around the work.
//! Runs on whatever thread does the stage. Owns the list of stages. Must never change what the work does or returns.

use std::{fmt::Display, future::Future, time::Instant};

use tracing::{Instrument as _, Span, span::EnteredSpan};

use super::counters;

/// A stage of making a sandbox or a container, and of starting one. A failed stage is counted like one that went well:
/// the failure itself is in the log and in the RPC's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Sandbox: its cgroup parent.
    Cgroup,
    /// Sandbox: run directory and recorded intent.
    Reserve,
    /// Sandbox: namespaces made, set up and pinned.
    Namespaces,
    /// Sandbox: attached to the network.
    Network,
    /// Sandbox: resolver, host name, /dev/shm; beside namespaces and network.
    Files,
    /// Sandbox: the holder of a shared PID namespace.
    Holder,
    /// Container: run directory and recorded intent.
    ContainerReserve,
    /// Container: the directories of its writable layer.
    Snapshot,
    /// Container: user, volumes, OCI spec, system call filter.
    Spec,
    /// Container: its shim's process.
    ShimSpawn,
    /// Container: the shim makes cgroup, overlay mount and the init that waits.
    Launch,
    /// Container: the init executes the program.
    Start,
}

/// How many there are.
pub(super) const STAGES: usize = 12;

impl Stage {
    pub(super) const ALL: [Self; STAGES] = [
        Self::Cgroup,
        Self::Reserve,
        Self::Namespaces,
        Self::Network,
        Self::Files,
        Self::Holder,
        Self::ContainerReserve,
        Self::Snapshot,
        Self::Spec,
        Self::ShimSpawn,
        Self::Launch,
        Self::Start,
    ];

    /// What the page and the trace call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Reserve => "reserve",
            Self::Namespaces => "namespaces",
            Self::Network => "network",
            Self::Files => "files",
            Self::Holder => "holder",
            Self::ContainerReserve => "container_reserve",
            Self::Snapshot => "snapshot",
            Self::Spec => "spec",
            Self::ShimSpawn => "shim_spawn",
            Self::Launch => "launch",
            Self::Start => "start",
        }
    }

    fn of_container(self) -> bool {
        match self {
            Self::Cgroup | Self::Reserve | Self::Namespaces | Self::Network | Self::Files | Self::Holder => false,
            Self::ContainerReserve | Self::Snapshot | Self::Spec | Self::ShimSpawn | Self::Launch | Self::Start => true,
        }
    }

    /// The stage lasts, on this thread, until what this returns is dropped; `id` is the sandbox's or the container's.
    #[must_use = "the stage ends when this is dropped"]
    pub(crate) fn begin(self, id: &impl Display) -> Running {
        Running { stage: self, begun: Instant::now(), _inside: self.span(id).entered() }
    }

    /// Does the stage's work on this thread; `id` is the sandbox's or the container's.
    pub(crate) fn run<T>(self, id: &impl Display, work: impl FnOnce() -> T) -> T {
        let _running = self.begin(id);
        work()
    }

    /// Awaits the stage's work; `id` is the sandbox's or the container's.
    pub(crate) async fn wait<T>(self, id: &impl Display, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let done = work.instrument(self.span(id)).await;
        self.ended(begun);
        done
    }

    fn span(self, id: &impl Display) -> Span {
        let (stage, container) = (self.name(), self.of_container());
        let sandbox = (!container).then(|| tracing::field::display(id));
        let container = container.then(|| tracing::field::display(id));
        tracing::debug_span!("stage", stage, sandbox, container)
    }

    fn ended(self, begun: Instant) {
        // In the order of `ALL`.
        if let Some(histogram) = counters().stages.get(self as usize) {
            histogram.since(begun);
        }
    }
}

/// A stage that is under way on this thread.
pub(crate) struct Running {
    stage: Stage,
    begun: Instant,
    _inside: EnteredSpan,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stage.ended(self.begun);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_its_own_place_and_name() {
        let mut names: Vec<&str> = Stage::ALL.iter().map(|stage| stage.name()).collect();
        assert!(Stage::ALL.iter().enumerate().all(|(at, stage)| *stage as usize == at));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), STAGES);
    }
}
