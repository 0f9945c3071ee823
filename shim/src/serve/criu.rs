//! Checkpoint and restore: CRIU is run beside the container, and what it leaves is taken over.
//! Runs in the shim's only thread, which goes on with everything else meanwhile; the process that becomes CRIU is `crate::criu`.
//! Owns the CRIU process and the pause of the container. A pause ends with the connection that asked for it, and at the latest
//! with the last work on it: a daemon that is killed leaves a container that runs.
//! Must never leave a container held, nor believe anything of a restore but that CRIU succeeded and which process it names.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use keelson_api::shim::{self, Checkpointed, Failure, FailureKind, Outcome};
use keelson_shim::cgroup::Handle;
use keelson_shim::launch;
use keelson_shim::spec::Spec;
use keelson_sys::pidfd::Exit;
use keelson_sys::spawn::{self, Program};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::phase::{Denied, Phase};
use super::{Supervisor, TIDY, Ticket, complain, failure};
use crate::clock;
use crate::criu::{COMPLAINTS, DUMP_LOG, Job, Mount, PID_FILE, RESTORE_LOG, Restore, stream_names};

/// Lines of CRIU's log that are told, and how much of the log is looked through.
const TOLD_LINES: usize = 3;
const LOG_TAIL: u64 = 64 * 1024;
/// Children that may end before it is known whether one of them is the restored init.
const MOST_ORPHANS: usize = 256;

/// A CRIU at work.
pub(super) struct Criu {
    pid: i32,
    pidfd: OwnedFd,
    ticket: Ticket,
    kind: Kind,
    work: String,
    until: Option<Instant>,
    /// Its time was over and it was killed.
    timed_out: bool,
    /// Children that ended meanwhile, when one of them may be the restored init.
    orphans: Vec<(i32, Exit)>,
}

enum Kind {
    Dump {
        stdio: Vec<String>,
        /// On cgroup v2, where CRIU leaves all processes stopped: those that were so before.
        stopped: Option<Vec<i32>>,
    },
    Restore,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Said(String),
    #[error("not finished in time, given up; allow more time, or give it less memory to write")]
    TimedOut,
    #[error("no such program: install the package `criu`, or name it in the configuration (`[checkpoint] criu`)")]
    Absent,
    #[error("the container has ended meanwhile")]
    Ended,
    #[error("the container was made by another runtime handler; use the handler `native` for pods to be checkpointed")]
    Foreign,
}

impl Supervisor {
    pub(super) fn checkpoint(&mut self, ticket: Ticket, call: shim::Checkpoint, now: Instant) -> Result<(), Failure> {
        self.refuse_second("checkpoint")?;
        let Some(container) = self.phase.container() else { return Ok(()) };
        let init = container.created.pid;
        let stdio = stream_names(init);
        let cgroup = container.created.cgroup.clone();
        let freezer = cgroup.pause_dir().and_then(|dir| dir.to_str().map(str::to_owned));
        let stopped = freezer.is_none().then(|| stopped(&cgroup));
        if stopped.is_some() {
            // What is frozen by v2 cannot be dumped; it is held again before anything of it runs.
            cgroup.pause(false).map_err(|error| failure("resume", "", FailureKind::System, &error))?;
        }
        let job = Job { criu: call.criu, images: call.images, work: call.work, init, freezer, restore: None };
        let begun = self.run_criu(ticket, &job, Kind::Dump { stdio, stopped }, call.timeout_ms, now);
        if begun.is_err() && self.paused_by.is_some() {
            cgroup.pause(true).map_err(|error| failure("pause", "", FailureKind::System, &error))?;
        }
        begun
    }

    pub(super) fn restore(&mut self, ticket: Ticket, call: shim::Restore, now: Instant) -> Result<(), Failure> {
        self.refuse_second("restore")?;
        let Some(container) = self.phase.container() else { return Ok(()) };
        let lists = container.created.cgroup.process_lists();
        let mounts = call.mounts.into_iter();
        let restore = Restore {
            cgroups: lists.into_iter().filter_map(|path| path.to_str().map(str::to_owned)).collect(),
            mounts: mounts.map(|m| Mount { mountpoint: m.mountpoint, key: m.key, id: m.mount_id }).collect(),
            stdio: call.stdio,
            lsm_profile: call.lsm_profile,
        };
        let init = container.created.pid;
        let job =
            Job { criu: call.criu, images: call.images, work: call.work, init, freezer: None, restore: Some(restore) };
        self.run_criu(ticket, &job, Kind::Restore, call.timeout_ms, now)
    }

    /// Holds the container's processes, or lets them go on.
    pub(super) fn pause(&mut self, ticket: Ticket, on: bool) -> Result<(), Failure> {
        let Some(container) = self.phase.container() else { return Ok(()) };
        let act = if on { "pause" } else { "resume" };
        container.created.cgroup.pause(on).map_err(|error| failure(act, "", FailureKind::System, &error))?;
        self.paused_by = on.then_some(ticket.connection);
        Ok(())
    }

