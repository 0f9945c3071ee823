//! SIGHUP: the level of the log is read again from the configuration, and nothing else.
//! A task of the daemon, from before recovery to the end; from then on SIGHUP does not end the process. Owns the registration.
//! Must never end the daemon over a bad file, nor change what needs a restart.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, serve};
use crate::{config::Config, logging::Level};

/// What is needed to read it again.
pub(super) struct Reload {
    hangups: Signal,
    args: serve::Args,
    running: Config,
    level: Level,
}

impl Reload {
    /// Must be called inside a runtime.
    pub(super) fn new(args: serve::Args, running: Config, level: Level) -> Result<Self, CliError> {
        let hangups = signal(SignalKind::hangup());
        let hangups = hangups.map_err(|source| CliError::Host { act: "listen for signals", source })?;
        Ok(Self { hangups, args, running, level })
    }

    /// Until the daemon ends.
    pub(super) async fn run(mut self) {
        while self.hangups.recv().await.is_some() {
            let args = self.args.clone();
            match tokio::task::spawn_blocking(move || args.load()).await {
                Ok(Ok(config)) => self.take(&config),
                Ok(Err(error)) => {
                    tracing::error!(error = keelson_api::chain(&error), "SIGHUP: the configuration stays as it was");
                }
                // The runtime is going down.
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, config: &Config) {
        let (before, now) = (self.running.log.level, config.log.level);
        if let Err(error) = self.level.set(now) {
            tracing::error!(error = keelson_api::chain(&error), "SIGHUP: the level of the log stays as it was");
            return;
        }
        self.running.log.level = now;
        // At the level of a warning, so that whoever asked sees it at most levels.
        tracing::warn!(?before, ?now, "SIGHUP: level of the log");
        if *config != self.running {
            tracing::warn!(
                "SIGHUP: the configuration has other changes; they need a restart, which containers do not notice"
            );
        }
    }
}
