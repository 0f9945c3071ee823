//! The exit record: how a container ended, written by its shim to disk before anybody is told.
//! Plain data, shared by shim (writer) and daemon (reader, also after a restart). On disk it is one JSON object in
//! `exit.json` of the container's run directory (`docs/on-disk.md`). Must stay readable by older and newer daemons.

use serde::{Deserialize, Serialize};

/// How a container's init ended. Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Layout version of this record: 1.
    pub version: u32,
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: i32,
    /// The signal that ended it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// When the user's process was started, nanoseconds since the epoch; 0 when it never was.
    pub started_at: i64,
    /// When it ended, nanoseconds since the epoch.
    pub finished_at: i64,
    /// Whether the kernel's OOM killer ended a process of this container.
    #[serde(default)]
    pub oom_killed: bool,
}

impl ExitRecord {
    /// The layout version this crate writes.
    pub const VERSION: u32 = 1;
    /// File name in the container's run directory.
    pub const FILE: &'static str = "exit.json";
}
