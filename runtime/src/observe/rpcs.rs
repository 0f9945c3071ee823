//! How long each RPC took, by its name and its gRPC code.
//! Written by the task of the RPC, read by the page. Owns one histogram per name and code; a name takes a slot the first time it is seen.
//! Must never grow: names come from the program, and what finds no slot is counted together.

use std::{sync::OnceLock, time::Duration};

use super::number::{Gauge, Histogram, Reading};

/// gRPC's codes, in their numbers' order.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const UNKNOWN: usize = 2;
/// More names than the protocol has.
const SLOTS: usize = 64;

/// See the module. Pages of it that no RPC has touched cost no memory.
#[derive(Debug)]
pub(crate) struct Rpcs {
    slots: [Slot; SLOTS],
    other: Slot,
    /// RPCs that have no answer yet.
    pub(crate) in_flight: Gauge,
}

#[derive(Debug)]
struct Slot {
    name: OnceLock<&'static str>,
    codes: [Histogram; CODES.len()],
}

impl Slot {
    const fn new() -> Self {
        Self { name: OnceLock::new(), codes: [const { Histogram::new() }; CODES.len()] }
    }
}

impl Rpcs {
    pub(super) const fn new() -> Self {
        Self { slots: [const { Slot::new() }; SLOTS], other: Slot::new(), in_flight: Gauge::new() }
    }

    /// An RPC of this name ended with this gRPC code after so long.
    pub(crate) fn ended(&self, rpc: &'static str, code: i32, took: Duration) {
        let named = self.slots.iter().find(|slot| *slot.name.get_or_init(|| rpc) == rpc);
        let slot = named.unwrap_or(&self.other);
        let code = usize::try_from(code).ok().filter(|code| *code < CODES.len()).unwrap_or(UNKNOWN);
        if let Some(histogram) = slot.codes.get(code) {
            histogram.observe(took);
        }
    }

    /// Name, code and times of those that ended at least once, in the order the names were first seen.
    pub(super) fn read(&self) -> impl Iterator<Item = (&'static str, &'static str, Reading)> {
        let named = self.slots.iter().map_while(|slot| Some((*slot.name.get()?, slot)));
        named.chain([("other", &self.other)]).flat_map(|(name, slot)| {
            let codes = CODES.iter().zip(&slot.codes).map(move |(code, histogram)| (name, *code, histogram.read()));
            codes.filter(|(_, _, reading)| reading.count() != 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_are_kept_apart_and_strangers_together() {
        static RPCS: Rpcs = Rpcs::new();
        RPCS.ended("Version", 0, Duration::from_millis(1));
        RPCS.ended("Status", 0, Duration::from_millis(1));
        RPCS.ended("Version", 5, Duration::from_millis(1));
        RPCS.ended("Version", 99, Duration::from_millis(1));
        let seen = || RPCS.read().map(|(name, code, reading)| (name, code, reading.count())).collect::<Vec<_>>();
        assert_eq!(
            seen(),
            [("Version", "OK", 1), ("Version", "UNKNOWN", 1), ("Version", "NOT_FOUND", 1), ("Status", "OK", 1)]
        );
        for at in 0..SLOTS {
            RPCS.ended(Box::leak(format!("Rpc{at}").into_boxed_str()), 0, Duration::ZERO);
        }
        assert_eq!(seen().last(), Some(&("other", "OK", 2)));
        assert_eq!(seen().len(), 4 + SLOTS - 2 + 1);
    }
}