    /// Whoever asked for the pause has gone.
    pub(super) fn forget_pause(&mut self, connection: u32) {
        if self.paused_by == Some(connection) {
            self.paused_by = None;
            // While CRIU works it decides; its end lets them go on.
            if self.criu.is_none() {
                self.let_go();
            }
        }
    }

    /// After a dump on cgroup v2: from stopped by CRIU to frozen by us, so that nothing has run when its files are copied.
    fn hold_again(&self, stopped: &[i32]) -> Result<(), Failure> {
        let Some(container) = self.phase.container() else { return Ok(()) };
        let cgroup = &container.created.cgroup;
        let held = if self.paused_by.is_some() { cgroup.pause(true) } else { Ok(()) };
        // It takes back a stop that a process has not come to yet, too.
        for pid in cgroup.pids().unwrap_or_default().into_iter().filter(|pid| !stopped.contains(pid)) {
            // One that has died needs nothing.
            let _ = keelson_sys::pidfd::open(pid)
                .and_then(|pidfd| keelson_sys::pidfd::send_signal(&pidfd, rustix::process::Signal::CONT.as_raw()));
        }
        held.map_err(|error| failure("pause", "", FailureKind::System, &error))
    }

    fn let_go(&self) {
        if let Some(container) = self.phase.container()
            && let Err(error) = container.created.cgroup.pause(false)
        {
            complain(&error);
        }
    }

    fn refuse_second(&self, act: &str) -> Result<(), Failure> {
        if self.phase.container().is_some_and(|container| container.is_foreign()) {
            return Err(failure(act, "", FailureKind::Unsupported, &Failed::Foreign));
        }
        match &self.criu {
            Some(_) => Err(failure(act, "", FailureKind::State, &Denied::Busy)),
            None => Ok(()),
        }
    }

    fn run_criu(
        &mut self,
        ticket: Ticket,
        job: &Job,
        kind: Kind,
        timeout_ms: u64,
        now: Instant,
    ) -> Result<(), Failure> {
        if let Err(errno) = rustix::fs::stat(&*job.criu) {
            let (kind, error): (_, &dyn std::error::Error) = if errno == Errno::NOENT {
                (FailureKind::Unsupported, &Failed::Absent)
            } else {
                (FailureKind::System, &errno)
            };
            return Err(Failure {
                message: format!("run `{}`: {error}", job.criu),
                ..failure("run", &job.criu, kind, &errno)
            });
        }
        // Strings and numbers always have a JSON form.
        let text = serde_json::to_vec(job).unwrap_or_default();
        let spawned =
            launch::in_own_pid_namespace(|| start(&text, &job.work)).map_err(|error| Failure::from(&error))?;
        let spawned = spawned.map_err(|errno| failure("run", &job.criu, FailureKind::System, &errno))?;
        let until = (timeout_ms > 0).then(|| now + Duration::from_millis(timeout_ms.min(u64::from(u32::MAX))));
        self.criu = Some(Box::new(Criu {
            pid: spawned.pid,
            pidfd: spawned.pidfd,
            ticket,
            kind,
            work: job.work.clone(),
            until,
            timed_out: false,
            orphans: Vec::new(),
        }));
        Ok(())
    }

    /// A child has been reaped that is neither init nor exec.
    pub(super) fn other_child_ended(&mut self, pid: i32, exit: Exit, now: Instant) {
        match &mut self.criu {
            Some(criu) if criu.pid == pid => self.criu_ended(exit, now),
            Some(criu) if criu.orphans.len() < MOST_ORPHANS => criu.orphans.push((pid, exit)),
            Some(_) | None => {}
        }
    }

    fn criu_ended(&mut self, exit: Exit, now: Instant) {
        let Some(criu) = self.criu.take() else { return };
        self.tidy_at = Some(now + TIDY);
        let (step, log) = match criu.kind {
            Kind::Dump { .. } => ("checkpoint", DUMP_LOG),
            Kind::Restore => ("restore", RESTORE_LOG),
        };
        let told = if criu.timed_out {
            Err(failure(step, "", FailureKind::System, &Failed::TimedOut))
        } else if exit == Exit::Code(0) {
            Ok(())
        } else {
            Err(failure(step, "", FailureKind::System, &Failed::Said(said(&criu.work, log, exit))))
        };
        let answer = match (criu.kind, told) {
            (Kind::Dump { stdio, stopped }, told) => {
                let held = stopped.map_or(Ok(()), |stopped| self.hold_again(&stopped));
                let told = told.and(held);
                if self.paused_by.is_none() {
                    self.let_go();
                }
                told.map(|()| Outcome::Checkpointed(Checkpointed { stdio }))
            }
            (Kind::Restore, Ok(())) => self.take_over(&criu.work, &criu.orphans, now).map(|()| self.state()),
            (Kind::Restore, Err(failure)) => Err(failure),
        };
        if answer.is_err() && step == "restore" {
            self.start_failed(now);
        }
        self.reply(criu.ticket, answer.unwrap_or_else(Outcome::Failed));
    }

