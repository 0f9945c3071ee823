//! Wall-clock time as CRI wants it.
//! Read in any task of the daemon. Owns nothing. Must never be used to order events: that is what ids and records are for.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
