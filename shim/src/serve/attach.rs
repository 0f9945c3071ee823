//! Daemons that listen to the container's init: a pipe for each stream of each of them, filled with what the log gets.
//! Runs in the shim's only thread; nothing here waits for a listener.
//! Owns the writing ends. A listener's memory is its pipe's, in the kernel, and exists while somebody listens.
//! Must never hold up the log or the container: who is a whole pipe behind is let go, and told so.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use keelson_api::shim::Detached;
use rustix::io::{self, Errno};
use rustix::pipe::PipeFlags;

use super::Ticket;
use super::log::Stream;
use super::streams::nonblocking;

/// How far a listener may be behind, bytes; a kernel that grants less lets it be less.
const PIPE: usize = 1024 * 1024;

/// One attach session.
pub(super) struct Attach {
    pub(super) id: u32,
    /// Who is told of its end.
    pub(super) ticket: Ticket,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Something may still come.
    Open,
    /// The listener was too slow.
    FellBehind,
    /// Every stream has come to its end, on either side.
    Over,
}

impl Attach {
    /// A session without streams.
    pub(super) fn new(id: u32, ticket: Ticket) -> Attach {
        Attach { id, ticket, stdout: None, stderr: None, state: State::Open }
    }

    /// Makes a stream and returns its reading end. One that has come to its end already (`live` is false) is at its end.
    pub(super) fn listen(&mut self, stream: Stream, live: bool) -> io::Result<OwnedFd> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        nonblocking(&reader)?;
        nonblocking(&writer)?;
        if live {
            let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE);
            *self.slot(stream) = Some(writer);
        }
        Ok(reader)
    }

    pub(super) fn output(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        let slot = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        slot.as_ref().map(AsFd::as_fd)
    }

    /// Passes on what the container has said.
    pub(super) fn take(&mut self, stream: Stream, mut bytes: &[u8]) {
        while let (Some(pipe), false) = (self.output(stream), bytes.is_empty()) {
            match rustix::io::write(pipe, bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    (self.stdout, self.stderr) = (None, None);
                    self.state = State::FellBehind;
                }
                // Nobody reads it any more.
                Err(_) => self.close(stream),
            }
        }
    }

    /// One stream has come to its end: nobody reads it, or nobody writes it any more.
    pub(super) fn close(&mut self, stream: Stream) {
        if self.slot(stream).take().is_some() && self.stdout.is_none() && self.stderr.is_none() {
            self.state = State::Over;
        }
    }

    /// What to tell, when the session is over.
    pub(super) fn ended(&self) -> Option<Detached> {
        match self.state {
            State::Open => None,
            State::FellBehind => Some(Detached { fell_behind: true }),
            State::Over => Some(Detached { fell_behind: false }),
        }
    }

    fn slot(&mut self, stream: Stream) -> &mut Option<OwnedFd> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Attach {
        Attach::new(1, Ticket { connection: 1, seq: 1 })
    }

    #[test]
    fn a_listener_hears_its_stream_and_its_end() {
        let mut attach = session();
        let out = attach.listen(Stream::Stdout, true).unwrap();
        let err = attach.listen(Stream::Stderr, true).unwrap();
        attach.take(Stream::Stdout, b"out");
        let mut buffer = [0; 8];
        assert_eq!(rustix::io::read(&out, &mut buffer), Ok(3));
        assert_eq!(rustix::io::read(&err, &mut buffer), Err(Errno::AGAIN));
        attach.close(Stream::Stdout);
        assert_eq!((rustix::io::read(&out, &mut buffer), attach.ended()), (Ok(0), None));
        attach.close(Stream::Stderr);
        assert_eq!(attach.ended(), Some(Detached { fell_behind: false }));
    }

    #[test]
    fn a_stream_that_has_ended_before_is_at_its_end() {
        let mut attach = session();
        let out = attach.listen(Stream::Stdout, false).unwrap();
        assert_eq!(rustix::io::read(&out, &mut [0; 1]), Ok(0));
        assert_eq!(attach.ended(), None);
    }

    #[test]
    fn who_does_not_read_is_let_go_after_a_pipe() {
        let mut attach = session();
        let out = attach.listen(Stream::Stdout, true).unwrap();
        let block = [b'x'; 64 * 1024];
        let mut blocks = 0;
        while attach.ended().is_none() {
            attach.take(Stream::Stdout, &block);
            blocks += 1;
            assert!(blocks <= 17, "it is not let go");
        }
        assert_eq!(attach.ended(), Some(Detached { fell_behind: true }));
        let mut heard = 0;
        let mut buffer = vec![0; 1 << 20];
        while let Ok(count @ 1..) = rustix::io::read(&out, &mut buffer) {
            heard += count;
        }
        assert!(heard >= 64 * 1024, "{heard}");
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let mut attach = session();
        drop(attach.listen(Stream::Stdout, true).unwrap());
        attach.take(Stream::Stdout, b"anybody?");
        assert_eq!(attach.ended(), Some(Detached { fell_behind: false }));
    }
}
