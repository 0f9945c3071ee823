//! Processes held by descriptor: a pidfd names one process for ever, a number may be used again.
//! Any process, any thread; `wait` blocks, `wait_at_most` for so long.
//! Owns the pidfds it opens.
//! Must never act on a bare process id except to open it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::{self, Errno};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use crate::fd::last_errno;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The exit code a shell would tell: 128 + signal for a killed process.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

/// Opens a process; ESRCH when there is none. Close-on-exec.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
}

/// The process's number in the pid namespace of the mounted procfs; ESRCH when it is reaped, or not in there.
/// <https://man7.org/linux/man-pages/man2/pidfd_open.2.html>
pub fn number(pidfd: impl AsFd) -> io::Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd());
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = [0; 512];
    let length = io::read(file, &mut text)?;
    let text = std::str::from_utf8(text.get(..length).unwrap_or_default()).unwrap_or_default();
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.filter(|number| *number > 0).ok_or(Errno::SRCH)
}

/// Sends any signal, real-time ones too; 0 asks whether the process is there.
/// <https://man7.org/linux/man-pages/man2/pidfd_send_signal.2.html>
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo is allowed and means what kill(2) would send; the descriptor is open by its type.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<libc::siginfo_t>(), 0) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Waits for a child's end and reaps it.
pub fn wait(pidfd: impl AsFd) -> io::Result<Exit> {
    loop {
        match wait_with(&pidfd, WaitIdOptions::EXITED) {
            Ok(Some(exit)) => return Ok(exit),
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Waits for a child's end and reaps it. `None`: the time was over, and it was killed.
pub fn wait_at_most(pidfd: impl AsFd, limit: Duration) -> io::Result<Option<Exit>> {
    // What the clock cannot count to is no limit.
    let Some(end) = Instant::now().checked_add(limit) else { return wait(pidfd).map(Some) };
    loop {
        if let Some(exit) = try_wait(&pidfd)? {
            return Ok(Some(exit));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            send_signal(&pidfd, libc::SIGKILL)?;
            wait(&pidfd)?;
            return Ok(None);
        }
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Reaps a child that has ended; none while it runs.
pub fn try_wait(pidfd: impl AsFd) -> io::Result<Option<Exit>> {
    wait_with(&pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
}

fn wait_with(pidfd: &impl AsFd, options: WaitIdOptions) -> io::Result<Option<Exit>> {
    let Some(status) = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options)? else {
        return Ok(None);
    };
    Ok(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Exit::Code(code)),
        (None, Some(signal)) => Some(Exit::Signal(signal)),
        (None, None) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_process_zero_or_below() {
        assert_eq!(open(0).unwrap_err(), Errno::INVAL);
        assert_eq!(open(-1).unwrap_err(), Errno::INVAL);
    }

    #[expect(clippy::zombie_processes, reason = "reaped through its pidfd")]
    fn child(script: &str) -> OwnedFd {
        let child = std::process::Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
        open(i32::try_from(child.id()).unwrap()).unwrap()
    }

    #[test]
    fn a_killed_child_is_told_from_one_that_ended() {
        for (script, exit) in [("exit 7", Exit::Code(7)), ("kill -9 $$", Exit::Signal(9))] {
            let pidfd = child(script);
            assert_eq!(wait(&pidfd).unwrap(), exit);
        }
    }

    #[test]
    fn a_child_is_waited_for_until_its_time_is_over() {
        assert_eq!(wait_at_most(child("exit 7"), Duration::from_secs(60)).unwrap(), Some(Exit::Code(7)));
        assert_eq!(wait_at_most(child("exit 7"), Duration::MAX).unwrap(), Some(Exit::Code(7)));
        let pidfd = child("exec sleep 60");
        assert_eq!(wait_at_most(&pidfd, Duration::from_millis(20)).unwrap(), None);
        assert_eq!(send_signal(&pidfd, 0).unwrap_err(), Errno::SRCH, "killed and reaped");
    }

    #[test]
    fn a_running_child_is_not_waited_for() {
        let pidfd = child("exec sleep 60");
        assert_eq!(try_wait(&pidfd).unwrap(), None);
        send_signal(&pidfd, libc::SIGKILL).unwrap();
        assert_eq!(wait(&pidfd).unwrap().code(), 137);
    }
}
