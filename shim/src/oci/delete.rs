//! `delete`: the end of a container's processes, its cgroup, its hooks, its record.
//! Blocks until killed processes are gone, some milliseconds; bounded.
//! Owns nothing: it gives everything back.
//! Must never stop at the first failure: whatever can be removed is, and the record goes last.

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use keelson_shim::cgroup::Handle;
use keelson_shim::launch::{self, Point};
use keelson_sys::pidfd;
use lexopt::{Arg, Parser, ValueExt as _};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::error::OciError;
use super::folder::{Folder, Record, Status};
use super::{Global, flag};

/// How long a process may take to die of SIGKILL.
const PATIENCE: u64 = 10;

pub(super) fn delete(parser: &mut Parser, global: &Global) -> Result<ExitCode, OciError> {
    let (mut id, mut force) = (None, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("force") | Arg::Short('f') => force = flag(parser)?,
            Arg::Value(value) if id.is_none() => id = Some(value.string()?),
            other @ (Arg::Value(_) | Arg::Short(_) | Arg::Long(_)) => return Err(other.unexpected().into()),
        }
    }
    let id = id.ok_or_else(|| OciError::Usage("the container's id is missing".to_owned()))?;
    let folder = Folder::of(&global.root, &id)?;
    if !folder.exists() {
        return if force { Ok(ExitCode::SUCCESS) } else { Err(OciError::NotFound { id }) };
    }
    match folder.record() {
        Ok(record) => {
            let status = folder.status(&record);
            if status == Status::Running && !force {
                return Err(OciError::Status { verb: "delete", id, status });
            }
            destroy(&folder)?;
        }
        // A create that was killed half-way: only the id is taken.
        Err(_) if force => folder.remove()?,
        Err(error) => return Err(error),
    }
    Ok(ExitCode::SUCCESS)
}

/// Kills what lives and removes everything. Every step is tried; the first failure is told.
pub(super) fn destroy(folder: &Folder) -> Result<(), OciError> {
    let record = folder.record()?;
    let cgroup = Handle::open(&record.cgroup)?;
    let killed = kill_all(folder, &record, &cgroup);
    let removed = cgroup.remove().map_err(OciError::from);
    let hooks = folder.spec().and_then(|spec| match &spec.hooks {
        Some(hooks) if !hooks.poststop.is_empty() => {
            let state = folder.state(&record, Status::Stopped, &spec);
            launch::run_hooks(Point::Poststop, &hooks.poststop, &state).map_err(OciError::from)
        }
        Some(_) | None => Ok(()),
    });
    // With something alive or a cgroup left, the record is what a later attempt needs.
    killed?;
    removed?;
    folder.remove()?;
    hooks
}

fn kill_all(folder: &Folder, record: &Record, cgroup: &Handle) -> Result<(), OciError> {
    let init = match folder.status(record) {
        Status::Stopped => None,
        Status::Created | Status::Running => pidfd::open(record.pid).ok(),
    };
    let mut dying: Vec<OwnedFd> = init.into_iter().collect();
    // Held before they are killed: what is gone then is certain to be gone.
    dying.extend(cgroup.pids().unwrap_or_default().into_iter().filter_map(|pid| pidfd::open(pid).ok()));
    if dying.is_empty() {
        return Ok(());
    }
    cgroup.kill()?;
    for process in &dying {
        let _ = pidfd::send_signal(process, Signal::KILL.as_raw());
    }
    if dying.iter().all(|process| is_gone(process, PATIENCE)) {
        return Ok(());
    }
    Err(OciError::Unkillable { id: folder.id().to_owned(), seconds: PATIENCE })
}

/// Ends a container that was made but cannot be used.
pub(super) fn end(init: &OwnedFd, cgroup: &Handle) {
    let _ = pidfd::send_signal(init, Signal::KILL.as_raw());
    let _ = cgroup.kill();
    let _ = pidfd::wait(init);
    let _ = cgroup.remove();
}

/// Waits for the end of a process that need not be a child.
fn is_gone(process: &OwnedFd, seconds: u64) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let timeout = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 };
    poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
}
