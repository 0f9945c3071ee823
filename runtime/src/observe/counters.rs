//! Every counter of the daemon, in one struct that is one static: a room writes to its fields, the page reads them all.
//! Written from any thread. Owns the numbers, not what they count. Must never have a field whose number of values is not bounded.

use super::{
    number::{Counter, Gauge, Histogram},
    rpcs::Rpcs,
    stage::STAGES,
};
use crate::container::view::ExitReason;

/// See the module. A new field also needs a line in `page.rs`.
#[derive(Debug)]
pub(crate) struct Counters {
    /// RPCs of both services.
    pub(crate) rpcs: Rpcs,
    /// By [`super::Stage`].
    pub(crate) stages: [Histogram; STAGES],

    /// Containers that ended with exit code 0.
    pub(crate) exits_success: Counter,
    /// With another exit code, or by a signal.
    pub(crate) exits_failure: Counter,
    /// Killed by the kernel: out of memory.
    pub(crate) exits_oom: Counter,
    /// Never ran: the program could not be executed.
    pub(crate) exits_start_failed: Counter,
    /// Nobody saw how: the shim was lost.
    pub(crate) exits_lost: Counter,

    /// Calls to shims that were sent.
    pub(crate) shim_calls: Counter,
    /// Calls that a shim refused with words.
    pub(crate) shim_refused: Counter,
    /// Calls that a shim did not answer in time.
    pub(crate) shim_deadline: Counter,
    /// Calls whose shim went away before the answer.
    pub(crate) shim_gone: Counter,
    /// Answers that do not fit the call, frames that cannot be read, calls too long to send.
    pub(crate) shim_protocol: Counter,

    /// Work on the blocking pool, running or waiting for a thread.
    pub(crate) blocking: Gauge,

    /// Records of what has ended that were removed because there were too many.
    pub(crate) records_retired: Counter,

    /// Subscribers of container events.
    pub(crate) event_subscribers: Gauge,
    /// Events sent to subscribers.
    pub(crate) events_sent: Counter,
    /// Events that a subscriber did not get because it was too slow.
    pub(crate) events_dropped: Counter,
    /// Subscribers that were let go because they were too slow.
    pub(crate) event_subscribers_dropped: Counter,

    /// Sessions of exec, attach and port-forward that are open.
    pub(crate) streaming_sessions: Gauge,
    /// Sessions that were opened.
    pub(crate) streaming_opened: Counter,
    /// Requests for a session that were refused: no token, an old one, no common protocol.
    pub(crate) streaming_refused: Counter,

    /// Spans that a collector has taken.
    pub(crate) spans_exported: Counter,
    /// Spans that were dropped: the queue was full, or the collector did not take them.
    pub(crate) spans_dropped: Counter,
}

impl Counters {
    /// A container has ended.
    pub(crate) fn exited(&self, reason: ExitReason) {
        match reason {
            ExitReason::Completed => self.exits_success.one(),
            ExitReason::Error => self.exits_failure.one(),
            ExitReason::OomKilled => self.exits_oom.one(),
            ExitReason::StartError => self.exits_start_failed.one(),
            ExitReason::Unknown => self.exits_lost.one(),
        }
    }
}

/// The daemon's counters.
pub(crate) fn counters() -> &'static Counters {
    static COUNTERS: Counters = Counters {
        rpcs: Rpcs::new(),
        stages: [const { Histogram::new() }; STAGES],
        exits_success: Counter::new(),
        exits_failure: Counter::new(),
        exits_oom: Counter::new(),
        exits_start_failed: Counter::new(),
        exits_lost: Counter::new(),
        shim_calls: Counter::new(),
        shim_refused: Counter::new(),
        shim_deadline: Counter::new(),
        shim_gone: Counter::new(),
        shim_protocol: Counter::new(),
        blocking: Gauge::new(),
        records_retired: Counter::new(),
        event_subscribers: Gauge::new(),
        events_sent: Counter::new(),
        events_dropped: Counter::new(),
        event_subscribers_dropped: Counter::new(),
        streaming_sessions: Gauge::new(),
        streaming_opened: Counter::new(),
        streaming_refused: Counter::new(),
        spans_exported: Counter::new(),
        spans_dropped: Counter::new(),
    };
    &COUNTERS
}
