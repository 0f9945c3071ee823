//! The daemon's log: events and spans to stderr, as lines for a person or as JSON for a collector.
//! Set up once on the main thread before anything can log; written to from every thread.
//! Owns the process-wide subscriber. Must never be set up by a library or a test: only `keelson serve` has a log.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::LevelFilter;

use crate::config::{Log, LogFormat, LogLevel};

/// A second log was set up in one process.
#[derive(Debug, thiserror::Error)]
#[error("set up the log")]
pub struct LogError {
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Sends every event of this process at or above the level to stderr.
///
/// # Errors
/// The process has a log already.
pub fn init(log: Log) -> Result<(), LogError> {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colours).with_target(false).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    }
    .map_err(|source| LogError { source })
}

/// An error and what caused it, outermost first, each once: `run sandbox 3f2a: create netns: EPERM`.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries print their source themselves.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        #[source]
        source: Option<Box<Layer>>,
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        let inner = Layer { text: "EPERM", source: None };
        let middle = Layer { text: "mount: EPERM", source: Some(Box::new(inner)) };
        let outer = Layer { text: "run sandbox 3f2a", source: Some(Box::new(middle)) };
        assert_eq!(chain(&outer), "run sandbox 3f2a: mount: EPERM");
    }
}
