//! A CRIU for the scenarios that need one: the system's where it works on this kernel, else the one that `tools/build-criu` built.
//! In the test process. Owns nothing; never builds anything itself.

use std::{path::PathBuf, process::Command};

/// A program that works here, or why there is none. `KEELSON_TEST_CRIU` names the only one to be looked at.
pub fn program() -> Result<String, String> {
    let candidates = match std::env::var_os("KEELSON_TEST_CRIU") {
        Some(path) => vec![PathBuf::from(path)],
        None => vec!["/usr/sbin/criu".into(), crate::cache::dir().join("criu-trixie/criu")],
    };
    let mut reasons = Vec::new();
    for program in candidates {
        let program = program.to_string_lossy().into_owned();
        let reason = match Command::new(&program).arg("check").output() {
            Ok(output) if output.status.success() => return Ok(program),
            Ok(output) => String::from_utf8_lossy(&output.stderr).lines().next_back().unwrap_or_default().to_owned(),
            Err(error) => error.to_string(),
        };
        reasons.push(format!("`{program} check`: {reason}"));
    }
    Err(format!("{} (e2e/tools/build-criu builds one)", reasons.join("; ")))
}
