//! What can go wrong with a cgroup, as the person who reads the pod's events has to see it.
//! Plain data; every thread.
//! Owns nothing.
//! Must never hide which file, which value and which errno it was.

use rustix::io::Errno;
use thiserror::Error;

use super::systemd::BusError;

/// An act on a cgroup that failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CgroupError {
    #[error("read `/proc/self/mountinfo`")]
    ReadMounts { source: Errno },
    #[error("find cgroup hierarchies: none is mounted; mount cgroup2 on /sys/fs/cgroup")]
    NoHierarchies,
    #[error("use cgroup path `{path}`: {reason}")]
    BadPath { path: String, reason: &'static str },
    #[error("use slice `{slice}`: {reason}")]
    BadSlice { slice: String, reason: &'static str },
    #[error("make cgroup `{path}`")]
    Make { path: String, source: Errno },
    #[error("make cgroup `{path}`: it exists and has processes or cgroups below it; is the container's name in use?")]
    Occupied { path: String },
    #[error("open cgroup `{path}`")]
    Open { path: String, source: Errno },
    #[error("write `{value}` to `{path}`")]
    Write { path: String, value: String, source: Errno },
    #[error("read `{path}`")]
    Read { path: String, source: Errno },
    #[error("understand `{path}`: found `{found}`")]
    Content { path: String, found: String },
    #[error(
        "set {setting}: this machine has no `{controller}` cgroup controller; enable it in the kernel, or leave the limit out"
    )]
    NoController { controller: &'static str, setting: String },
    #[error("set {setting}: the `{controller}` controller cannot be enabled below `{path}`")]
    Enable { controller: &'static str, setting: String, path: String, source: Errno },
    #[error("set {setting}: this kernel has no `{file}`{hint}")]
    NoFile { setting: String, file: String, hint: &'static str },
    #[error("set {setting}: {reason}")]
    Unsupported { setting: String, reason: &'static str },
    #[error("set {setting} to `{value}`: {reason}")]
    BadValue { setting: String, value: String, reason: &'static str },
    #[error(
        "lower the memory limit to {limit} bytes: {usage} bytes are in use that cannot be given up; free memory first, or choose a higher limit"
    )]
    Shrink { limit: u64, usage: u64 },
    #[error("set device rule `{rule}`: {reason}")]
    BadDevice { rule: String, reason: &'static str },
    #[error("{act} the device program of `{path}`")]
    DeviceProgram { act: &'static str, path: String, source: Errno },
    #[error("kill everything in `{path}`: {remaining} processes are still alive")]
    Kill { path: String, remaining: usize },
    #[error("remove cgroup `{path}`")]
    Remove { path: String, source: Errno },
    #[error("{act} systemd unit `{unit}`")]
    Unit { act: &'static str, unit: String, source: BusError },
    #[error("place process {pid} in unit `{unit}`: systemd put it in `{found}`")]
    Misplaced { pid: i32, unit: String, found: String },
}
