//! `kill`, `pause` and `resume`.
//! One look at the kernel, then one signal or one write to the freezer.
//! Owns nothing.
//! Must never signal a process that has taken over the pid of a container.

use std::process::ExitCode;

use keelson_shim::cgroup::Handle;
use keelson_shim::launch;
use keelson_shim::spec::NamespaceKind;
use keelson_sys::pidfd;
use lexopt::{Arg, Parser, ValueExt as _};
use rustix::io::Errno;
use rustix::process::Signal;

use super::error::{OciError, system};
use super::folder::{Folder, Record, Status};
use super::{Global, flag, only_id};

pub(super) fn kill(parser: &mut Parser, global: &Global) -> Result<ExitCode, OciError> {
    let (mut arguments, mut all) = (Vec::new(), false);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("all") | Arg::Short('a') => all = flag(parser)?,
            Arg::Value(value) => arguments.push(value.string()?),
            other @ (Arg::Short(_) | Arg::Long(_)) => return Err(other.unexpected().into()),
        }
    }
    let (id, signal) = match arguments.as_slice() {
        [id] => (id, Signal::TERM.as_raw()),
        [id, signal] => (id, parse(signal)?),
        _ => return Err(OciError::Usage("want a container's id, and perhaps a signal".to_owned())),
    };
    let folder = Folder::of(&global.root, id)?;
    let record = folder.record()?;
    let cgroup = Handle::open(&record.cgroup)?;
    let status = folder.status(&record);
    let everything = all || (signal == Signal::KILL.as_raw() && !has_own_pids(&folder));
    match (status, everything) {
        (Status::Stopped, false) => Err(OciError::NotRunning { verb: "kill", id: folder.id().to_owned(), status }),
        (Status::Created | Status::Running, false) => signal_init(&record, signal, &folder),
        (Status::Created | Status::Running | Status::Stopped, true) => signal_all(&cgroup, signal),
    }?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn pause(parser: &mut Parser, global: &Global, stop: bool) -> Result<ExitCode, OciError> {
    let folder = Folder::of(&global.root, &only_id(parser)?)?;
    let record = folder.record()?;
    let status = folder.status(&record);
    if status == Status::Stopped {
        let verb = if stop { "pause" } else { "resume" };
        return Err(OciError::NotRunning { verb, id: folder.id().to_owned(), status });
    }
    let cgroup = Handle::open(&record.cgroup)?;
    if stop { cgroup.freeze() } else { cgroup.thaw() }?;
    Ok(ExitCode::SUCCESS)
}

fn signal_init(record: &Record, signal: i32, folder: &Folder) -> Result<(), OciError> {
    let gone = || OciError::NotRunning { verb: "kill", id: folder.id().to_owned(), status: Status::Stopped };
    let init = pidfd::open(record.pid).map_err(|_| gone())?;
    // In this order: if the process is the right one now, it is the one that the pidfd holds.
    if launch::start_time(record.pid).ok() != Some(record.start_time) {
        return Err(gone());
    }
    match pidfd::send_signal(&init, signal) {
        Err(Errno::SRCH) => Err(gone()),
        other => other.map_err(system("send signal")),
    }
}

fn signal_all(cgroup: &Handle, signal: i32) -> Result<(), OciError> {
    if signal == Signal::KILL.as_raw() {
        return Ok(cgroup.kill()?);
    }
    for pid in cgroup.pids()? {
        match pidfd::open(pid).and_then(|process| pidfd::send_signal(&process, signal)) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(system("send signal")(errno)),
        }
    }
    Ok(())
}

/// Whether the end of the init is the end of everything in the container.
fn has_own_pids(folder: &Folder) -> bool {
    let Ok(spec) = folder.spec() else { return true };
    let own = |kind, path: &str| kind == NamespaceKind::Pid && path.is_empty();
    spec.linux.is_some_and(|linux| linux.namespaces.iter().any(|namespace| own(namespace.kind, &namespace.path)))
}

/// A signal as people write it: `9`, `KILL`, `SIGKILL`, `rtmin+3`.
fn parse(text: &str) -> Result<i32, OciError> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name {
        "CLD" => Some(17),
        "POLL" => Some(29),
        "IOT" => Some(6),
        "RTMIN" => Some(RTMIN),
        "RTMAX" => Some(RTMAX),
        _ => None,
    };
    let number = number
        .or_else(|| name.strip_prefix("RTMIN+").and_then(|offset| offset.parse::<i32>().ok()?.checked_add(RTMIN)))
        .or_else(|| name.strip_prefix("RTMAX-").and_then(|offset| RTMAX.checked_sub(offset.parse::<i32>().ok()?)))
        .or_else(|| NAMES.iter().zip(1..).find(|(known, _)| **known == name).map(|(_, number)| number))
        .or_else(|| text.parse().ok());
    number
        .filter(|number| (0..=RTMAX).contains(number))
        .ok_or_else(|| OciError::Usage(format!("`{text}` is no signal")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_number_and_by_name() {
        for (text, number) in [
            ("9", 9),
            ("0", 0),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("SIGCHLD", 17),
            ("CLD", 17),
            ("SYS", 31),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("64", 64),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "65", "-1", "SIGNONE", "SIG", "RTMIN+", "RTMIN+99", "9x", "RTMAX-99999999999"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