    /// The restored init is the container's init from now on.
    fn take_over(&mut self, work: &str, orphans: &[(i32, Exit)], now: Instant) -> Result<(), Failure> {
        let Phase::Created { container } = &mut self.phase else {
            return Err(failure("restore", "", FailureKind::State, &Failed::Ended));
        };
        let broken = |errno: Errno| failure("take over restored process", "", FailureKind::System, &errno);
        let text = std::fs::read_to_string(format!("{work}/{PID_FILE}"))
            .map_err(|error| broken(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let pid: i32 = text.trim().parse().map_err(|_| broken(Errno::INVAL))?;
        if let Some((_, exit)) = orphans.iter().find(|(orphan, _)| *orphan == pid) {
            let exit = *exit;
            container.created.pid = pid;
            self.phase.started(clock::now());
            self.init_ended(exit, now);
            return Ok(());
        }
        let pidfd = keelson_sys::pidfd::open(pid).map_err(broken)?;
        let spec = std::fs::read(shim::SPEC_FILE)
            .map_err(|error| broken(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let spec: Spec =
            serde_json::from_slice(&spec).map_err(|error| failure("read spec", "", FailureKind::Invalid, &error))?;
        container.take_init(pid, pidfd, &spec)?;
        self.phase.started(clock::now());
        Ok(())
    }

    /// When CRIU's time is over.
    pub(super) fn criu_deadline(&self) -> Option<Instant> {
        self.criu.as_ref().filter(|criu| !criu.timed_out).and_then(|criu| criu.until)
    }

    /// Ends a CRIU whose time is over; its end is reaped as any.
    pub(super) fn expire_criu(&mut self, now: Instant) {
        if let Some(criu) = &mut self.criu
            && criu.until.is_some_and(|until| until <= now)
            && !criu.timed_out
        {
            criu.timed_out = true;
            let _ = keelson_sys::pidfd::send_signal(&criu.pidfd, rustix::process::Signal::KILL.as_raw());
        }
    }

    /// The container is over while CRIU works on it.
    pub(super) fn give_up_criu(&mut self) {
        if let Some(criu) = self.criu.take() {
            let _ = keelson_sys::pidfd::send_signal(&criu.pidfd, rustix::process::Signal::KILL.as_raw());
            let _ = keelson_sys::pidfd::wait(&criu.pidfd);
            let ended = failure("checkpoint or restore", "", FailureKind::State, &Failed::Ended);
            self.reply(criu.ticket, Outcome::Failed(ended));
        }
    }
}

/// The processes that somebody has stopped by a signal.
fn stopped(cgroup: &Handle) -> Vec<i32> {
    let is_stopped = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    cgroup.pids().unwrap_or_default().into_iter().filter(is_stopped).collect()
}

/// Starts this program again as the one that becomes CRIU.
fn start(job: &[u8], work: &str) -> rustix::io::Result<spawn::Spawned> {
    let own = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let cwd = rustix::fs::open(work, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let stdin = keelson_sys::memfd::sealed_bytes(c"keelson-criu-job", job)?;
    rustix::fs::seek(&stdin, rustix::fs::SeekFrom::Start(0))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let complaints = rustix::fs::openat(&cwd, COMPLAINTS, flags, Mode::from_raw_mode(0o600))?;
    spawn::spawn(&Program {
        file: own.as_fd(),
        argv: &[c"keelson-shim".to_owned(), c"criu".to_owned()],
        env: &[],
        cwd: cwd.as_fd(),
        stdio: [stdin.as_fd(), null.as_fd(), complaints.as_fd()],
    })
}

/// What CRIU said went wrong: the last errors of its log, or of what came before it.
fn said(work: &str, log: &str, exit: Exit) -> String {
    let text = tail(&format!("{work}/{log}"));
    let errors: Vec<&str> = text.lines().filter(|line| line.contains("Error (")).collect();
    let errors = errors.get(errors.len().saturating_sub(TOLD_LINES)..).unwrap_or_default();
    if !errors.is_empty() {
        return format!("CRIU failed: {}", errors.join("; "));
    }
    let complaints = tail(&format!("{work}/{COMPLAINTS}"));
    match complaints.trim() {
        "" => format!("CRIU ended with code {} and said nothing", exit.code()),
        text => format!("CRIU failed: {}", text.lines().last().unwrap_or_default()),
    }
}

fn tail(path: &str) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let Ok(mut file) = std::fs::File::open(path) else { return String::new() };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))).is_ok() {
        let _ = file.take(LOG_TAIL).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
