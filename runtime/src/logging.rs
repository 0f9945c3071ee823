//! The daemon's log: events and spans to stderr, as lines for a person or as JSON for a collector; its level can change while it runs.
//! Set up once on the main thread before anything can log; written to from every thread.
//! Owns the process-wide subscriber, in which traces to a collector are the second layer.
//! Must never be set up by a library or a test: only `keelson serve` has a log. Must never write what a library says below a
//! warning: HTTP libraries tell headers there, and headers hold credentials (T9).

use std::io::IsTerminal as _;

use tracing_subscriber::{
    Layer as _, Registry,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    reload,
    util::SubscriberInitExt as _,
};

use crate::{
    config::{Log, LogFormat, LogLevel},
    observe::trace::Tracer,
};

/// What every crate of ours is called, and so where its events come from.
const OURS: &str = "keelson";

/// Why there is no log, or not another level of it.
#[derive(Debug, thiserror::Error)]
#[error("{act}")]
pub struct LogError {
    act: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// The level of the log, to be changed while it is written.
#[derive(Debug, Clone)]
pub struct Level(reload::Handle<Targets, Registry>);

impl Level {
    /// From now on this is the level.
    ///
    /// # Errors
    /// The log has ended.
    pub fn set(&self, level: LogLevel) -> Result<(), LogError> {
        let changed = self.0.reload(targets(level));
        changed.map_err(|error| LogError { act: "change the level of the log", source: Box::new(error) })
    }
}

/// Sends every event of this process at or above the level to stderr, and spans to the tracer, if there is one.
///
/// # Errors
/// The process has a log already.
pub(crate) fn init(log: Log, tracer: Option<&Tracer>) -> Result<Level, LogError> {
    let (filter, handle) = reload::Layer::new(targets(log.level));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match log.format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(colours).with_target(false).with_filter(filter).boxed()
        }
        // All spans, so that the ids of an outer one are in the line; the first is the call's.
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(true).with_filter(filter).boxed()
        }
    };
    let subscriber = tracing_subscriber::registry().with(lines);
    match tracer {
        Some(tracer) => subscriber.with(tracer.layer()).try_init(),
        None => subscriber.try_init(),
    }
    .map_err(|source| LogError { act: "set up the log", source: Box::new(source) })?;
    Ok(Level(handle))
}

fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target(OURS, level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libraries_say_below_a_warning_is_never_written() {
        use tracing::Level;
        let all = targets(LogLevel::Trace);
        for ours in ["keelson_runtime::cri::rpc", "keelson_imageservice", "keelson"] {
            assert!(all.would_enable(ours, &Level::TRACE), "{ours}");
        }
        for theirs in ["hyper::proto", "h2::codec", "reqwest::connect", "tonic", "rustls"] {
            assert!(!all.would_enable(theirs, &Level::INFO), "{theirs}");
            assert!(all.would_enable(theirs, &Level::WARN), "{theirs}");
        }
        assert!(!targets(LogLevel::Error).would_enable("h2", &Level::WARN));
    }
}
