//! What each request does, once the machine of `phase` has taken it.
//! Runs in the shim's only thread; a launch and an exec block for the milliseconds they take.
//! Owns nothing: it is the supervisor's hand.
//! Must never answer twice, or not at all: every path replies or leaves a ticket that is answered at the end.

use std::time::{Duration, Instant};

use keelson_api::shim::{Call, Done, ExecSync, Exit, Failure, FailureKind, Launch, Outcome, PROTOCOL, Signal, State};
use keelson_api::{ExecId, ExitRecord};

use super::container::Container;
use super::exec::Exec;
use super::log::Stream;
use super::phase::{Denied, End, Phase, Step, decide};
use super::poller::{Interest, Token};
use super::streams::Wanted;
use super::unheard::Unheard;
use super::{Farewell, Supervisor, TIDY, Ticket, failure};
use crate::clock;

impl Supervisor {
    /// Handles one request.
    pub(super) fn serve(&mut self, ticket: Ticket, call: Option<Call>) {
        let now = Instant::now();
        let step = call.as_ref().ok_or(Denied::Unknown).and_then(|call| decide(&self.phase, call, now));
        let answer = match (step, call) {
            (Ok(Step::Launch), Some(Call::Launch(launch))) => self.launch(launch).map(|()| Some(self.state())),
            (Ok(Step::Start), _) => self.start(now).map(|()| Some(self.state())),
            (Ok(Step::Signal), Some(Call::Signal(signal))) => {
                self.signal(&signal).map(|()| Some(Outcome::Done(Done {})))
            }
            (Ok(Step::Exec), Some(Call::ExecSync(exec))) => self.exec(ticket, exec, now).map(|()| None),
            (Ok(Step::Checkpoint), Some(Call::Checkpoint(call))) => self.checkpoint(ticket, call, now).map(|()| None),
            (Ok(Step::Restore), Some(Call::Restore(call))) => self.restore(ticket, call, now).map(|()| None),
            (Ok(Step::Pause), Some(Call::Pause(pause))) => {
                self.pause(ticket, pause.on).map(|()| Some(Outcome::Done(Done {})))
            }
            (Ok(Step::Exec), Some(Call::OpenExec(exec))) => self.open_exec(ticket, exec).map(|()| None),
            (Ok(Step::Attach), Some(Call::Attach(attach))) => self.attach(ticket, &attach).map(|()| None),
            (Ok(Step::EndSession), Some(Call::EndSession(session))) => {
                self.end_session(ticket.connection, &session, now);
                Ok(Some(Outcome::Done(Done {})))
            }
            (Ok(Step::ReopenLog), _) => self.reopen_log().map(|()| Some(Outcome::Done(Done {}))),
            (Ok(Step::Tell | Step::TellExit), _) => Ok(Some(self.state())),
            (Ok(Step::Stop { signal, kill_at }), Some(Call::Stop(_))) => {
                self.waiting.push((ticket, Farewell::Exit));
                self.begin_stop(signal, kill_at, now).map(|()| None)
            }
            (Ok(step @ (Step::Kill | Step::AwaitEnd)), Some(call)) => {
                let farewell = if matches!(call, Call::Delete(_)) { Farewell::Done } else { Farewell::Exit };
                self.waiting.push((ticket, farewell));
                if step == Step::Kill {
                    self.kill(now);
                }
                Ok(None)
            }
            (Ok(Step::End), _) => {
                self.dismissed = true;
                Ok(Some(Outcome::Done(Done {})))
            }
            // The machine gives no other step to these calls.
            (Ok(_), _) => Err(failure("read request", "", FailureKind::Unsupported, &Denied::Unknown)),
            (Err(denied), call) => Err(refused(call.as_ref(), denied)),
        };
        match answer {
            Ok(Some(outcome)) => self.reply(ticket, outcome),
            Ok(None) => {}
            Err(failure) => {
                self.waiting.retain(|(waiting, _)| *waiting != ticket);
                self.reply(ticket, Outcome::Failed(failure));
            }
        }
    }

    fn launch(&mut self, launch: Launch) -> Result<(), Failure> {
        let container = Container::launch(&self.id, launch)?;
        for output in &container.outputs {
            let added = self.poller.add(output.as_fd(), Token::Output(output.stream), Interest::READ);
            added.map_err(|errno| {
                container.kill();
                failure("watch output", "", FailureKind::System, &errno)
            })?;
        }
        self.phase = Phase::Created { container };
        self.tidy_at = Some(Instant::now() + TIDY);
        Ok(())
    }

