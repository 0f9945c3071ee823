//! What is to be done when a container is gone, beyond what its id finds: poststop hooks, groups of resctrl.
//! Blocks, as long as hooks take; on the blocking pool, while a container is removed. One look for a file when there is nothing.
//! Owns `aftermath.json` in the container's run directory, written before the first effect that it undoes.
//! Must never hold up a removal for a hook that fails.

use std::{io, path::PathBuf};

use keelson_shim::{
    launch::{self, ContainerState, Point},
    spec::Hook,
};
use serde::{Deserialize, Serialize};

use super::rdt;
use crate::{
    dirs::ContainerDir,
    store::{read_bounded, write_new},
};

/// As much as a CDI spec may have of it.
const FILE_MAX: u64 = 16 << 20;

/// The work that is left.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Aftermath {
    /// To run in the daemon's namespaces, in order, when all processes are gone.
    #[serde(default)]
    pub(crate) poststop: Vec<Hook>,
    /// To remove, in order.
    #[serde(default)]
    pub(crate) resctrl: Vec<PathBuf>,
}

impl Aftermath {
    /// Writes it down.
    pub(crate) fn record(&self, dir: &ContainerDir) -> io::Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        write_new(&dir.aftermath(), &serde_json::to_vec(self)?, 0o600)
    }
}

/// Does what is on record. A hook that fails is told in the log, and is not run again; a daemon that ends meanwhile runs it again.
pub(crate) fn settle(dir: &ContainerDir, id: &str) -> io::Result<()> {
    let text = match read_bounded(&dir.aftermath(), FILE_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let left: Aftermath = serde_json::from_slice(&text)?;
    let state = ContainerState::new(id, "stopped", 0, dir.path(), &Default::default());
    for hook in &left.poststop {
        // The specification: a warning, and life goes on.
        if let Err(error) = launch::run_hooks(Point::Poststop, std::slice::from_ref(hook), &state) {
            tracing::warn!(container = id, %error, "poststop hook");
        }
    }
    rdt::remove(&left.resctrl)?;
    std::fs::remove_file(dir.aftermath())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirs::StateDir;

    #[test]
    fn hooks_run_once_with_the_state_and_a_failure_stops_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let id = keelson_api::ContainerId::from_random([7; 32]);
        let state = StateDir::new(scratch.path().join("run"));
        state.make().unwrap();
        let dir = state.container(&id);
        dir.make().unwrap();
        settle(&dir, id.as_str()).unwrap();
        let hook = |script: String| Hook {
            path: "/bin/sh".into(),
            args: vec!["sh".into(), "-c".into(), script],
            timeout: Some(20),
            ..Hook::default()
        };
        let out = scratch.path().join("out");
        let left = Aftermath {
            poststop: vec![hook("exit 3".into()), hook(format!("cat >> {}; pwd >> {0}; env >> {0}", out.display()))],
            resctrl: vec![scratch.path().join("not-there")],
        };
        left.record(&dir).unwrap();
        settle(&dir, id.as_str()).unwrap();
        settle(&dir, id.as_str()).unwrap();
        let said = std::fs::read_to_string(&out).unwrap();
        assert_eq!(said.matches("\"status\":\"stopped\"").count(), 1, "{said}");
        assert!(said.contains(id.as_str()) && said.contains(&*dir.path().to_string_lossy()), "{said}");
        assert!(!said.contains("HOME=") && !said.contains("CARGO"), "nothing of the daemon's environment: {said}");
        Aftermath::default().record(&dir).unwrap();
        assert!(!dir.aftermath().exists());
    }
}
