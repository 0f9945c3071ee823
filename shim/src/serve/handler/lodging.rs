//! A container without a process of its own on the host: its runtime runs a whole pod inside one process (runsc), which another shim
//! supervises. The end of such a container is told by the runtime's `wait`, which runs beside it as our child.
//! Runs in the shim's only thread. Owns the waiting child's answer, a file of the run directory.
//! Must never signal the process that the containers share, nor put it into the cgroup of one of them.

use std::cell::Cell;
use std::os::fd::{AsFd as _, OwnedFd};

use keelson_api::shim::{Failure, FailureKind};
use keelson_shim::launch::Created;
use keelson_sys::pidfd::Exit;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::{Runtime, failure, null};

/// What `wait` says.
const WAITED: &str = "runtime.wait";

/// See the module.
pub(super) struct Lodging {
    /// The process that all containers of the pod share.
    host: i32,
    /// `wait` runs.
    awaited: bool,
    /// Its standard streams, which such a runtime takes from `start`.
    streams: Cell<Option<[OwnedFd; 3]>>,
}

/// It would come with `start`, when nobody can be told any more that there is none.
#[derive(Debug, thiserror::Error)]
#[error("this runtime runs the containers of a pod in one process, where only execs can have a terminal")]
pub(super) struct NoTerminal;

/// The same streams once more.
pub(super) fn copies(streams: &[OwnedFd; 3]) -> rustix::io::Result<[OwnedFd; 3]> {
    let copy = |stream: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(stream, 3);
    Ok([copy(&streams[0])?, copy(&streams[1])?, copy(&streams[2])?])
}

impl Lodging {
    pub(super) fn new(host: i32, streams: [OwnedFd; 3]) -> Lodging {
        Lodging { host, awaited: false, streams: Cell::new(Some(streams)) }
    }

    /// The streams, once.
    pub(super) fn streams(&self) -> Option<[OwnedFd; 3]> {
        self.streams.take()
    }
}

/// Whether the process is no child of this one: somebody else will reap it.
pub(super) fn is_anothers(process: &OwnedFd) -> bool {
    let looked = rustix::process::waitid(
        WaitId::PidFd(process.as_fd()),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT,
    );
    looked.is_err_and(|errno| errno == Errno::CHILD)
}

impl Runtime {
    pub(in crate::serve) fn is_lodged(&self) -> bool {
        self.lodging.is_some()
    }

    /// Whether a child of ours ends when the container does.
    pub(in crate::serve) fn is_awaited(&self) -> bool {
        self.lodging.as_ref().is_none_or(|lodging| lodging.awaited)
    }

    /// The process that has the container in it; 0 when that is the container's own.
    pub(in crate::serve) fn host(&self) -> i32 {
        self.lodging.as_ref().map_or(0, |lodging| lodging.host)
    }

    /// Begins to wait for the end of a lodger that has been started: `created` is the one who waits, from now on.
    pub(super) fn await_lodger(&mut self, created: &mut Created) -> Result<(), Failure> {
        if self.lodging.is_none() {
            return Ok(());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let streams = || -> rustix::io::Result<[OwnedFd; 3]> {
            Ok([null::own()?, rustix::fs::open(WAITED, flags, Mode::from_raw_mode(0o600))?, null::own()?])
        };
        let streams = streams().map_err(|errno| failure("open file", WAITED, FailureKind::System, &errno))?;
        let waiter = self.spawn(&["wait", &self.id], &streams)?;
        (created.pid, created.pidfd) = (waiter.pid, waiter.pidfd);
        if let Some(lodging) = &mut self.lodging {
            lodging.awaited = true;
        }
        // What waits is counted with the pod, and execs find the cgroup that theirs are made in.
        created.cgroup.adopt(waiter.pid).map_err(|error| failure("complete cgroup", "", FailureKind::System, &error))
    }

    /// What the child that waited has heard. When it was killed, or its runtime gone, so was the container.
    pub(in crate::serve) fn told(&self) -> Exit {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Told {
            exit_status: i32,
        }
        let told = std::fs::read(WAITED).ok().and_then(|text| serde_json::from_slice::<Told>(&text).ok());
        match told.map(|told| told.exit_status) {
            Some(code @ 0..=255) => Exit::Code(code),
            Some(_) | None => Exit::Signal(Signal::KILL.as_raw()),
        }
    }

    /// Sends a signal to the init of a lodger, or to all of its processes.
    pub(in crate::serve) fn signal(&self, signal: i32, all: bool) -> Result<(), Failure> {
        let signal = signal.to_string();
        let arguments: Vec<&str> =
            ["kill"].into_iter().chain(all.then_some("--all")).chain([self.id.as_str(), &signal]).collect();
        let sent = self.command(&arguments);
        // Its end may be on its way to us.
        sent.or_else(
            |failure| if std::fs::read(WAITED).is_ok_and(|told| !told.is_empty()) { Ok(()) } else { Err(failure) },
        )
    }

    /// Kills all of a lodger; false when its runtime did not.
    pub(in crate::serve) fn kill_lodger(&self) -> bool {
        if !self.is_awaited() {
            // Nobody else has them: their readers come to the end.
            drop(self.lodging.as_ref().and_then(Lodging::streams));
            self.delete();
            return true;
        }
        self.signal(Signal::KILL.as_raw(), true).is_ok()
    }

    /// Keeps what the runtime calls the process of an exec inside, under the name of the child that waits for it.
    pub(super) fn remember_exec(&self, pid: i32, inner: &str) {
        if self.is_lodged() {
            let _ = rustix::fs::rename(inner, exec_file(pid).as_str());
        }
    }

    /// Kills the process of an exec inside.
    pub(in crate::serve) fn kill_exec(&self, pid: i32) {
        let Ok(inner) = std::fs::read_to_string(exec_file(pid)) else { return };
        if let Err(failure) = self.command(&["kill", "--pid", inner.trim(), &self.id, "9"]) {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "{} {}", crate::clock::now(), failure.message);
        }
    }

    /// An exec is over.
    pub(in crate::serve) fn forget_exec(&self, pid: i32) {
        let _ = rustix::fs::unlink(exec_file(pid).as_str());
    }
}

fn exec_file(pid: i32) -> String {
    format!("exec-{pid}.inner")
}
