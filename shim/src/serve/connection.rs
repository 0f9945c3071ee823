//! One daemon's connection: requests in, replies out, neither holding up the loop.
//! Runs in the shim's only thread; every read and write is non-blocking.
//! Owns the socket, the unfinished request and the replies that the peer has not taken yet.
//! Must never read on while the peer does not take its replies, and never outlive one malformed frame.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use keelson_api::shim::frame::{self, FrameError};
use keelson_api::shim::{Outcome, Reply, Request};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::poller::Interest;

/// Replies waiting for the peer beyond this many bytes: its requests are not read.
const BACKLOG: usize = 256 * 1024;
/// Most descriptors that one reply carries.
const FDS: usize = 4;
/// Bytes asked of the socket at once.
const CHUNK: usize = 8 * 1024;

/// A connection.
pub(super) struct Connection {
    pub(super) id: u32,
    socket: OwnedFd,
    input: Vec<u8>,
    output: VecDeque<Outgoing>,
    /// Bytes of `output[0]` that are sent.
    sent: usize,
    pub(super) interest: Interest,
}

/// A reply that the peer has not taken yet.
struct Outgoing {
    frame: Vec<u8>,
    /// Travel with the first byte; empty afterwards.
    fds: Vec<OwnedFd>,
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closed {
    #[error("the peer hung up")]
    HungUp,
    #[error("read request")]
    Malformed(#[from] FrameError),
    #[error("request without a sequence number")]
    Unnumbered,
    #[error("use socket")]
    Socket(#[from] Errno),
}

impl Connection {
    /// Takes over a connected, non-blocking stream socket.
    pub(super) fn new(id: u32, socket: OwnedFd) -> Connection {
        Connection { id, socket, input: Vec::new(), output: VecDeque::new(), sent: 0, interest: Interest::READ }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what is there and returns the next whole request; `None` when more must arrive first.
    pub(super) fn next_request(&mut self) -> Result<Option<Request>, Closed> {
        loop {
            if let Some((request, used)) = frame::decode::<Request>(&self.input)? {
                self.input.drain(..used);
                if self.input.is_empty() {
                    self.input = Vec::new();
                }
                return if request.seq == 0 { Err(Closed::Unnumbered) } else { Ok(Some(request)) };
            }
            self.input.reserve(CHUNK);
            match rustix::io::read(&self.socket, spare_capacity(&mut self.input)) {
                // The second: with replies that it has not read.
                Ok(0) | Err(Errno::CONNRESET) => return Err(Closed::HungUp),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if self.input.is_empty() {
                        self.input = Vec::new();
                    }
                    return Ok(None);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Whether the peer takes its replies, so that its next request may be read.
    pub(super) fn keeps_up(&self) -> bool {
        self.output.iter().map(|reply| reply.frame.len()).sum::<usize>() - self.sent <= BACKLOG
    }

    /// Queues a reply and the descriptors that go with it, at most [`FDS`], and sends what the socket takes.
    pub(super) fn reply(&mut self, seq: u64, outcome: Outcome, fds: Vec<OwnedFd>) -> Result<(), Closed> {
        self.output.push_back(Outgoing { frame: frame::encode(&Reply { seq, outcome: Some(outcome) }), fds });
        self.flush()
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self) -> Result<(), Closed> {
        while let Some(first) = self.output.front_mut() {
            let rest = first.frame.get(self.sent..).unwrap_or_default();
            if rest.is_empty() {
                self.output.pop_front();
                self.sent = 0;
                continue;
            }
            match send(&self.socket, rest, &first.fds) {
                Ok(sent) => {
                    self.sent += sent;
                    first.fds = Vec::new();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Closed::HungUp),
                Err(errno) => return Err(errno.into()),
            }
        }
        self.output = VecDeque::new();
        Ok(())
    }

    /// Whether every reply has been sent.
    #[cfg(test)]
    pub(super) fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// What this connection waits for now.
    pub(super) fn wanted(&self) -> Interest {
        Interest { read: self.keeps_up(), write: !self.output.is_empty() }
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[OwnedFd]) -> rustix::io::Result<usize> {
    if fds.is_empty() {
        return rustix::net::send(socket, bytes, SendFlags::NOSIGNAL);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::TOOMANYREFS);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use keelson_api::shim::{Call, Done, ExecResult, GetState};

    use super::*;

    fn pair() -> (UnixStream, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, Connection::new(1, theirs.into()))
    }

    fn request(seq: u64) -> Vec<u8> {
        frame::encode(&Request { seq, call: Some(Call::State(GetState {})) })
    }

    #[test]
    fn pipelined_and_split_requests_are_read_one_by_one() {
        let (mut peer, mut connection) = pair();
        let bytes = [request(1), request(2), request(3)].concat();
        let (head, tail) = bytes.split_at(bytes.len() - 2);
        peer.write_all(head).unwrap();
        assert_eq!(connection.next_request().unwrap().unwrap().seq, 1);
        assert_eq!(connection.next_request().unwrap().unwrap().seq, 2);
        assert!(connection.next_request().unwrap().is_none());
        peer.write_all(tail).unwrap();
        assert_eq!(connection.next_request().unwrap().unwrap().seq, 3);
        assert!(connection.next_request().unwrap().is_none());
        assert_eq!(connection.input.capacity(), 0);
        drop(peer);
        assert!(matches!(connection.next_request(), Err(Closed::HungUp)));
    }

    #[test]
    fn a_malformed_frame_or_number_ends_the_connection() {
        for bytes in [vec![0xff; 8], vec![2, 0, 0, 0, 0xff, 0xff], request(0)] {
            let (mut peer, mut connection) = pair();
            peer.write_all(&bytes).unwrap();
            assert!(connection.next_request().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_slow_peer_is_not_read_from_until_it_has_taken_its_replies() {
        let (mut peer, mut connection) = pair();
        let exec = ExecResult { stdout: vec![7; 3 << 20], ..ExecResult::default() };
        connection.reply(1, Outcome::Exec(exec), Vec::new()).unwrap();
        connection.reply(2, Outcome::Done(Done {}), Vec::new()).unwrap();
        assert_eq!(connection.wanted(), Interest { read: false, write: true });
        let reader = std::thread::spawn(move || {
            let mut bytes = vec![0; 3 << 20];
            peer.read_exact(&mut bytes).unwrap();
            peer
        });
        while !connection.keeps_up() {
            connection.flush().unwrap();
            std::thread::yield_now();
        }
        while !connection.is_flushed() {
            connection.flush().unwrap();
        }
        assert_eq!(connection.wanted(), Interest::READ);
        drop(reader.join().unwrap());
    }
}
