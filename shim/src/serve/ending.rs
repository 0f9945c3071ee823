//! How a container's life is closed: the exit record, the rest of its processes, its last output, its cgroup, and the last answers.
//! Runs in the shim's only thread, in that order.
//! Owns nothing: it is the supervisor's hand.
//! Must never answer before the record is on disk and the log whole, or keep the process alive for what cannot be finished.

use std::time::{Duration, Instant};

use keelson_api::ExitRecord;
use keelson_api::shim::{Done, Outcome};
use keelson_sys::pidfd::Exit;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::drain::Progress;
use super::output::Flow;
use super::phase::Phase;
use super::requests::exit;
use super::{Farewell, Supervisor, Ticket, complain, record};
use crate::clock;

/// Exit code of a container whose program was never executed, as its peers tell it.
const NOT_STARTED: i32 = 128;
/// A daemon that does not take the last replies is waited for this long.
const LAST_REPLIES: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
#[error("give up waiting for processes that SIGKILL does not end")]
struct Unkillable;

impl Supervisor {
    /// The init has been reaped: the record is written, then the rest is killed.
    pub(super) fn init_ended(&mut self, exit: Exit, now: Instant) {
        let Some(container) = self.phase.container() else { return };
        let record = ExitRecord {
            version: ExitRecord::VERSION,
            code: exit.code(),
            signal: match exit {
                Exit::Code(_) => None,
                Exit::Signal(signal) => Some(signal),
            },
            started_at: self.phase.started_at(),
            finished_at: clock::now(),
            oom_killed: container.created.cgroup.had_oom_kill(container.oom_above, exit == Exit::Signal(9)),
        };
        if let Err(errno) = record::put_exit(&record) {
            complain(&errno);
        }
        if let Err(error) = container.created.cgroup.kill() {
            complain(&error);
        }
        self.phase.ending(record, now);
    }

    /// The program could not be executed: the init, which is gone or going, is reaped here.
    pub(super) fn start_failed(&mut self, now: Instant) {
        let Some(container) = self.phase.container() else { return };
        container.kill();
        if container.ends_unseen() {
            return self.init_ended(Exit::Code(NOT_STARTED), now);
        }
        match keelson_sys::pidfd::wait(&container.created.pidfd) {
            Ok(_) | Err(Errno::CHILD) => self.init_ended(Exit::Code(NOT_STARTED), now),
            Err(errno) => complain(&errno),
        }
    }

    /// One look at a container that is ending.
    pub(super) fn drain(&mut self, now: Instant) {
        let Phase::Ending { container, drain, .. } = &mut self.phase else { return };
        let closed = container.outputs.is_empty() && self.execs.is_empty();
        let cgroup = &container.created.cgroup;
        // A cgroup that cannot be read is gone.
        match drain.look(now, || cgroup.is_empty().unwrap_or(true), closed) {
            Progress::Wait => return,
            Progress::Done => {}
            Progress::GivenUp => complain(&Unkillable),
        }
        self.close();
    }

    fn close(&mut self) {
        self.give_up_criu();
        let scratch = &mut self.scratch;
        if let Some(container) = self.phase.container_mut() {
            let log = &mut container.log;
            for output in &mut container.outputs {
                if output.pump(log.as_mut(), &mut self.attached, scratch) == Flow::Open {
                    output.finish(log.as_mut(), scratch);
                }
            }
            container.outputs.clear();
        }
        self.settle_attached(true);
        for exec in std::mem::take(&mut self.execs) {
            let (ticket, result, leaf) = exec.finish();
            self.reply(ticket, Outcome::Exec(result));
            self.lingering.push(leaf);
        }
        self.sweep(Instant::now());
        if let Some(container) = self.phase.ended() {
            container.remove();
        }
        let Phase::Ended { record } = &self.phase else { return };
        let exited = exit(record);
        for (ticket, farewell) in std::mem::take(&mut self.waiting) {
            let outcome = match farewell {
                Farewell::Exit => Outcome::Exited(exited.clone()),
                Farewell::Done => Outcome::Done(Done {}),
            };
            self.reply(ticket, outcome);
        }
    }

    /// The last replies are sent, and requests that were on their way are answered.
    pub(super) fn say_goodbye(&mut self) {
        let ids: Vec<u32> = self.connections.iter().map(|connection| connection.id).collect();
        for id in ids {
            while let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id)
                && let Ok(Some(request)) = connection.next_request()
            {
                self.serve(Ticket { connection: id, seq: request.seq }, request.call);
            }
        }
        for connection in &mut self.connections {
            let blocking = rustix::fs::fcntl_setfl(connection.as_fd(), OFlags::empty());
            let bounded = set_socket_timeout(connection.as_fd(), Timeout::Send, Some(LAST_REPLIES));
            if let (Ok(()), Ok(())) = (blocking, bounded) {
                let _ = connection.flush();
            }
        }
    }
}
