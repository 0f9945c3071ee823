//! Sessions: execs and attaches whose streams a daemon holds. How they are opened, passed on, and ended.
//! Runs in the shim's only thread; opening an exec blocks for the clone.
//! Owns nothing: it is the supervisor's hand. After the first answer the streams of an exec are the daemon's alone.
//! Must never let a session outlive its connection, nor copy what a process and its daemon say to each other.

use std::os::fd::OwnedFd;
use std::time::Instant;

use keelson_api::ExecId;
use keelson_api::shim::{self, Detached, EndSession, Failure, FailureKind, OpenExec, Outcome};

use super::attach::Attach;
use super::exec::Exec;
use super::log::Stream;
use super::poller::{Interest, Token};
use super::streams::{Ours, Wanted};
use super::{Supervisor, Ticket, failure};

/// Attach sessions of one container at one time: each may hold two megabytes of unread output in the kernel.
const ATTACHED_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
#[error("{ATTACHED_MAX} sessions are attached already; end one of them first")]
struct TooMany;

impl Supervisor {
    pub(super) fn open_exec(&mut self, ticket: Ticket, call: OpenExec) -> Result<(), Failure> {
        let Some(container) = self.phase.container() else { return Ok(()) };
        let exec_id: ExecId =
            call.exec_id.parse().map_err(|error| failure("exec", &call.exec_id, FailureKind::Invalid, &error))?;
        let wanted = Wanted::of(&call);
        let (execed, ours) = container.exec(exec_id.as_str(), call.args, wanted)?;
        let id = self.next_id();
        self.execs.push(Exec::new(id, ticket, (execed.pid, execed.leaf), (None, None), None));
        self.hand_over(ticket, ours);
        Ok(())
    }

    pub(super) fn attach(&mut self, ticket: Ticket, call: &shim::Attach) -> Result<(), Failure> {
        let id = self.next_id();
        let Some(container) = self.phase.container_mut() else { return Ok(()) };
        let failed = |errno: rustix::io::Errno| failure("attach", "", FailureKind::System, &errno);
        if self.attached.len() >= ATTACHED_MAX {
            return Err(failure("attach", "", FailureKind::State, &TooMany));
        }
        let mut attach = Attach::new(id, ticket);
        let mut listen = |stream: Stream, wanted: bool| {
            wanted.then(|| attach.listen(stream, container.speaks(stream))).transpose().map_err(failed)
        };
        let (stdout, stderr) = (listen(Stream::Stdout, call.stdout)?, listen(Stream::Stderr, call.stderr)?);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let watched =
                attach.output(stream).map(|fd| self.poller.add(fd, Token::Attach(id, stream), Interest::NONE));
            watched.transpose().map_err(failed)?;
        }
        // Last: a way in that is for one session alone is not lost by a failure.
        let way_in = container.enter(call.stdin).map_err(failed)?;
        self.attached.push(attach);
        self.hand_over(ticket, Ours { stdout, stderr, ..way_in });
        Ok(())
    }

    /// The first answer of a session. When the daemon has gone, the streams end here, and the session with them.
    fn hand_over(&mut self, ticket: Ticket, ours: Ours) {
        let streams = shim::Streams {
            terminal: ours.terminal.is_some(),
            stdin: ours.stdin.is_some(),
            stdout: ours.stdout.is_some(),
            stderr: ours.stderr.is_some(),
        };
        let fds: Vec<OwnedFd> = [ours.terminal, ours.stdin, ours.stdout, ours.stderr].into_iter().flatten().collect();
        self.reply_with(ticket, Outcome::Streams(streams), fds);
    }

    /// What the daemon has had enough of.
    pub(super) fn end_session(&mut self, connection: u32, call: &EndSession, now: Instant) {
        let ticket = Ticket { connection, seq: call.session };
        for exec in self.execs.iter_mut().filter(|exec| exec.ticket == ticket) {
            exec.abandon(now);
        }
        if let Some(at) = self.attached.iter().position(|attach| attach.ticket == ticket) {
            self.attached.swap_remove(at);
            self.reply(ticket, Outcome::Detached(Detached { fell_behind: false }));
        }
    }

    /// Nobody reads a stream of an attach session any more.
    pub(super) fn unheard(&mut self, id: u32, stream: Stream) {
        if let Some(attach) = self.attached.iter_mut().find(|attach| attach.id == id) {
            attach.close(stream);
        }
    }

    /// Tells those whose attach session is over; of everybody when `all`.
    pub(super) fn settle_attached(&mut self, all: bool) {
        let mut over = Vec::new();
        self.attached.retain(|attach| {
            let ended = attach.ended().or(all.then_some(Detached { fell_behind: false }));
            over.extend(ended.clone().map(|detached| (attach.ticket, detached)));
            ended.is_none()
        });
        for (ticket, detached) in over {
            self.reply(ticket, Outcome::Detached(detached));
        }
        if self.attached.is_empty() && self.attached.capacity() > 0 {
            self.attached = Vec::new();
        }
    }
}
