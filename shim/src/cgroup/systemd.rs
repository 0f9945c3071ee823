//! Scopes: systemd makes the cgroup, so that it knows whose it is and leaves its inside alone.
//! Blocking, at most 30 seconds for each act; the shim around create and remove, never on the path of the cgroupfs driver.
//! Owns a connection for the length of one act: neither a restarted bus nor a re-executed systemd leaves a broken one behind.
//! Must never send a property that is not made here from checked limits: properties can run programs as root (CVE-2024-3154).

mod bus;
mod properties;
mod wire;

use thiserror::Error;

use self::bus::Bus;
use self::wire::Value;
use super::error::CgroupError;
use super::hierarchy::Mode;
use crate::spec::Resources;

/// What a talk with systemd can end in.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BusError {
    #[error("connect to `{path}`; is systemd running here?")]
    Connect { path: &'static str, source: std::io::Error },
    #[error("authenticate: systemd answered `{reply}`")]
    Authenticate { reply: String },
    #[error("talk over D-Bus")]
    Talk { source: std::io::Error },
    #[error("wait for systemd: no answer for {seconds} seconds")]
    Timeout { seconds: u64 },
    #[error("understand a D-Bus message: {reason}")]
    Malformed { reason: &'static str },
    #[error("{name}: {message}")]
    Refused { name: String, message: String },
    #[error("the job ended with `{result}`; see `journalctl -u` for the unit")]
    Job { result: String },
}

/// Whether systemd is process 1 here, as sd_booted(3) tells.
pub fn systemd_is_running() -> bool {
    rustix::fs::lstat("/run/systemd/system")
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory)
}

const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// Starts `unit` around `pid` and waits until it is there.
pub(super) fn start_scope(
    unit: &str,
    slice: &str,
    pid: i32,
    resources: &Resources,
    mode: Mode,
) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Unit { act: "start", unit: unit.to_owned(), source };
    let pid = u32::try_from(pid).map_err(|_| failed(BusError::Malformed { reason: "a negative process id" }))?;
    let mut properties = properties::of_scope(unit, slice, pid);
    properties.extend(properties::of_limits(resources, mode)?);
    let start = |bus: &mut Bus, properties: &[(&'static str, Value)]| {
        let arguments = [
            Value::String(unit.to_owned()),
            Value::String("replace".to_owned()),
            Value::Properties(properties.to_vec()),
            Value::NoAuxiliaries,
        ];
        let reply = bus.call(MANAGER, "StartTransientUnit", &arguments)?;
        bus.await_job(&reply.first_text()?)
    };
    let mut bus = Bus::connect().map_err(failed)?;
    match start(&mut bus, &properties) {
        Err(BusError::Refused { name, .. }) if name == "org.freedesktop.systemd1.UnitExists" => {
            // A failed unit of that name is kept until somebody has seen it.
            let _ = bus.call(MANAGER, "ResetFailedUnit", &[Value::String(unit.to_owned())]);
            start(&mut bus, &properties)
        }
        Err(BusError::Refused { name, message }) if properties::is_unknown(&name, &message) => {
            // An older systemd: what it does not know it cannot undo, and the files are written all the same.
            properties.retain(|(name, _)| !properties::is_recent(name));
            start(&mut bus, &properties)
        }
        other => other,
    }
    .map_err(failed)
}

/// Tells systemd the limits that are in force, so that it keeps them.
pub(super) fn set_limits(unit: &str, resources: &Resources, mode: Mode) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Unit { act: "set limits of", unit: unit.to_owned(), source };
    let mut properties = properties::of_limits(resources, mode)?;
    // Set once at the start: a unit's device and OOM policy are not in an update.
    properties.retain(|(name, _)| !["OOMPolicy", "DevicePolicy", "DeviceAllow"].contains(name));
    if properties.is_empty() {
        return Ok(());
    }
    let set = |bus: &mut Bus, properties: &[(&'static str, Value)]| {
        let arguments = [Value::String(unit.to_owned()), Value::Bool(true), Value::Properties(properties.to_vec())];
        bus.call(MANAGER, "SetUnitProperties", &arguments)?;
        // The files are written when systemd comes back to its loop, so before it answers this.
        bus.call("org.freedesktop.DBus.Peer", "Ping", &[])
    };
    let mut bus = Bus::connect().map_err(failed)?;
    match set(&mut bus, &properties) {
        Err(BusError::Refused { name, message }) if properties::is_unknown(&name, &message) => {
            properties.retain(|(name, _)| !properties::is_recent(name));
            set(&mut bus, &properties)
        }
        other => other,
    }
    .map(drop)
    .map_err(failed)
}

/// Stops the unit and forgets it; one that is gone is fine.
pub(super) fn stop(unit: &str) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Unit { act: "stop", unit: unit.to_owned(), source };
    let gone = |error: &BusError| matches!(error, BusError::Refused { name, .. } if name.ends_with(".NoSuchUnit"));
    let mut bus = Bus::connect().map_err(failed)?;
    let arguments = [Value::String(unit.to_owned()), Value::String("replace".to_owned())];
    let stopped = bus.call(MANAGER, "StopUnit", &arguments).and_then(|reply| bus.await_job(&reply.first_text()?));
    match stopped {
        Ok(()) => {}
        Err(error) if gone(&error) => return Ok(()),
        Err(source) => return Err(failed(source)),
    }
    match bus.call(MANAGER, "ResetFailedUnit", &[Value::String(unit.to_owned())]) {
        Ok(_) => Ok(()),
        Err(error) if gone(&error) => Ok(()),
        Err(source) => Err(failed(source)),
    }
}
