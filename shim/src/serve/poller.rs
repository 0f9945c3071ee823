//! Readiness: one epoll set, and the small words that say what has become ready.
//! Runs in the shim's only thread, which waits here and nowhere else.
//! Owns the epoll descriptor; the watched ones belong to others, and leave the set when they are closed.
//! Must never hand out a token twice: an event may be read after its owner has gone.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::{self, Errno};

use super::log::Stream;

/// Who is ready. Numbers are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// A signal has arrived.
    Signals,
    /// Somebody connects.
    Listener,
    /// A daemon's connection.
    Connection(u32),
    /// The container's own output.
    Output(Stream),
    /// The output of an ExecSync.
    Exec(u32, Stream),
    /// Nobody reads this stream of an attach session any more.
    Attach(u32, Stream),
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) read: bool,
    pub(super) write: bool,
}

impl Interest {
    pub(super) const READ: Interest = Interest { read: true, write: false };
    /// Only what comes unasked: the other side has gone.
    pub(super) const NONE: Interest = Interest { read: false, write: false };

    fn flags(self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, self.read);
        flags.set(epoll::EventFlags::OUT, self.write);
        flags
    }
}

/// The set.
pub(super) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub(super) fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    pub(super) fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.encode()), interest.flags())
    }

    pub(super) fn modify(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token.encode()), interest.flags())
    }

    /// Forgets a descriptor of which others may have copies: those would keep it in the set.
    pub(super) fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        epoll::delete(&self.epoll, fd)
    }

    /// What has become ready; nothing after `timeout`. Without one it waits for ever.
    pub(super) fn wait(&self, ready: &mut Vec<Token>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        // Rounded up: waking before a deadline would only wait again.
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 16];
        let count = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(errno) => return Err(errno),
        };
        ready.extend(events.iter().take(count).filter_map(|event| Token::decode(event.data.u64())));
        Ok(())
    }
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, id) = match self {
            Token::Signals => (1, 0),
            Token::Listener => (2, 0),
            Token::Connection(id) => (3, id),
            Token::Output(Stream::Stdout) => (4, 0),
            Token::Output(Stream::Stderr) => (5, 0),
            Token::Exec(id, Stream::Stdout) => (6, id),
            Token::Exec(id, Stream::Stderr) => (7, id),
            Token::Attach(id, Stream::Stdout) => (8, id),
            Token::Attach(id, Stream::Stderr) => (9, id),
        };
        kind << 32 | u64::from(id)
    }

    fn decode(word: u64) -> Option<Token> {
        let id = u32::try_from(word & u64::from(u32::MAX)).ok()?;
        Some(match word >> 32 {
            1 => Token::Signals,
            2 => Token::Listener,
            3 => Token::Connection(id),
            4 => Token::Output(Stream::Stdout),
            5 => Token::Output(Stream::Stderr),
            6 => Token::Exec(id, Stream::Stdout),
            7 => Token::Exec(id, Stream::Stderr),
            8 => Token::Attach(id, Stream::Stdout),
            9 => Token::Attach(id, Stream::Stderr),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut ready = Vec::new();
        for token in [
            Token::Signals,
            Token::Listener,
            Token::Connection(7),
            Token::Output(Stream::Stderr),
            Token::Exec(u32::MAX, Stream::Stdout),
            Token::Exec(0, Stream::Stderr),
            Token::Attach(3, Stream::Stdout),
            Token::Attach(3, Stream::Stderr),
        ] {
            let poller = Poller::new().unwrap();
            poller.add(&reader, token, Interest::READ).unwrap();
            poller.wait(&mut ready, Some(Duration::ZERO)).unwrap();
            assert!(ready.is_empty());
            rustix::io::write(&writer, b"x").unwrap();
            poller.wait(&mut ready, None).unwrap();
            assert_eq!(ready, [token]);
            rustix::io::read(&reader, &mut [0; 4]).unwrap();
        }
    }
}
