//! Being asked to stop: SIGTERM from a service manager, SIGINT from a person.
//! Registered on a tokio runtime; from then on neither signal ends the process by itself. Owns both registrations.
//! Must never decide what stopping means.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::CliError;

/// Both signals, from now on.
pub(super) struct Stop {
    term: Signal,
    int: Signal,
}

impl Stop {
    /// Must be called inside a runtime.
    pub(super) fn new() -> Result<Self, CliError> {
        let listen = |kind| signal(kind).map_err(|source| CliError::Host { act: "listen for signals", source });
        Ok(Self { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    /// Waits for one of them, also one that came before; its name.
    pub(super) async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
