//! A stop signal that an init cannot hear yet, kept until it can.
//! The kernel drops a signal for the init of a PID namespace that has no handler for it (pid_namespaces(7)). A container that is stopped
//! right after its start is in the middle of installing one: the signal would be lost and the whole grace period waited out.
//! Pure but for reading `/proc`; runs in the shim's only thread. Owns the time of the next look.
//! Must never lead to a signal being delivered twice: a second SIGTERM means "at once" to many programs. So it is sent once, after a
//! look; sent first and looked after then, it may be dropped at an instant when the handler comes, and nobody can tell.

use std::time::{Duration, Instant};

/// Between the first look and the second; doubled from look to look.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A signal that has not been sent.
#[derive(Debug)]
pub(super) struct Unheard {
    pub(super) signal: i32,
    pub(super) look_at: Instant,
    pause: Duration,
}

impl Unheard {
    pub(super) fn new(signal: i32, now: Instant) -> Unheard {
        Unheard { signal, look_at: now + FIRST_PAUSE, pause: FIRST_PAUSE }
    }

    /// Still not: look again later.
    pub(super) fn put_off(&mut self, now: Instant) {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.look_at = now + self.pause;
    }
}

/// Whether the kernel would drop `signal` for this process. What cannot be read is not deaf: the signal is sent.
pub(super) fn is_deaf(pid: i32, signal: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| drops(&status, signal))
        && std::fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|call| !waits(&call))
}

/// Whether the process is in sigtimedwait(2), from the text of `/proc/PID/syscall`. Small inits are; the signals that they wait for
/// are then neither caught nor shown as blocked.
fn waits(call: &str) -> bool {
    call.split_whitespace().next().and_then(|number| number.parse().ok()) == Some(libc::SYS_rt_sigtimedwait)
}

/// As [`is_deaf`], from the text of proc_pid_status(5).
fn drops(status: &str, signal: i32) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let is_init = field("NSpid:").and_then(|pids| pids.split_whitespace().last()) == Some("1");
    let has = |name| {
        let mask = field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
        u32::try_from(signal - 1).is_ok_and(|bit| mask.checked_shr(bit).is_some_and(|rest| rest & 1 == 1))
    };
    let always_heard = signal == rustix::process::Signal::KILL.as_raw();
    // A blocked signal stays pending: the program waits for it by other means.
    is_init && !always_heard && !has("SigCgt:") && !has("SigBlk:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(nspid: &str, blocked: u64, caught: u64) -> String {
        format!(
            "Name:\tx\nNSpid:\t{nspid}\nSigBlk:\t{blocked:016x}\nSigIgn:\t0000000000000000\nSigCgt:\t{caught:016x}\n"
        )
    }

    #[test]
    fn only_an_init_without_a_handler_is_deaf() {
        assert!(drops(&status("4711\t1", 0, 0), 15));
        assert!(!drops(&status("4711\t1", 0, 1 << 14), 15), "caught");
        assert!(!drops(&status("4711\t1", 1 << 14, 0), 15), "blocked: it stays pending");
        assert!(drops(&status("4711\t1", 1 << 13, 1 << 15), 15), "the neighbours' bits are not its own");
        assert!(!drops(&status("4711\t7", 0, 0), 15), "no init: the default action ends it");
        assert!(!drops(&status("4711", 0, 0), 15), "the host's PID namespace");
        assert!(!drops(&status("4711\t1", 0, 0), 9), "nothing is deaf to SIGKILL");
        assert!(!drops(&status("4711\t1", 0, 1 << 63), 64), "the last real-time signal");
        assert!(!drops("", 15), "unreadable");
    }

    #[test]
    fn an_init_that_waits_for_signals_hears_them() {
        let number = libc::SYS_rt_sigtimedwait;
        assert!(waits(&format!("{number} 0x7ffc 0x0 0x0 0x8 0x0 0x0 0x7ffc 0x7f00\n")));
        assert!(!waits("230 0x1 0x0 0x7ffd 0x0 0x0 0x0 0x7ffd 0x7f00\n"), "clock_nanosleep");
        assert!(!waits("running\n"));
        assert!(!waits(""));
    }

    #[test]
    fn looks_become_rarer() {
        let now = Instant::now();
        let mut unheard = Unheard::new(15, now);
        assert_eq!(unheard.look_at, now + FIRST_PAUSE);
        for _ in 0..10 {
            unheard.put_off(now);
        }
        assert_eq!(unheard.look_at, now + LONGEST_PAUSE);
    }
}
