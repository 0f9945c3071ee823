//! The netlink socket: sends a batch, accounts for every reply, turns a refusal into words.
//! Runs on the caller's thread; the kernel works while the caller is in `send`, so answers are there when it returns and no
//! read ever waits. Owns one descriptor, bound for its life to the network namespace of the thread that opened it.
//! Must never let a reply of an earlier request be taken for one of this request.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{self, AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink},
};

use super::{
    flags,
    message::{Attributes, Batch, Malformed, Message, Messages, aligned, read_u32},
};

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const RECEIVE: usize = 64 * 1024;
const DUMP_ATTEMPTS: u32 = 8;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel said no.
    #[error("{act} `{object}`: {errno}{}", tell(detail))]
    Refused {
        /// What was attempted.
        act: &'static str,
        /// On what.
        object: String,
        /// The kernel's answer.
        errno: Errno,
        /// The kernel's own words, if it had any.
        detail: String,
    },
    /// The request could not be sent or its answer not be read.
    #[error("{act} `{object}`: talk to the kernel over netlink")]
    Socket {
        /// What was attempted.
        act: &'static str,
        /// On what.
        object: String,
        /// The system call's error.
        #[source]
        source: io::Error,
    },
    /// The answer was not understood.
    #[error("{act} `{object}`: understand the kernel's answer")]
    Answer {
        /// What was attempted.
        act: &'static str,
        /// On what.
        object: String,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
    /// A value is too long for netlink.
    #[error("{act} `{object}`: a value is too long for a netlink attribute")]
    TooLong {
        /// What was attempted.
        act: &'static str,
        /// On what.
        object: String,
    },
}

fn tell(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": kernel says `{detail}`") }
}

impl NetlinkError {
    /// The kernel's answer, when it was a refusal.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            NetlinkError::Refused { errno, .. } => Some(*errno),
            NetlinkError::Socket { .. } | NetlinkError::Answer { .. } | NetlinkError::TooLong { .. } => None,
        }
    }
}

