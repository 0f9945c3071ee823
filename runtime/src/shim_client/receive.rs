//! Reading a shim's replies, and the descriptors that travel with some of them.
//! Runs on tokio, in the future that `ShimClient::attach` returns.
//! Owns the unfinished reply and descriptors whose reply is not whole yet.
//! Must never hold a buffer while the shim is silent, nor lose a descriptor without closing it.

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
};

use keelson_api::shim::{Outcome, Reply, Streams, frame};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::{
    io::Interest,
    net::{UnixStream, unix::OwnedReadHalf},
};

use super::pending::Pending;

/// Most descriptors of one reply.
const FDS: usize = 4;
/// Bytes asked of the socket at once, at least and at most.
const CHUNK: (usize, usize) = (4 * 1024, 256 * 1024);

/// Reads until the shim is gone.
pub(super) async fn replies(reader: OwnedReadHalf, pending: &Pending) -> Result<(), frame::FrameError> {
    let mut buffer: Vec<u8> = Vec::new();
    let mut fds = VecDeque::new();
    loop {
        while let Some((reply, used)) = frame::decode::<Reply>(&buffer)? {
            buffer.drain(..used);
            if let Some(outcome) = reply.outcome {
                let own = match &outcome {
                    Outcome::Streams(streams) => fds.drain(..count(streams).min(fds.len())).collect(),
                    _ => Vec::new(),
                };
                pending.answer(reply.seq, outcome, own);
            }
        }
        if buffer.is_empty() {
            buffer = Vec::new();
        }
        match receive(reader.as_ref(), &mut buffer, &mut fds).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(_) => {}
        }
    }
}

/// How many descriptors belong to this answer.
pub(super) fn count(streams: &Streams) -> usize {
    [streams.terminal, streams.stdin, streams.stdout, streams.stderr].into_iter().filter(|present| *present).count()
}

async fn receive(socket: &UnixStream, buffer: &mut Vec<u8>, fds: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    loop {
        socket.readable().await?;
        let filled = buffer.len();
        buffer.resize(filled + filled.clamp(CHUNK.0, CHUNK.1), 0);
        let got = socket.try_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let free = buffer.get_mut(filled..).unwrap_or_default();
            let received = rustix::net::recvmsg(
                socket,
                &mut [IoSliceMut::new(free)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
            )?;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
            Ok(received.bytes)
        });
        buffer.truncate(filled + got.as_ref().map_or(0, |got| *got));
        match got {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            other => return other,
        }
    }
}
