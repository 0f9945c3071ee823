//! Staying with a process until it ends: its signals, its terminal, its exit code.
//! In a foreground `run` or `exec`, whose only thread waits here.
//! Owns the caller's terminal mode while there is one, and gives it back.
//! Must never end before the process, nor swallow a signal meant for it.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use keelson_sys::pidfd;
use keelson_sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::termios::{OptionalActions, Termios};

use super::error::{OciError, system};

const FORWARDED: [Signal; 6] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

/// Whether this process has a terminal to lend.
pub(super) fn has_terminal() -> bool {
    rustix::termios::isatty(rustix::stdio::stdin())
}

/// Before a container is made: its orphans come here.
pub(super) fn adopt_orphans() -> Result<(), OciError> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(system("become a subreaper"))
}

/// Before the process is made: from now on signals wait, and [`wait`] passes them on.
pub(super) fn hold_signals() -> Result<SignalFd, OciError> {
    let mut wanted: Vec<i32> = FORWARDED.iter().map(|signal| signal.as_raw()).collect();
    wanted.push(Signal::WINCH.as_raw());
    SignalFd::block(&wanted).map_err(system("open signalfd"))
}

/// Waits for a child's end; meanwhile signals go to it, and the terminal is relayed.
pub(super) fn wait(child: &OwnedFd, signals: &SignalFd, terminal: Option<&OwnedFd>) -> Result<ExitCode, OciError> {
    let lent = terminal.map(Lent::begin).transpose().map_err(system("use terminal"))?;
    let mut typing = lent.is_some();
    loop {
        let mut fds = vec![PollFd::new(child, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        if let Some(lent) = &lent {
            fds.push(PollFd::new(lent.master, PollFlags::IN));
            if typing {
                fds.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(system("wait for the process")(errno)),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let is_ready = |at: usize| ready.get(at).copied().unwrap_or(false);
        while let Ok(Some(signal)) = signals.read() {
            match &lent {
                Some(lent) if signal == Signal::WINCH.as_raw() => lent.resize(),
                // A process that has just ended takes no signal: its end is seen next.
                _ => drop(pidfd::send_signal(child, signal)),
            }
        }
        if let Some(lent) = &lent {
            if is_ready(2) {
                relay(lent.master.as_fd(), rustix::stdio::stdout());
            }
            if is_ready(3) {
                typing = relay(rustix::stdio::stdin(), lent.master.as_fd());
            }
        }
        if is_ready(0) {
            break;
        }
    }
    if let Some(lent) = &lent {
        while lent.has_output() && relay(lent.master.as_fd(), rustix::stdio::stdout()) {}
    }
    let exit = pidfd::wait(child).map_err(system("wait for the process"))?;
    Ok(ExitCode::from(u8::try_from(exit.code()).unwrap_or(u8::MAX)))
}

/// The caller's terminal in raw mode, the container's at its size.
struct Lent<'a> {
    master: &'a OwnedFd,
    /// As the caller's was; none when it has none.
    before: Option<Termios>,
}

impl<'a> Lent<'a> {
    fn begin(master: &'a OwnedFd) -> rustix::io::Result<Lent<'a>> {
        if !has_terminal() {
            return Ok(Lent { master, before: None });
        }
        let stdin = rustix::stdio::stdin();
        let before = rustix::termios::tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        let lent = Lent { master, before: Some(before) };
        rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw)?;
        lent.resize();
        Ok(lent)
    }

    fn resize(&self) {
        // A terminal that does not tell its size leaves the container's as it is.
        if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
            let _ = rustix::termios::tcsetwinsize(self.master, size);
        }
    }

    fn has_output(&self) -> bool {
        let mut fds = [PollFd::new(self.master, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}

/// One read and its writes; false at the end of either side.
fn relay(from: impl AsFd, to: impl AsFd) -> bool {
    let mut buffer = [0; 4096];
    let Ok(got @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(&from, &mut buffer)) else { return false };
    let mut rest = buffer.get(..got).unwrap_or_default();
    while !rest.is_empty() {
        match rustix::io::write(&to, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}
