//! Seeing inside the daemon: what is counted, where it is read, and how traces leave.
//! Counting runs wherever the work runs, in a few relaxed atomic additions; reading runs on the daemon's workers when somebody asks.
//! Owns every counter of the daemon, the page that shows them and the exporter of traces; other rooms use `tracing` macros and
//! `observe::counters()`. Must never block or fail the work it looks at, and never hold an id as a label.

mod counters;
mod exposition;
mod number;
mod rpcs;
mod stage;

pub(crate) use counters::{Counters, counters};
pub(crate) use number::{Counter, Gauge, Held, Histogram};
pub(crate) use stage::Stage;
