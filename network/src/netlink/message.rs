//! The layout of netlink: header, then attributes of `length, type, bytes, padding`; writer and reader.
//! Pure functions on bytes; any thread, never blocks. Owns nothing.
//! Must never write a length that does not fit its field (CVE-2021-43784), nor read past what it was given.

use std::{borrow::Cow, mem};

use super::{NESTED, flags};

const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;

/// Why bytes are not netlink messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read netlink reply: {what} at byte {at}")]
pub struct Malformed {
    /// What was found wrong.
    pub what: &'static str,
    /// Where, counted from the start of what was being read.
    pub at: usize,
}

/// Requests that go to the kernel in one system call, each with the words an error about it is told in.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    requests: Vec<Request>,
    overflow: Option<usize>,
}

#[derive(Debug)]
struct Request {
    start: usize,
    act: &'static str,
    object: Cow<'static, str>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a message: `act` and `object` name the attempt (`create link`, its name), `header` is the family's fixed part.
    pub fn push(
        &mut self,
        (act, object): (&'static str, impl Into<Cow<'static, str>>),
        (kind, flags): (u16, u16),
        header: &[u8],
        fill: impl FnOnce(&mut MessageWriter<'_>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | flags::REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(header);
        pad(&mut self.bytes);
        let mut writer = MessageWriter { bytes: &mut self.bytes, overflow: false };
        fill(&mut writer);
        let overflow = writer.overflow;
        let length = self.bytes.len() - start;
        match u32::try_from(length) {
            Ok(length) if !overflow => put(&mut self.bytes, start, &length.to_ne_bytes()),
            Ok(_) | Err(_) => {
                self.overflow.get_or_insert(self.requests.len());
            }
        }
        self.requests.push(Request { start, act, object: object.into() });
    }

    /// How many messages it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The index of the first message holding something longer than its length field can say.
    pub(super) fn overflow(&self) -> Option<usize> {
        self.overflow
    }

    /// The words of message `index`.
    pub(super) fn words(&self, index: usize) -> (&'static str, &str) {
        self.requests.get(index).map_or(("send netlink request", ""), |request| (request.act, request.object.as_ref()))
    }

    /// Numbers the messages from `first`, and asks for an acknowledgement of message `ack`.
    pub(super) fn seal(&mut self, first: u32, ack: Option<usize>) -> &[u8] {
        let mut seq = first;
        for (index, request) in self.requests.iter().enumerate() {
            if ack == Some(index) {
                let at = request.start + 6;
                let old = read_u16(&self.bytes, at).unwrap_or(0);
                put(&mut self.bytes, at, &(old | flags::ACK).to_ne_bytes());
            }
            put(&mut self.bytes, request.start + 8, &seq.to_ne_bytes());
            seq = seq.wrapping_add(1);
        }
        &self.bytes
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Writes the attributes of one message.
#[derive(Debug)]
pub struct MessageWriter<'a> {
    bytes: &'a mut Vec<u8>,
    overflow: bool,
}

impl MessageWriter<'_> {
    /// An attribute holding these bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start);
    }

    /// A string with its closing NUL.
    pub fn text(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
    }

    /// One byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// A 16-bit number in host order.
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// A 32-bit number in host order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// A 32-bit number in network order.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A 64-bit number in network order.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Bytes without an attribute around them (the fixed part of a nested header).
    pub fn raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        pad(self.bytes);
    }

    /// An attribute holding attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.open(kind | NESTED);
        fill(self);
        self.close(start);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => put(self.bytes, start, &length.to_ne_bytes()),
            Err(_) => self.overflow = true,
        }
        pad(self.bytes);
    }
}

/// One message as received.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub seq: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The family's fixed part, and the attributes after it.
    ///
    /// # Errors
    /// When the message is shorter than the fixed part.
    pub fn split<const N: usize>(&self) -> Result<([u8; N], Attributes<'a>), Malformed> {
        let short = Malformed { what: "message shorter than its fixed part", at: self.payload.len() };
        let fixed = self.payload.first_chunk::<N>().ok_or(short)?;
        let rest = self.payload.get(aligned(N)..).unwrap_or_default();
        Ok((*fixed, Attributes { rest, at: 0 }))
    }
}

/// The messages of one datagram.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Messages<'a> {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, at: 0 }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let at = self.at;
        let rest = mem::take(&mut self.rest);
        let parsed = || {
            let length = usize::try_from(read_u32(rest, 0)?).ok()?;
            let message = Message {
                kind: read_u16(rest, 4)?,
                flags: read_u16(rest, 6)?,
                seq: read_u32(rest, 8)?,
                payload: rest.get(HEADER..length)?,
            };
            Some((message, length))
        };
        let Some((message, length)) = parsed() else {
            return Some(Err(Malformed { what: "message header with a wrong length", at }));
        };
        let step = aligned(length);
        self.rest = rest.get(step..).unwrap_or_default();
        self.at = at.saturating_add(step);
        Some(Ok(message))
    }
}

/// One attribute.
#[derive(Debug, Clone, Copy)]
pub struct Attribute<'a> {
    /// Its type, without the flags the kernel may set in it.
    pub kind: u16,
    /// Its bytes.
    pub payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes in it.
    #[must_use]
    pub fn nested(&self) -> Attributes<'a> {
        Attributes { rest: self.payload, at: 0 }
    }

    /// The attributes after a fixed part of `skip` bytes in it.
    #[must_use]
    pub fn nested_after(&self, skip: usize) -> Attributes<'a> {
        Attributes { rest: self.payload.get(aligned(skip)..).unwrap_or_default(), at: 0 }
    }

    /// A 32-bit number in host order.
    #[must_use]
    pub fn u32(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.payload.try_into().ok()?))
    }

    /// A 32-bit number in network order.
    #[must_use]
    pub fn be32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.payload.try_into().ok()?))
    }

    /// The text before the first NUL; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> Cow<'a, str> {
        let end = self.payload.iter().position(|&byte| byte == 0).unwrap_or(self.payload.len());
        String::from_utf8_lossy(self.payload.get(..end).unwrap_or_default())
    }
}

