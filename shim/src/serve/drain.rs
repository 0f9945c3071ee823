//! The short time between the death of a container's init and its last word: until its cgroup is empty and its output at its end.
//! Pure, in the shim's only thread; the supervisor looks and tells what it saw.
//! Owns the deadlines.
//! Must never wait for ever: an unkillable process or a pipe that somebody else holds ends the wait too.

use std::time::{Duration, Instant};

/// A process that does not die of SIGKILL is not waited for longer than this.
const LONGEST_KILL: Duration = Duration::from_secs(10);
/// Output is waited for this long after the last process of the container has gone.
const LONGEST_OUTPUT: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    stage: Stage,
    look_at: Instant,
    pause: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Processes are left.
    Killing { give_up: Instant },
    /// All are gone, a pipe is open.
    Reading { give_up: Instant },
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Wait,
    Done,
    /// Processes are left that cannot be killed.
    GivenUp,
}

impl Drain {
    pub(super) fn begin(now: Instant) -> Drain {
        Drain { stage: Stage::Killing { give_up: now + LONGEST_KILL }, look_at: now, pause: FIRST_PAUSE }
    }

    /// When to look again.
    pub(super) fn deadline(&self) -> Instant {
        match self.stage {
            Stage::Killing { .. } => self.look_at,
            Stage::Reading { give_up } => give_up,
        }
    }

    /// One look: are there processes left, has all output come to its end?
    pub(super) fn look(&mut self, now: Instant, is_empty: impl FnOnce() -> bool, is_closed: bool) -> Progress {
        if let Stage::Killing { give_up } = self.stage {
            if now < self.look_at {
                return Progress::Wait;
            }
            if is_empty() {
                self.stage = Stage::Reading { give_up: now + LONGEST_OUTPUT };
            } else if give_up <= now {
                return Progress::GivenUp;
            } else {
                self.look_at = now + self.pause;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                return Progress::Wait;
            }
        }
        match self.stage {
            Stage::Reading { give_up } if is_closed || give_up <= now => Progress::Done,
            Stage::Reading { .. } | Stage::Killing { .. } => Progress::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_cgroup_and_closed_pipes_end_it_at_once() {
        let now = Instant::now();
        assert_eq!(Drain::begin(now).look(now, || true, true), Progress::Done);
    }

    #[test]
    fn a_held_pipe_is_waited_for_a_second_after_the_last_process() {
        let now = Instant::now();
        let mut drain = Drain::begin(now);
        assert_eq!(drain.look(now, || false, false), Progress::Wait);
        let later = now + Duration::from_secs(3);
        assert_eq!(drain.look(later, || true, false), Progress::Wait);
        assert_eq!(drain.deadline(), later + LONGEST_OUTPUT);
        assert_eq!(drain.look(drain.deadline(), || false, false), Progress::Done);
    }

    #[test]
    fn an_unkillable_process_is_given_up_and_looks_grow_rarer() {
        let begun = Instant::now();
        let mut drain = Drain::begin(begun);
        let mut now = begun;
        let mut looks = 0;
        while drain.look(now, || false, true) == Progress::Wait {
            now = drain.deadline();
            looks += 1;
        }
        assert!(now - begun >= LONGEST_KILL && looks < 220, "{looks}");
    }
}
