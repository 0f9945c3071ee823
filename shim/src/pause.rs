//! `keelson-shim pause`: the program of the container that holds a pod's sandbox, under a runtime that puts a whole pod into one.
//! Runs inside that sandbox, as its first process and with nothing but itself in the root filesystem; the other containers come and go.
//! Owns nothing.
//! Must never end before it is told to, nor leave an orphan unreaped.

use std::io;
use std::process::ExitCode;

use keelson_sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Signal, WaitOptions};

/// Stays until SIGTERM or SIGINT.
pub(crate) fn run() -> io::Result<ExitCode> {
    let signals = SignalFd::block(&[Signal::TERM.as_raw(), Signal::INT.as_raw(), Signal::CHILD.as_raw()])?;
    loop {
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        match signals.read()? {
            Some(signal) if signal != Signal::CHILD.as_raw() => return Ok(ExitCode::SUCCESS),
            Some(_) => {}
            None => {
                let _ = rustix::event::poll(&mut [PollFd::new(&signals, PollFlags::IN)], None);
            }
        }
    }
}
