//! The daemon's ends of a process's streams, as tokio reads and writes them.
//! Used by the task that carries a session's bytes; nothing here blocks.
//! Owns the descriptors that a shim has passed. Must never keep a stream open for a background child alone.

use std::{
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustix::termios::Winsize;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    net::unix::pipe,
};

use super::{Size, drain::Drain};

/// A terminal's master; clones are the same terminal.
#[derive(Debug, Clone)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

/// Standard input of a process, from outside. Dropping it, or shutting it down, is the end of a pipe; a terminal has no end.
#[derive(Debug)]
pub struct Input(Sink);

#[derive(Debug)]
enum Sink {
    Pipe(pipe::Sender),
    Terminal(Terminal),
    Closed,
}

/// Output of a process. It ends when nobody writes it any more, or, of an exec, soon after its process has ended.
pub struct Output {
    source: Source,
    drain: Option<Drain>,
    over: bool,
}

enum Source {
    Pipe(pipe::Receiver),
    Terminal(Terminal),
}

impl Terminal {
    pub(super) fn new(master: OwnedFd, interest: Interest) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "sound for an OwnedFd, which the AsyncFd owns; the successor is unsafe, and unsafe code lives in sys"
        )]
        let master = AsyncFd::with_interest(master, interest)?;
        Ok(Self(Arc::new(master)))
    }

    /// Tells the programs in it how large it is.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.0.get_ref(), size)?)
    }

    fn poll_read(&self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let got = ready.try_io(|master| Ok(rustix::io::read(master.get_ref(), buffer.initialize_unfilled())?));
            match got {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // No process has it open any more.
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }

    fn poll_write(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            match ready.try_io(|master| Ok(rustix::io::write(master.get_ref(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_) => {}
            }
        }
    }
}

impl Input {
    pub(super) fn pipe(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(Sink::Pipe(pipe::Sender::from_owned_fd(fd)?)))
    }

    pub(super) fn terminal(terminal: Terminal) -> Self {
        Self(Sink::Terminal(terminal))
    }
}

impl AsyncWrite for Input {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Sink::Pipe(pipe) => Pin::new(pipe).poll_write(context, bytes),
            Sink::Terminal(terminal) => terminal.poll_write(context, bytes),
            Sink::Closed => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 = Sink::Closed;
        Poll::Ready(Ok(()))
    }
}

impl Output {
    pub(super) fn pipe(fd: OwnedFd, drain: Option<Drain>) -> io::Result<Self> {
        Ok(Self { source: Source::Pipe(pipe::Receiver::from_owned_fd(fd)?), drain, over: false })
    }

    pub(super) fn terminal(terminal: Terminal, drain: Drain) -> Self {
        Self { source: Source::Terminal(terminal), drain: Some(drain), over: false }
    }
}

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.over || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let got = match &mut this.source {
            Source::Pipe(pipe) => Pin::new(pipe).poll_read(context, buffer),
            Source::Terminal(terminal) => terminal.poll_read(context, buffer),
        };
        match got {
            Poll::Ready(Ok(())) => {
                let count = buffer.filled().len() - before;
                this.over = count == 0 || this.drain.as_mut().is_some_and(|drain| drain.heard(count));
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(this.drain.as_mut().map_or(Poll::Pending, |drain| drain.silent(context)));
                this.over = true;
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("over", &self.over).finish_non_exhaustive()
    }
}
