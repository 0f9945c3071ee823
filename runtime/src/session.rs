//! Sessions with a process of a container: an exec of its own, or the init that is attached to. Streams, size, end.
//! Runs on tokio. A session's bytes go between its process and the daemon; its shim passes the descriptors and copies none of an exec.
//! Owns the streams until they are taken, and the session: dropping it kills what an exec started, and detaches an attach.
//! Must never speak an outer protocol.

mod drain;
pub mod port;
mod stream;

use std::{io, os::fd::OwnedFd, sync::Arc};

use keelson_api::{ContainerId, shim::Outcome};
use tokio::io::Interest;

pub use stream::{Input, Output, Terminal};

use self::drain::Drain;
use crate::{
    container::ContainerError,
    shim_client::{Session, SessionHandle, pending::Ended},
};

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Height.
    pub rows: u16,
    /// Width.
    pub columns: u16,
}

/// What to run in a container, and which streams of it are wanted. It runs as the container's own process does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecSpec {
    /// Program and arguments; not empty.
    pub args: Vec<String>,
    /// In a terminal: then there is no standard error of its own.
    pub terminal: bool,
    /// Standard input is ours; else it is at its end.
    pub stdin: bool,
    /// Standard output is ours; else it is discarded.
    pub stdout: bool,
    /// Standard error is ours; else it is discarded.
    pub stderr: bool,
    /// Of the terminal, from the beginning.
    pub size: Option<Size>,
}

/// Which streams of a container's init are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttachSpec {
    /// The container has a terminal: what the caller believes must be true.
    pub terminal: bool,
    /// Standard input.
    pub stdin: bool,
    /// Standard output, from now on.
    pub stdout: bool,
    /// Standard error, from now on.
    pub stderr: bool,
}

/// How an attach session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// The container has ended, or closed its output.
    ContainerEnded,
    /// The reader was more than a megabyte behind. What it missed is in the log.
    FellBehind,
}

/// A process that was added to a container.
#[must_use = "dropping it kills the process"]
pub struct ExecSession {
    /// To take.
    pub stdin: Option<Input>,
    /// To take.
    pub stdout: Option<Output>,
    /// To take.
    pub stderr: Option<Output>,
    terminal: Option<Terminal>,
    inner: Inner,
}

/// A listener to a container's init.
#[must_use = "dropping it ends the session"]
pub struct AttachSession {
    /// To take. Absent when it was not asked for, or when the container has none, or none any more.
    pub stdin: Option<Input>,
    /// To take.
    pub stdout: Option<Output>,
    /// To take.
    pub stderr: Option<Output>,
    terminal: Option<Terminal>,
    inner: Inner,
}

struct Inner {
    act: &'static str,
    id: ContainerId,
    ended: Ended,
    handle: SessionHandle,
}

/// The descriptors by name.
struct Descriptors {
    terminal: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl ExecSession {
    pub(crate) fn new(id: ContainerId, spec: &ExecSpec, session: Session) -> Result<Self, ContainerError> {
        let (fds, inner) = Inner::new("exec in", id, session);
        let drain = || Drain::new(inner.ended.clone());
        let opened = || -> io::Result<_> {
            if let Some(master) = fds.terminal {
                let terminal = Terminal::new(master, Interest::READABLE | Interest::WRITABLE)?;
                let stdin = spec.stdin.then(|| Input::terminal(terminal.clone()));
                let stdout = Output::terminal(terminal.clone(), drain());
                return Ok((stdin, Some(stdout), None, Some(terminal)));
            }
            let output = |fd: Option<OwnedFd>| fd.map(|fd| Output::pipe(fd, Some(drain()))).transpose();
            Ok((fds.stdin.map(Input::pipe).transpose()?, output(fds.stdout)?, output(fds.stderr)?, None))
        };
        let (stdin, stdout, stderr, terminal) = opened().map_err(|error| inner.failed("use streams", error))?;
        Ok(Self { stdin, stdout, stderr, terminal, inner })
    }

    /// Its terminal, to resize.
    #[must_use]
    pub fn terminal(&self) -> Option<Terminal> {
        self.terminal.clone()
    }

    /// Waits for the process's end; its exit code, 128 + signal. May be given up and called again.
    ///
    /// # Errors
    /// The container has lost its shim.
    pub async fn wait(&mut self) -> Result<i32, ContainerError> {
        match self.inner.end().await? {
            Outcome::Exec(result) => Ok(result.exit_code),
            _ => Err(self.inner.failed("wait for its end", io::Error::other("the shim's answer is no exit code"))),
        }
    }

    /// Kills everything it started; [`Self::wait`] tells when it has ended.
    pub fn kill(&self) {
        self.inner.handle.end();
    }
}

impl AttachSession {
    pub(crate) fn new(
        id: ContainerId,
        spec: AttachSpec,
        session: Session,
        has_stdin: bool,
    ) -> Result<Self, ContainerError> {
        let (fds, inner) = Inner::new("attach to", id, session);
        let opened = || -> io::Result<_> {
            let terminal = fds.terminal.map(|master| Terminal::new(master, Interest::WRITABLE)).transpose()?;
            let stdin = match (&terminal, fds.stdin) {
                (Some(terminal), _) => (spec.stdin && has_stdin).then(|| Input::terminal(terminal.clone())),
                (None, fd) => fd.map(Input::pipe).transpose()?,
            };
            let output = |fd: Option<OwnedFd>| fd.map(|fd| Output::pipe(fd, None)).transpose();
            Ok((stdin, output(fds.stdout)?, output(fds.stderr)?, terminal))
        };
        let (stdin, stdout, stderr, terminal) = opened().map_err(|error| inner.failed("use streams", error))?;
        Ok(Self { stdin, stdout, stderr, terminal, inner })
    }

    /// The container's terminal, to resize.
    #[must_use]
    pub fn terminal(&self) -> Option<Terminal> {
        self.terminal.clone()
    }

    /// Waits for the session's end; what was said before it is in the streams. May be given up and called again.
    ///
    /// # Errors
    /// The container has lost its shim.
    pub async fn wait(&mut self) -> Result<Detached, ContainerError> {
        match self.inner.end().await {
            Ok(Outcome::Detached(detached)) if detached.fell_behind => Ok(Detached::FellBehind),
            Ok(Outcome::Detached(_)) => Ok(Detached::ContainerEnded),
            Ok(_) => {
                Err(self.inner.failed("wait for its end", io::Error::other("the shim's answer is no end of a session")))
            }
            Err(error) => Err(error),
        }
    }
}

impl Inner {
    fn new(act: &'static str, id: ContainerId, session: Session) -> (Descriptors, Self) {
        let Session { streams, fds, ended, handle } = session;
        let mut fds = fds.into_iter();
        let mut next = |present: bool| present.then(|| fds.next()).flatten();
        let fds = Descriptors {
            terminal: next(streams.terminal),
            stdin: next(streams.stdin),
            stdout: next(streams.stdout),
            stderr: next(streams.stderr),
        };
        (fds, Self { act, id, ended, handle })
    }

    async fn end(&mut self) -> Result<Outcome, ContainerError> {
        let last = self.ended.wait_for(Option::is_some).await.ok().and_then(|last| last.clone());
        last.ok_or_else(|| self.failed("ask its shim", self.handle.gone()))
    }

    fn failed(&self, stage: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> ContainerError {
        ContainerError::Failed { act: self.act, id: self.id.clone(), stage, source: Arc::new(error) }
    }
}

impl std::fmt::Debug for ExecSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecSession").field("container", &self.inner.id).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for AttachSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttachSession").field("container", &self.inner.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
