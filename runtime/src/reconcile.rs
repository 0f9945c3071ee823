//! The reconciler: every few seconds each sandbox's task is told to compare its records with the kernel. Level-triggered and slow:
//! events (a shim's end-of-file) are the fast path, this is the net below it.
//! One tokio task of the engine, ended with it. Owns nothing. Must never act itself: only the sandbox's task changes a sandbox.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{engine::shared::Shared, retire, sandbox::task::Command};

/// Between two comparisons.
const PERIOD: Duration = Duration::from_secs(10);

/// Runs until the engine is gone.
pub(crate) async fn run(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(shared) = shared.upgrade().filter(|shared: &Arc<Shared>| !shared.is_draining()) else { return };
        for entry in shared.table.all_sandboxes() {
            // A task with a full queue is awake anyway.
            let _ = entry.commands.try_send(Command::Reconcile);
            entry.stats.rest();
        }
        for entry in shared.table.container_entries() {
            entry.stats.rest();
        }
        retire::retire(&shared);
    }
}
