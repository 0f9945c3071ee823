//! The daemon of `keelson try`: this same program as a child, ready when it says so, stopped with SIGTERM.
//! Main thread, blocking. Owns the child and its log file `daemon.log`.
//! Must never leave the child running: it is stopped on drop, killed only when it does not listen.

use std::{
    fs::File,
    io,
    os::unix::{net::UnixDatagram, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{super::CliError, broken};
use crate::config::Config;

const LOG: &str = "daemon.log";
const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(30);

pub(super) struct Daemon(Child);

impl Daemon {
    /// Starts it and waits until it says that it serves, as a service manager would.
    pub(super) fn start(file: Option<&Path>, config: &Config, scratch: &Path) -> Result<Self, CliError> {
        const STEP: &str = "start the daemon";
        let failed = |source| CliError::Host { act: STEP, source };
        let notify = scratch.join("notify");
        let ready = UnixDatagram::bind(&notify).map_err(failed)?;
        ready.set_read_timeout(Some(Duration::from_millis(100))).map_err(failed)?;
        let log = File::create(scratch.join(LOG)).map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("serve");
        if let Some(file) = file {
            command.arg("--config").arg(file);
        }
        command.arg("--root").arg(&config.root).arg("--state").arg(&config.state).arg("--socket").arg(&config.socket);
        command.env("NOTIFY_SOCKET", &notify).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // Its own group: a person's Ctrl-C is for `keelson try`, which still needs the daemon to clean up.
        let mut daemon = Self(command.process_group(0).spawn().map_err(failed)?);
        let deadline = Instant::now() + START;
        let mut message = [0; 1024];
        while Instant::now() < deadline {
            if let Ok(length) = ready.recv(&mut message)
                && message.get(..length).is_some_and(|said| said.starts_with(b"READY=1"))
            {
                let _ = std::fs::remove_file(&notify);
                return Ok(daemon);
            }
            if let Some(status) = daemon.0.try_wait().map_err(failed)? {
                return Err(broken(STEP, format_args!("it ended at once ({status})")));
            }
        }
        Err(broken(STEP, format_args!("it did not say that it serves within {} s", START.as_secs())))
    }

    pub(super) fn stop(mut self) -> Result<(), CliError> {
        const STEP: &str = "stop the daemon";
        match self.end().map_err(|source| CliError::Host { act: STEP, source })? {
            status if status.success() => Ok(()),
            status => Err(broken(STEP, format_args!("it ended with {status} and not with code 0"))),
        }
    }

    fn end(&mut self) -> io::Result<std::process::ExitStatus> {
        if let Some(status) = self.0.try_wait()? {
            return Ok(status);
        }
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let deadline = Instant::now() + STOP;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.0.kill()?;
        self.0.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The last lines of the daemon's log, for whoever has to find out why a step failed.
pub(super) fn show_log(scratch: &Path) {
    const LINES: usize = 20;
    let path = scratch.join(LOG);
    let Ok(text) = std::fs::read_to_string(&path) else { return };
    let lines: Vec<&str> = text.lines().collect();
    super::out::line(format_args!("\n==> It failed; the last lines of the daemon's log:"));
    for line in lines.iter().skip(lines.len().saturating_sub(LINES)) {
        super::out::line(format_args!("    | {line}"));
    }
}
