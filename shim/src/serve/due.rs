//! What the clock alone asks of the supervisor: when it has to wake up next, and what is due then.
//! On the supervisor's one thread, after each turn of its loop; nothing here waits.
//! Owns nothing of its own. Must never let a moment pass by: whatever has a deadline is in `deadline` and in `expire`.

use std::io::Write as _;
use std::time::Instant;

use keelson_api::shim::Outcome;
use keelson_sys::pidfd::Exit;

use super::exec::{Due, Exec};
use super::phase::{End, Phase};
use super::{FIRST_SWEEP, KILL_AGAIN, RAREST_SWEEP, Supervisor, TIDY};
use crate::clock;

impl Supervisor {
    /// The next moment at which the clock alone asks for something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Stopping { end: End::Grace { kill_at: at, .. } | End::Killed { again_at: at }, .. } => Some(*at),
            Phase::Ending { drain, .. } => Some(drain.deadline()),
            Phase::Empty | Phase::Created { .. } | Phase::Running { .. } | Phase::Ended { .. } => None,
        };
        let lingering = (!self.lingering.is_empty()).then_some(self.sweep_at);
        let execs = self.execs.iter().filter_map(Exec::deadline);
        let unheard = self.unheard.as_ref().map(|unheard| unheard.look_at);
        let criu = self.criu_deadline();
        let rest = lingering.into_iter().chain(unheard).chain(criu).chain(self.tidy_at);
        execs.chain(phase).chain(self.scratch.deadline()).chain(rest).min()
    }

    /// Does what the clock and the last events ask for.
    pub(super) fn expire(&mut self, now: Instant) {
        self.settle_execs(now);
        self.expire_criu(now);
        self.repeat_stop_signal(now);
        if !self.attached.is_empty() {
            self.settle_attached(false);
        }
        if let Phase::Stopping { end: End::Grace { kill_at: at, .. } | End::Killed { again_at: at }, .. } = &self.phase
            && *at <= now
        {
            self.kill(now);
        }
        self.drain(now);
        if self.scratch.deadline().is_some_and(|deadline| deadline <= now) {
            for output in self.phase.container_mut().into_iter().flat_map(|container| &mut container.outputs) {
                output.narrow();
            }
            if self.scratch.release() {
                self.tidy_at = Some(now);
            }
        }
        if self.tidy_at.is_some_and(|at| at <= now) {
            self.tidy_at = None;
            keelson_sys::memory::trim();
            keelson_sys::memory::drop_unused_stack();
        }
    }

    /// Sends the stop signal that was held back, once the init hears it.
    fn repeat_stop_signal(&mut self, now: Instant) {
        let Some(unheard) = &mut self.unheard else { return };
        match &self.phase {
            Phase::Stopping { container, end: End::Grace { .. }, .. } => {
                if unheard.look_at > now {
                    return;
                }
                if container.is_deaf(unheard.signal) {
                    return unheard.put_off(now);
                }
                if let Err(failure) = container.signal(unheard.signal, false) {
                    let _ = writeln!(std::io::stderr(), "{} {}", clock::now(), failure.message);
                }
            }
            Phase::Empty
            | Phase::Created { .. }
            | Phase::Running { .. }
            | Phase::Stopping { .. }
            | Phase::Ending { .. }
            | Phase::Ended { .. } => {}
        }
        self.unheard = None;
    }

    /// Answers execs that are over, kills those whose time is.
    fn settle_execs(&mut self, now: Instant) {
        let mut over = Vec::new();
        for exec in &mut self.execs {
            match exec.due(now) {
                Due::Nothing => {}
                Due::Kill => {
                    if let Some(container) = self.phase.container() {
                        container.kill_exec(exec);
                    }
                }
                Due::Answer => over.push(exec.id),
            }
        }
        let answered = !over.is_empty();
        for id in over {
            let Some(at) = self.execs.iter().position(|exec| exec.id == id) else { continue };
            let exec = self.execs.swap_remove(at);
            if let Some(container) = self.phase.container() {
                container.forget_exec(exec.pid);
            }
            let (ticket, result, leaf) = exec.finish();
            self.reply(ticket, Outcome::Exec(result));
            self.lingering.push(leaf);
            self.tidy_at = Some(now + TIDY);
        }
        if answered {
            self.sweep_pause = FIRST_SWEEP;
        }
        if !self.lingering.is_empty() && (answered || self.sweep_at <= now) {
            self.sweep(now);
        }
        if self.execs.is_empty() && self.execs.capacity() > 16 {
            self.execs = Vec::new();
        }
    }

    /// Removes the leaf cgroups in which nothing is left.
    pub(super) fn sweep(&mut self, now: Instant) {
        // What cannot be read has been removed with its container.
        self.lingering.retain(|leaf| !leaf.is_empty().unwrap_or(true) || leaf.remove().is_err());
        self.sweep_at = now + self.sweep_pause;
        self.sweep_pause = (self.sweep_pause * 2).min(RAREST_SWEEP);
    }

    /// Kills the whole container, and says when to do so again.
    pub(super) fn kill(&mut self, now: Instant) {
        if let Some(container) = self.phase.container() {
            container.kill();
            if container.ends_unseen() {
                self.init_ended(Exit::Signal(rustix::process::Signal::KILL.as_raw()), now);
            }
        }
        self.phase.stopping(End::Killed { again_at: now + KILL_AGAIN });
    }
}
