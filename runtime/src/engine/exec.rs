//! Running a program in a running container.
//! Methods of the engine, on tokio workers; the program is its shim's. Owns nothing.
//! Must never leave an exec without a reader: a caller who goes away changes nothing.

use std::time::Duration;

use keelson_api::{ContainerId, shim::ExecSync};

use tracing::Instrument as _;

use super::Engine;
use crate::container::{self, ContainerError};

/// What an exec gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// At most 16 MiB.
    pub stdout: Vec<u8>,
    /// At most 16 MiB.
    pub stderr: Vec<u8>,
    /// Exit code, 128 + signal.
    pub exit_code: i32,
}

impl Engine {
    /// Runs a program in a running container to its end. `None`: no time limit.
    ///
    /// # Errors
    /// [`ContainerError::ExecTimeout`], or why it could not run.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        args: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, ContainerError> {
        if args.is_empty() || args.iter().any(|word| word.contains('\0')) {
            return Err(container::check::invalid("cmd", "is empty or has a NUL: say what to run"));
        }
        let act = "exec in";
        let shim = self.running(id, act)?;
        let exec_id = self.shared.random().map(keelson_api::ExecId::from_random);
        let exec_id = exec_id.map_err(|error| container::check::invalid("id", format!("no random bytes: {error}")))?;
        let timeout_ms = timeout.map_or(0, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX / 2).max(1));
        // On a task of its own: a caller who goes away does not leave the exec without a reader.
        let exec = async move { shim.exec(ExecSync { exec_id: exec_id.to_string(), args, timeout_ms }).await };
        let exec = tokio::spawn(exec.in_current_span());
        let result = match exec.await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => return Err(self.shim_failed(id, act, error).await),
            Err(_) => return Err(ContainerError::Draining { act: "exec in container" }),
        };
        match timeout {
            Some(timeout) if result.timed_out => Err(ContainerError::ExecTimeout { id: id.clone(), timeout }),
            Some(_) | None => {
                Ok(ExecOutput { stdout: result.stdout, stderr: result.stderr, exit_code: result.exit_code })
            }
        }
    }
}
