//! Seeing inside the daemon: what is counted, where it is read, and how traces leave.
//! Counting runs wherever the work runs, in a few relaxed atomic additions; reading runs on the daemon's workers when somebody asks.
//! Owns every counter of the daemon, the page that shows them and the exporter of traces; other rooms use `tracing` macros and
//! `observe::counters()`. Must never block or fail the work it looks at, and never hold an id as a label.

mod counters;
mod exposition;
mod number;
mod page;
mod process;
mod rpcs;
mod server;
mod stage;
pub(crate) mod trace;

pub(crate) use counters::{Counters, counters};
pub(crate) use number::Held;
pub(crate) use server::Endpoint;
pub use server::EndpointError;
pub(crate) use stage::Stage;
pub use trace::TraceError;
