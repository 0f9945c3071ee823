//! One exec: a process added to the container, its end told once. Of an ExecSync the output is collected and its timeout kept; the
//! streams of an opened exec are the daemon's, and none of its bytes come here.
//! Runs in the shim's only thread. A session ends when its process has ended and both pipes are at their end; when something else
//! still holds a pipe (a background child), after [`QUIET`] without output, and after [`LONGEST_DRAIN`] in any case.
//! Owns the reading ends, what was read, and the exec's leaf cgroup. After a timeout everything in the leaf is killed; after a
//! normal end what the process left running goes on, as in any shell.
//! Must never keep more than the cap, wait for somebody who may not come, or stop reading: a full pipe would hang the process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use keelson_api::shim::{EXEC_OUTPUT_MAX, ExecResult};
use keelson_shim::cgroup::Leaf;
use keelson_sys::pidfd::Exit;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::Ticket;
use super::log::Stream;

/// Silence after which a pipe held by a background child is given up.
const QUIET: Duration = Duration::from_millis(100);
/// A chatty background child is given up after this long.
const LONGEST_DRAIN: Duration = Duration::from_secs(1);
/// A process that does not die of SIGKILL (it waits for a disk) is not waited for longer than this.
const LONGEST_KILL: Duration = Duration::from_secs(2);
/// Bytes asked of a pipe at once.
const CHUNK: usize = 32 * 1024;
/// Read from one pipe before others get their turn.
const TURN: usize = 1024 * 1024;

/// A session.
pub(super) struct Exec {
    pub(super) id: u32,
    pub(super) pid: i32,
    /// Who is to be answered.
    pub(super) ticket: Ticket,
    pub(super) leaf: Leaf,
    stdout: Capture,
    stderr: Capture,
    progress: Progress,
}

#[derive(Debug, Clone, Copy)]
enum Progress {
    Running {
        until: Option<Instant>,
    },
    /// The timeout has passed, SIGKILL is sent.
    Killed {
        give_up: Instant,
    },
    /// The process is reaped; somebody else may hold its pipes.
    Draining {
        exit: Exit,
        timed_out: bool,
        quiet: Instant,
        give_up: Instant,
    },
}

/// What the clock asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// Kill everything in the leaf.
    Kill,
    /// Answer.
    Answer,
}

impl Exec {
    /// A started process with the reading ends of what is collected of its output.
    pub(super) fn new(
        id: u32,
        ticket: Ticket,
        process: (i32, Leaf),
        outputs: (Option<OwnedFd>, Option<OwnedFd>),
        until: Option<Instant>,
    ) -> Exec {
        Exec {
            id,
            pid: process.0,
            ticket,
            leaf: process.1,
            stdout: Capture::new(outputs.0),
            stderr: Capture::new(outputs.1),
            progress: Progress::Running { until },
        }
    }

    pub(super) fn output(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        let capture = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        capture.source.as_ref().map(AsFd::as_fd)
    }

    /// Reads what is there.
    pub(super) fn pump(&mut self, stream: Stream, now: Instant) {
        let capture = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        if capture.pump()
            && let Progress::Draining { quiet, .. } = &mut self.progress
        {
            *quiet = now + QUIET;
        }
    }

    /// The process has been reaped.
    pub(super) fn reaped(&mut self, exit: Exit, now: Instant) {
        let timed_out = match self.progress {
            Progress::Running { .. } => false,
            Progress::Killed { .. } => true,
            Progress::Draining { .. } => return,
        };
        self.progress = Progress::Draining { exit, timed_out, quiet: now + QUIET, give_up: now + LONGEST_DRAIN };
        // What it wrote last is in the pipes already.
        self.pump(Stream::Stdout, now);
        self.pump(Stream::Stderr, now);
    }

    /// Everything the exec started is being killed, for whatever reason but its timeout.
    pub(super) fn abandon(&mut self, now: Instant) {
        if let Progress::Running { until } = &mut self.progress {
            *until = Some(now);
        }
    }

