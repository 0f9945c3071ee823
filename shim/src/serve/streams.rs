//! Pipes and terminals between a process of the container and whoever it talks to: the log, or a daemon.
//! Runs in the shim's only thread, before a launch or an exec.
//! Owns both ends until they are handed over: the child's to the launcher, ours to an [`Output`] or to the daemon's socket.
//! Must never make one of our ends blocking, or the child's ends non-blocking.

use std::os::fd::OwnedFd;

use keelson_api::shim::{OpenExec, Stdio};
use keelson_shim::launch::ChildStdio;
use keelson_shim::spec::{ConsoleSize, Spec};
use rustix::fs::{Mode, OFlags};
use rustix::io;
use rustix::pipe::PipeFlags;

use super::log::{DEFAULT_MAX, Stream};
use super::output::Output;
use crate::owner;

/// Both ends of the init's standard streams.
pub(super) struct InitStreams {
    pub(super) child: ChildStdio,
    pub(super) outputs: Vec<Output>,
    /// Writing end of its stdin.
    pub(super) stdin: Option<OwnedFd>,
}

/// Which streams of an exec are somebody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Terminal(Option<ConsoleSize>),
    Pipes { stdin: bool, stdout: bool, stderr: bool },
}

/// Our ends of an exec's streams.
#[derive(Default)]
pub(super) struct Ours {
    pub(super) terminal: Option<OwnedFd>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

impl InitStreams {
    pub(super) fn open(stdio: Option<&Stdio>, spec: &Spec) -> io::Result<InitStreams> {
        let Some(stdio) = stdio else {
            let child = ChildStdio::Fds { stdin: null()?, stdout: null()?, stderr: null()? };
            return Ok(InitStreams { child, outputs: Vec::new(), stdin: None });
        };
        if stdio.terminal {
            return Ok(InitStreams { child: ChildStdio::Terminal, outputs: Vec::new(), stdin: None });
        }
        let owner = owner::on_host(spec.process.as_ref(), spec);
        let max_line = max_line(Some(stdio));
        let (stdout, stderr) = (from_child(owner)?, from_child(owner)?);
        let (stdin, held) = if stdio.stdin {
            let (reader, writer) = to_child(owner)?;
            (reader, Some(writer))
        } else {
            (null()?, None)
        };
        let outputs =
            vec![Output::new(Stream::Stdout, stdout.0, max_line), Output::new(Stream::Stderr, stderr.0, max_line)];
        Ok(InitStreams { child: ChildStdio::Fds { stdin, stdout: stdout.1, stderr: stderr.1 }, outputs, stdin: held })
    }
}

impl Wanted {
    /// For an ExecSync: its output is collected here.
    pub(super) const COLLECTED: Wanted = Wanted::Pipes { stdin: false, stdout: true, stderr: true };

    pub(super) fn of(call: &OpenExec) -> Wanted {
        if !call.terminal {
            return Wanted::Pipes { stdin: call.stdin, stdout: call.stdout, stderr: call.stderr };
        }
        let side = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
        let size = ConsoleSize { height: side(call.rows), width: side(call.columns) };
        Wanted::Terminal((size.height, size.width).ne(&(0, 0)).then_some(size))
    }

    /// The child's ends and ours; a terminal's master comes with the launched process. `owner` as the host counts.
    pub(super) fn open(self, owner: (u32, u32)) -> io::Result<(ChildStdio, Ours)> {
        let Wanted::Pipes { stdin, stdout, stderr } = self else {
            return Ok((ChildStdio::Terminal, Ours::default()));
        };
        let mut ours = Ours::default();
        let stdin = if stdin {
            let (reader, writer) = to_child(owner)?;
            ours.stdin = Some(writer);
            reader
        } else {
            null()?
        };
        let output = |wanted: bool, ours: &mut Option<OwnedFd>| {
            if !wanted {
                return null();
            }
            let (reader, writer) = from_child(owner)?;
            *ours = Some(reader);
            Ok(writer)
        };
        let (stdout, stderr) = (output(stdout, &mut ours.stdout)?, output(stderr, &mut ours.stderr)?);
        Ok((ChildStdio::Fds { stdin, stdout, stderr }, ours))
    }
}

/// Longest log record that the daemon asks for.
pub(super) fn max_line(stdio: Option<&Stdio>) -> usize {
    match stdio.map_or(0, |stdio| stdio.max_line) {
        0 => DEFAULT_MAX,
        length => usize::try_from(length).unwrap_or(DEFAULT_MAX),
    }
}

/// Our reading end and the child's writing end, which can be opened again through /dev/stdout by its owner.
fn from_child(owner: (u32, u32)) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    nonblocking(&reader)?;
    give(&writer, owner)?;
    Ok((reader, writer))
}

/// The child's reading end and our writing end.
fn to_child(owner: (u32, u32)) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    nonblocking(&writer)?;
    give(&reader, owner)?;
    Ok((reader, writer))
}

fn give(fd: &OwnedFd, (uid, gid): (u32, u32)) -> io::Result<()> {
    if (uid, gid) == (0, 0) {
        return Ok(());
    }
    rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))
}

pub(super) fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? | OFlags::NONBLOCK)
}

pub(super) fn null() -> io::Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}