/// A netlink socket of one protocol, in the network namespace it was opened in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    seq: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// Of `socket` and `connect`.
    pub fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        // Connected to port 0, the socket takes messages from the kernel alone.
        net::connect(&fd, &SocketAddrNetlink::new(0, 0))?;
        // The kernel's own words are a help, not a need: without them the errno stays.
        if let Err(error) = keelson_sys::netlink::enable_ext_ack(fd.as_fd()) {
            tracing::debug!(%error, "netlink without extended acknowledgements");
        }
        Ok(Self { fd, seq: 1, buffer: Vec::new() })
    }

    /// Carries out every request of the batch in order, in one system call; later ones are carried out even when an
    /// earlier one is refused.
    ///
    /// # Errors
    /// The first refusal.
    pub fn execute(&mut self, mut batch: Batch) -> Result<(), NetlinkError> {
        let Some(last) = batch.len().checked_sub(1) else { return Ok(()) };
        first(self.run(&mut batch, Some(last), last, &mut |_| Ok(()))?)
    }

    /// As [`Socket::execute`], telling every refusal, each with the place of its request in the batch.
    ///
    /// # Errors
    /// When the kernel could not be talked to.
    pub fn execute_each(&mut self, mut batch: Batch) -> Result<Vec<(usize, NetlinkError)>, NetlinkError> {
        let Some(last) = batch.len().checked_sub(1) else { return Ok(Vec::new()) };
        self.run(&mut batch, Some(last), last, &mut |_| Ok(()))
    }

    /// Carries out one request and hands what it returns to `each`.
    ///
    /// # Errors
    /// A refusal, or what `each` could not read.
    pub fn query(
        &mut self,
        mut batch: Batch,
        mut each: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<(), NetlinkError> {
        let last = batch.len().saturating_sub(1);
        first(self.run(&mut batch, Some(last), last, &mut each)?)
    }

    /// An nfnetlink transaction: all or nothing. The closing message brings no acknowledgement of its own, so the one
    /// before it does.
    ///
    /// # Errors
    /// The first refusal; then nothing of the batch was done.
    pub fn transaction(&mut self, mut batch: Batch) -> Result<(), NetlinkError> {
        let Some(last) = batch.len().checked_sub(2) else { return Ok(()) };
        first(self.run(&mut batch, Some(last), last, &mut |_| Ok(()))?)
    }

    /// Asks for a listing, hands each entry to `each`; `restart` is called before it begins again, when the kernel says that
    /// the listing changed under it.
    ///
    /// # Errors
    /// A refusal, what `each` could not read, or a listing that never was stable.
    pub fn dump<T: Default>(
        &mut self,
        request: impl Fn(&mut Batch),
        each: impl Fn(&mut T, &Message<'_>) -> Result<(), Malformed>,
    ) -> Result<T, NetlinkError> {
        let mut attempt = 1;
        loop {
            let mut batch = Batch::new();
            request(&mut batch);
            let mut entries = T::default();
            let mut interrupted = false;
            first(self.run(&mut batch, None, 0, &mut |message| {
                interrupted |= message.flags & flags::DUMP_INTR != 0;
                each(&mut entries, message)
            })?)?;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(entries);
            }
            attempt += 1;
        }
    }

    fn run(
        &mut self,
        batch: &mut Batch,
        ack: Option<usize>,
        last: usize,
        each: &mut dyn FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Vec<(usize, NetlinkError)>, NetlinkError> {
        if let Some(index) = batch.overflow() {
            let (act, object) = batch.words(index);
            return Err(NetlinkError::TooLong { act, object: object.to_owned() });
        }
        let start = self.seq;
        let count = u32::try_from(batch.len()).unwrap_or(u32::MAX);
        self.seq = self.seq.wrapping_add(count);
        self.send(batch.seal(start, ack)).map_err(|source| lost(batch, 0, source))?;
        let mut refusals = Vec::new();
        loop {
            let length = match self.receive() {
                Ok(length) => length,
                // An aborted transaction may tell only why, and acknowledge nothing else.
                Err(_) if !refusals.is_empty() => return Ok(refusals),
                Err(source) => return Err(lost(batch, 0, source)),
            };
            for message in Messages::of(self.buffer.get(..length).unwrap_or_default()) {
                let message = message.map_err(|source| garbled(batch, 0, source))?;
                let index = match usize::try_from(message.seq.wrapping_sub(start)) {
                    Ok(index) if index < batch.len() => index,
                    // A late reply to a request whose caller gave up.
                    Ok(_) | Err(_) => continue,
                };
                match message.kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR | NLMSG_DONE => {
                        let outcome = outcome(&message).map_err(|source| garbled(batch, index, source))?;
                        if let Some((errno, detail)) = outcome {
                            let (act, object) = batch.words(index);
                            let object = object.to_owned();
                            refusals.push((index, NetlinkError::Refused { act, object, errno, detail }));
                        }
                        if index == last {
                            return Ok(refusals);
                        }
                    }
                    NLMSG_OVERRUN => return Err(lost(batch, index, Errno::OVERFLOW.into())),
                    _ => each(&message).map_err(|source| garbled(batch, index, source))?,
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = rustix::io::retry_on_intr(|| net::send(&self.fd, bytes, SendFlags::empty()))?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn receive(&mut self) -> io::Result<usize> {
        self.buffer.clear();
        self.buffer.reserve(RECEIVE);
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let spare = rustix::buffer::spare_capacity(&mut self.buffer);
        let (_, length) = net::recv(&self.fd, spare, flags)?;
        if length > self.buffer.len() { Err(Errno::MSGSIZE.into()) } else { Ok(length) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn first(refusals: Vec<(usize, NetlinkError)>) -> Result<(), NetlinkError> {
    refusals.into_iter().next().map_or(Ok(()), |(_, refusal)| Err(refusal))
}

fn lost(batch: &Batch, index: usize, source: io::Error) -> NetlinkError {
    let (act, object) = batch.words(index);
    NetlinkError::Socket { act, object: object.to_owned(), source }
}

fn garbled(batch: &Batch, index: usize, source: Malformed) -> NetlinkError {
    let (act, object) = batch.words(index);
    NetlinkError::Answer { act, object: object.to_owned(), source }
}

/// Reads `NLMSG_ERROR` or `NLMSG_DONE`: the errno and the kernel's words, or nothing when it carries success.
fn outcome(message: &Message<'_>) -> Result<Option<(Errno, String)>, Malformed> {
    let payload = message.payload;
    let code = read_u32(payload, 0).map(u32::cast_signed);
    let code = match code {
        Some(code) => code,
        // DONE of an old kernel may come without a code.
        None if message.kind == NLMSG_DONE => 0,
        None => return Err(Malformed { what: "acknowledgement without a code", at: 0 }),
    };
    if code >= 0 {
        return Ok(None);
    }
    // The kernel's errors end at 4095 (MAX_ERRNO).
    let number = code.checked_neg().filter(|number| *number <= 4095);
    let errno = number.map(Errno::from_raw_os_error).ok_or(Malformed { what: "error code out of range", at: 0 })?;
    let mut detail = String::new();
    if message.flags & flags::ACK_TLVS != 0 {
        let after = match message.kind {
            NLMSG_DONE => 4,
            _ if message.flags & flags::CAPPED != 0 => 20,
            _ => {
                let echoed = read_u32(payload, 4).and_then(|length| usize::try_from(length).ok()).unwrap_or(usize::MAX);
                aligned(echoed).saturating_add(4)
            }
        };
        let words = Attributes::of(payload.get(after..).unwrap_or_default());
        if let Some(attribute) = words.find(1)? {
            detail = attribute.text().into_owned();
        }
    }
    Ok(Some((errno, detail)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(flags: u16, payload: &[u8]) -> Result<Option<(Errno, String)>, Malformed> {
        outcome(&Message { kind: NLMSG_ERROR, flags, seq: 1, payload })
    }

    #[test]
    fn the_kernels_words_are_found_capped_and_uncapped() {
        let mut words = 8u16.to_ne_bytes().to_vec();
        words.extend(1u16.to_ne_bytes());
        words.extend(*b"no!\0");
        let mut payload = (-17i32).to_ne_bytes().to_vec();
        payload.extend(20u32.to_ne_bytes());
        payload.extend([0; 12]);
        let capped = [payload.clone(), words.clone()].concat();
        let whole = [payload, vec![0; 4], words].concat();
        let want = Ok(Some((Errno::EXIST, "no!".to_owned())));
        assert_eq!(error(flags::ACK_TLVS | flags::CAPPED, &capped), want);
        assert_eq!(error(flags::ACK_TLVS, &whole), want);
        assert_eq!(error(0, &capped), Ok(Some((Errno::EXIST, String::new()))));
    }

    #[test]
    fn an_acknowledgement_without_a_code_is_not_success() {
        assert!(error(0, &[0, 0, 0]).is_err());
        assert_eq!(error(0, &[0; 20]), Ok(None));
    }

    proptest::proptest! {
        #[test]
        fn any_acknowledgement_can_be_read(
            flags: u16,
            payload in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
        ) {
            let _ = error(flags, &payload);
        }
    }
}