    /// When the clock will ask for something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.progress {
            Progress::Running { until } => until,
            Progress::Killed { give_up } => Some(give_up),
            Progress::Draining { quiet, give_up, .. } => Some(quiet.min(give_up)),
        }
    }

    /// What the clock asks for now.
    pub(super) fn due(&mut self, now: Instant) -> Due {
        match self.progress {
            Progress::Running { until } if until.is_some_and(|until| until <= now) => {
                self.progress = Progress::Killed { give_up: now + LONGEST_KILL };
                Due::Kill
            }
            Progress::Killed { give_up } if give_up <= now => Due::Answer,
            Progress::Draining { quiet, give_up, .. } if self.is_closed() || quiet.min(give_up) <= now => Due::Answer,
            Progress::Running { .. } | Progress::Killed { .. } | Progress::Draining { .. } => Due::Nothing,
        }
    }

    /// Ends the session.
    pub(super) fn finish(self) -> (Ticket, ExecResult, Leaf) {
        let (exit, timed_out) = match self.progress {
            Progress::Draining { exit, timed_out, .. } => (exit, timed_out),
            Progress::Running { .. } => (Exit::Signal(rustix::process::Signal::KILL.as_raw()), false),
            Progress::Killed { .. } => (Exit::Signal(rustix::process::Signal::KILL.as_raw()), true),
        };
        let truncated = self.stdout.truncated || self.stderr.truncated;
        let (stdout, stderr) = (self.stdout.bytes, self.stderr.bytes);
        let result = ExecResult { stdout, stderr, exit_code: exit.code(), timed_out, truncated };
        (self.ticket, result, self.leaf)
    }

    fn is_closed(&self) -> bool {
        self.stdout.source.is_none() && self.stderr.source.is_none()
    }
}

/// One stream: what is kept of it.
struct Capture {
    /// None after its end.
    source: Option<OwnedFd>,
    bytes: Vec<u8>,
    truncated: bool,
}

impl Capture {
    fn new(source: Option<OwnedFd>) -> Capture {
        Capture { source, bytes: Vec::new(), truncated: false }
    }

    /// Reads for one turn; true when there was something.
    fn pump(&mut self) -> bool {
        let mut total = 0;
        let mut discarded = Vec::new();
        while let Some(source) = &self.source {
            let got = if self.bytes.len() < EXEC_OUTPUT_MAX {
                read_some(source, &mut self.bytes)
            } else {
                discarded.clear();
                discarded.reserve(CHUNK);
                let got = rustix::io::read(source, spare_capacity(&mut discarded));
                self.truncated |= !discarded.is_empty();
                got
            };
            match got {
                Ok(0) => self.source = None,
                Ok(got) => total += got,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.source = None,
            }
            if total >= TURN {
                break;
            }
        }
        if self.bytes.len() > EXEC_OUTPUT_MAX {
            self.bytes.truncate(EXEC_OUTPUT_MAX);
            self.truncated = true;
        }
        total > 0
    }
}

fn read_some(source: &OwnedFd, bytes: &mut Vec<u8>) -> Result<usize, Errno> {
    // Most execs say a line or nothing: the first read costs no more than that.
    if bytes.capacity() - bytes.len() <= bytes.capacity() / 4 {
        bytes.reserve(bytes.capacity().clamp(1024, CHUNK));
    }
    rustix::io::read(source, spare_capacity(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piped() -> (OwnedFd, Capture) {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
        (writer, Capture::new(Some(reader)))
    }

    #[test]
    fn output_beyond_the_cap_is_read_and_dropped() {
        let (writer, mut capture) = piped();
        let block = vec![b'z'; 64 * 1024];
        for _ in 0..EXEC_OUTPUT_MAX / block.len() + 3 {
            assert_eq!(rustix::io::write(&writer, &block).unwrap(), block.len());
            assert!(capture.pump());
        }
        assert_eq!((capture.bytes.len(), capture.truncated), (EXEC_OUTPUT_MAX, true));
        drop(writer);
        capture.pump();
        assert!(capture.source.is_none());
    }

    #[test]
    fn output_of_exactly_the_cap_is_not_called_truncated() {
        let (writer, mut capture) = piped();
        let block = vec![b'z'; 64 * 1024];
        for _ in 0..EXEC_OUTPUT_MAX / block.len() {
            rustix::io::write(&writer, &block).unwrap();
            capture.pump();
        }
        drop(writer);
        assert!(!capture.pump());
        assert_eq!((capture.bytes.len(), capture.truncated), (EXEC_OUTPUT_MAX, false));
    }

    #[test]
    fn a_silent_exec_holds_little() {
        let (writer, mut capture) = piped();
        rustix::io::write(&writer, b"ok\n").unwrap();
        assert!(capture.pump() && !capture.pump());
        assert!(capture.bytes.capacity() <= 1024 && capture.bytes == b"ok\n");
    }
}