    fn start(&mut self, now: Instant) -> Result<(), Failure> {
        let Some(container) = self.phase.container_mut() else { return Ok(()) };
        match container.start() {
            Ok(()) => {
                self.phase.started(clock::now());
                self.tidy_at = Some(now + TIDY);
                Ok(())
            }
            Err(failure) => {
                self.start_failed(now);
                Err(failure)
            }
        }
    }

    fn signal(&self, signal: &Signal) -> Result<(), Failure> {
        self.phase.container().map_or(Ok(()), |container| container.signal(signal.signal, signal.all))
    }

    fn begin_stop(&mut self, signal: Option<i32>, kill_at: Instant, now: Instant) -> Result<(), Failure> {
        let sent_before = match &self.phase {
            Phase::Stopping { end: End::Grace { signal, .. }, .. } => *signal,
            Phase::Empty
            | Phase::Created { .. }
            | Phase::Running { .. }
            | Phase::Stopping { .. }
            | Phase::Ending { .. }
            | Phase::Ended { .. } => 0,
        };
        if let (Some(signal), Some(container)) = (signal, self.phase.container()) {
            let deaf = container.is_deaf(signal);
            if !deaf {
                container.signal(signal, false)?;
            }
            self.unheard = deaf.then(|| Unheard::new(signal, now));
        }
        self.phase.stopping(End::Grace { signal: signal.unwrap_or(sent_before), kill_at });
        Ok(())
    }

    fn reopen_log(&mut self) -> Result<(), Failure> {
        let log = self.phase.container_mut().and_then(|container| container.log.as_mut());
        let Some(log) = log else { return Ok(()) };
        let path = log.path().display().to_string();
        log.reopen().map_err(|error| failure("reopen log", &path, FailureKind::System, &error))
    }

    fn exec(&mut self, ticket: Ticket, call: ExecSync, now: Instant) -> Result<(), Failure> {
        let Some(container) = self.phase.container() else { return Ok(()) };
        let exec_id: ExecId =
            call.exec_id.parse().map_err(|error| failure("exec", &call.exec_id, FailureKind::Invalid, &error))?;
        let (execed, ours) = container.exec(exec_id.as_str(), call.args, Wanted::COLLECTED)?;
        let until =
            (call.timeout_ms > 0).then(|| now + Duration::from_millis(call.timeout_ms.min(u64::from(u32::MAX))));
        let id = self.next_id();
        let exec = Exec::new(id, ticket, (execed.pid, execed.leaf), (ours.stdout, ours.stderr), until);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let added =
                exec.output(stream).map_or(Ok(()), |fd| self.poller.add(fd, Token::Exec(id, stream), Interest::READ));
            if let Err(errno) = added {
                let _ = exec.leaf.kill();
                self.lingering.push(exec.leaf);
                return Err(failure("watch output", "", FailureKind::System, &errno));
            }
        }
        self.execs.push(exec);
        Ok(())
    }

    /// The state as it may be told now.
    pub(super) fn state(&self) -> Outcome {
        if let Phase::Ended { record } = &self.phase {
            return Outcome::Exited(exit(record));
        }
        Outcome::State(State {
            protocol: PROTOCOL,
            phase: self.phase.name().into(),
            pid: self.phase.container().map_or(0, Container::pid),
            started_at: self.phase.started_at(),
        })
    }
}

/// The record as it is told.
pub(super) fn exit(record: &ExitRecord) -> Exit {
    Exit {
        code: record.code,
        signal: record.signal.unwrap_or(0),
        started_at: record.started_at,
        finished_at: record.finished_at,
        oom_killed: record.oom_killed,
    }
}

fn refused(call: Option<&Call>, denied: Denied) -> Failure {
    let step = match call {
        None => "read request",
        Some(Call::Launch(_)) => "launch",
        Some(Call::Start(_)) => "start",
        Some(Call::State(_)) => "tell state",
        Some(Call::Signal(_)) => "send signal",
        Some(Call::Stop(_)) => "stop",
        Some(Call::ExecSync(_) | Call::OpenExec(_)) => "exec",
        Some(Call::Attach(_)) => "attach",
        Some(Call::EndSession(_)) => "end session",
        Some(Call::ReopenLog(_)) => "reopen log",
        Some(Call::Delete(_)) => "delete",
        Some(Call::Checkpoint(_)) => "checkpoint",
        Some(Call::Restore(_)) => "restore",
        Some(Call::Pause(_)) => "pause",
    };
    let kind = if call.is_none() { FailureKind::Unsupported } else { FailureKind::State };
    failure(step, "", kind, &denied)
}