/// Attributes one after the other.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Attributes<'a> {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, at: 0 }
    }

    /// The first attribute of this type.
    ///
    /// # Errors
    /// When an attribute before it is malformed.
    pub fn find(self, kind: u16) -> Result<Option<Attribute<'a>>, Malformed> {
        for attribute in self {
            let attribute = attribute?;
            if attribute.kind == kind {
                return Ok(Some(attribute));
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let at = self.at;
        let rest = mem::take(&mut self.rest);
        let parsed = || {
            let length = usize::from(read_u16(rest, 0)?);
            let kind = read_u16(rest, 2)? & 0x3fff;
            Some((Attribute { kind, payload: rest.get(ATTRIBUTE..length)? }, length))
        };
        let Some((attribute, length)) = parsed() else {
            return Some(Err(Malformed { what: "attribute with a wrong length", at }));
        };
        let step = aligned(length);
        self.rest = rest.get(step..).unwrap_or_default();
        self.at = at.saturating_add(step);
        Some(Ok(attribute))
    }
}

pub(super) fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

pub(super) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(aligned(bytes.len()), 0);
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_laid_out_as_the_kernel_reads_it() {
        let mut batch = Batch::new();
        batch.push(("test", "x"), (16, flags::CREATE), &[0xaa; 4], |message| {
            message.text(3, "ab");
            message.nest(18, |message| message.u8(1, 7));
        });
        let bytes = batch.seal(9, Some(0)).to_vec();
        let mut want = Vec::new();
        want.extend(40u32.to_ne_bytes());
        want.extend(16u16.to_ne_bytes());
        want.extend((flags::CREATE | flags::REQUEST | flags::ACK).to_ne_bytes());
        want.extend(9u32.to_ne_bytes());
        want.extend([0; 4]);
        want.extend([0xaa; 4]);
        want.extend(7u16.to_ne_bytes());
        want.extend(3u16.to_ne_bytes());
        want.extend(*b"ab\0\0");
        want.extend(12u16.to_ne_bytes());
        want.extend((18 | NESTED).to_ne_bytes());
        want.extend(5u16.to_ne_bytes());
        want.extend(1u16.to_ne_bytes());
        want.extend([7, 0, 0, 0]);
        assert_eq!(bytes, want);
    }

    #[test]
    fn an_attribute_longer_than_its_length_field_is_noticed() {
        let mut batch = Batch::new();
        batch.push(("good", ""), (1, 0), &[], |message| message.u8(1, 1));
        batch.push(("long", ""), (1, 0), &[], |message| message.bytes(1, &[0; 65_532]));
        assert_eq!(batch.overflow(), Some(1));
        let mut batch = Batch::new();
        batch.push(("nested", ""), (1, 0), &[], |message| {
            message.nest(1, |message| (0..3).for_each(|_| message.bytes(1, &[0; 30_000])));
        });
        assert_eq!(batch.overflow(), Some(0));
    }

    #[test]
    fn wrong_lengths_end_the_walk_with_an_error() {
        for length in [0u32, 15, 21, u32::MAX] {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend([0; 16]);
            assert!(Messages::of(&bytes).any(|message| message.is_err()), "{length}");
        }
        for length in [0u16, 3, 9, u16::MAX] {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend([0; 6]);
            assert!(Attributes::of(&bytes).any(|attribute| attribute.is_err()), "{length}");
        }
    }

    fn walk(attributes: Attributes<'_>, depth: u32) -> usize {
        let mut seen = 0;
        for attribute in attributes.map_while(Result::ok) {
            let _ = (attribute.text(), attribute.u32(), attribute.be32());
            seen += 1;
            if depth > 0 {
                seen += walk(attribute.nested(), depth - 1) + walk(attribute.nested_after(16), depth - 1);
            }
        }
        seen
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_can_be_walked(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..256)) {
            let mut at_most = 0;
            for message in Messages::of(&bytes) {
                at_most += 1;
                if let Ok(message) = message {
                    let _ = message.split::<16>().map(|(_, attributes)| walk(attributes, 2));
                }
            }
            walk(Attributes::of(&bytes), 2);
            proptest::prop_assert!(at_most <= bytes.len() / HEADER + 1);
        }

        #[test]
        fn what_is_written_is_read_back(
            values in proptest::collection::vec((1u16..0x3fff, proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40)), 0..12),
        ) {
            let mut batch = Batch::new();
            batch.push(("test", ""), (77, 0), &[1, 2, 3, 4], |message| {
                message.nest(5, |message| values.iter().for_each(|(kind, value)| message.bytes(*kind, value)));
            });
            let messages: Vec<_> = Messages::of(batch.seal(1, None)).collect::<Result<_, _>>().unwrap();
            proptest::prop_assert_eq!(messages.len(), 1);
            let (fixed, attributes) = messages[0].split::<4>().unwrap();
            proptest::prop_assert_eq!(fixed, [1, 2, 3, 4]);
            let nest = attributes.find(5).unwrap().unwrap();
            let read: Vec<_> = nest.nested().map(|a| a.map(|a| (a.kind, a.payload.to_vec()))).collect::<Result<_, _>>().unwrap();
            proptest::prop_assert_eq!(read, values);
        }
    }
}
