//! D-Bus messages, little-endian: calls out, replies, errors and signals in. Just the types that systemd's manager needs.
//! Pure; whoever talks to systemd.
//! Owns nothing.
//! Must never trust a length: a message is checked against its bytes at each step.

use super::BusError;

/// An argument, or the value of a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Bool(bool),
    U64(u64),
    String(String),
    U32s(Vec<u32>),
    Bytes(Vec<u8>),
    /// `a(ss)`: a device and what may be done with it.
    Pairs(Vec<(String, String)>),
    /// `a(sv)`.
    Properties(Vec<(&'static str, Value)>),
    /// `a(sa(sv))` without entries.
    NoAuxiliaries,
}

impl Value {
    pub(super) fn signature(&self) -> &'static str {
        match self {
            Value::Bool(_) => "b",
            Value::U64(_) => "t",
            Value::String(_) => "s",
            Value::U32s(_) => "au",
            Value::Bytes(_) => "ay",
            Value::Pairs(_) => "a(ss)",
            Value::Properties(_) => "a(sv)",
            Value::NoAuxiliaries => "a(sa(sv))",
        }
    }

    fn write(&self, to: &mut Writer) {
        match self {
            Value::Bool(value) => to.u32(u32::from(*value)),
            Value::U64(value) => {
                to.align(8);
                to.0.extend(value.to_le_bytes());
            }
            Value::String(value) => to.string(value),
            Value::U32s(values) => to.array(4, values, |to, value| to.u32(*value)),
            Value::Bytes(values) => to.array(1, values, |to, value| to.0.push(*value)),
            Value::Pairs(values) => to.array(8, values, |to, (one, two)| {
                to.align(8);
                to.string(one);
                to.string(two);
            }),
            Value::Properties(values) => to.array(8, values, |to, (name, value)| {
                to.align(8);
                to.string(name);
                to.signature(value.signature());
                value.write(to);
            }),
            Value::NoAuxiliaries => to.array(8, &[(); 0], |_, ()| {}),
        }
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn string(&mut self, value: &str) {
        self.u32(length(value.len()));
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, value: &str) {
        self.0.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    /// The length that comes first counts neither itself nor the padding before the first entry.
    fn array<T>(&mut self, alignment: usize, values: &[T], write: impl Fn(&mut Writer, &T)) {
        self.u32(0);
        let at = self.0.len();
        self.align(alignment);
        let first = self.0.len();
        values.iter().for_each(|value| write(self, value));
        let bytes = length(self.0.len() - first).to_le_bytes();
        if let Some(place) = self.0.get_mut(at - 4..at) {
            place.copy_from_slice(&bytes);
        }
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

const CALL: u8 = 1;
pub(super) const RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// Whom a call is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
}

/// A method call.
pub(super) fn call(serial: u32, address: Address<'_>, member: &str, arguments: &[Value]) -> Vec<u8> {
    let mut body = Writer(Vec::new());
    arguments.iter().for_each(|argument| argument.write(&mut body));
    let signature: String = arguments.iter().map(Value::signature).collect();

    let mut message = Writer(vec![b'l', CALL, 0, 1]);
    message.u32(length(body.0.len()));
    message.u32(serial);
    let mut fields = vec![
        (PATH, "o", address.path),
        (INTERFACE, "s", address.interface),
        (MEMBER, "s", member),
        (DESTINATION, "s", address.destination),
    ];
    if !signature.is_empty() {
        fields.push((SIGNATURE, "g", signature.as_str()));
    }
    message.array(8, &fields, |to, (code, kind, value)| {
        to.align(8);
        to.0.push(*code);
        to.signature(kind);
        if *kind == "g" { to.signature(value) } else { to.string(value) }
    });
    message.align(8);
    message.0.extend(body.0);
    message.0
}

/// A message from the other side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) reply_to: Option<u32>,
    pub(super) interface: String,
    pub(super) member: String,
    pub(super) error: String,
    signature: String,
    body: Vec<u8>,
}

/// The longest message that is believed; the longest that systemd sends here has a few hundred bytes.
const LONGEST: usize = 1 << 20;

/// How long a message is, from its first 16 bytes.
pub(super) fn total_length(start: &[u8; 16]) -> Result<usize, BusError> {
    let mut reader = Reader { bytes: start, at: 4 };
    let (body, _, fields) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let sum = || Some(16 + usize::try_from(fields).ok()?.checked_next_multiple_of(8)? + usize::try_from(body).ok()?);
    match (start, sum()) {
        ([b'l', _, _, 1, ..], Some(total)) if total <= LONGEST => Ok(total),
        ([b'l', ..], _) => Err(BusError::Malformed { reason: "its length or version is out of bounds" }),
        _ => Err(BusError::Malformed { reason: "it is not little-endian" }),
    }
}

impl Message {
    /// From all of its bytes.
    pub(super) fn parse(bytes: &[u8]) -> Result<Message, BusError> {
        let mut reader = Reader { bytes, at: 1 };
        let mut message = Message { kind: reader.byte()?, ..Message::default() };
        reader.at = 12;
        let fields = usize::try_from(reader.u32()?).map_err(|_| SHORT)?;
        let end = 16usize.checked_add(fields).ok_or(SHORT)?;
        while reader.at < end {
            reader.align(8)?;
            let code = reader.byte()?;
            match (code, reader.signature()?.as_str()) {
                (REPLY_SERIAL, "u") => message.reply_to = Some(reader.u32()?),
                (SIGNATURE, "g") => message.signature = reader.signature()?,
                (INTERFACE, "s") => message.interface = reader.string()?,
                (MEMBER, "s") => message.member = reader.string()?,
                (ERROR_NAME, "s") => message.error = reader.string()?,
                (_, "s" | "o") => drop(reader.string()?),
                (_, "u") => drop(reader.u32()?),
                (_, "g") => drop(reader.signature()?),
                _ => return Err(BusError::Malformed { reason: "a header field of unknown type" }),
            }
        }
        let body = end.next_multiple_of(8);
        message.body = bytes.get(body..).ok_or(SHORT)?.to_vec();
        Ok(message)
    }

    /// The leading text of an error or of a reply that is an object path; empty when there is none.
    pub(super) fn first_text(&self) -> Result<String, BusError> {
        match self.signature.as_bytes().first() {
            Some(b's' | b'o') => Reader { bytes: &self.body, at: 0 }.string(),
            _ => Ok(String::new()),
        }
    }

    /// Job and result, when this is the manager's word that a job has ended.
    pub(super) fn job_removed(&self) -> Result<Option<(String, String)>, BusError> {
        if self.kind != SIGNAL
            || self.member != "JobRemoved"
            || self.interface != super::MANAGER
            || self.signature != "uoss"
        {
            return Ok(None);
        }
        let mut reader = Reader { bytes: &self.body, at: 0 };
        reader.u32()?;
        let job = reader.string()?;
        reader.string()?;
        Ok(Some((job, reader.string()?)))
    }
}

const SHORT: BusError = BusError::Malformed { reason: "it ends before its end" };

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) -> Result<(), BusError> {
        self.at = self.at.checked_next_multiple_of(to).filter(|at| *at <= self.bytes.len()).ok_or(SHORT)?;
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&[u8], BusError> {
        let end = self.at.checked_add(count).ok_or(SHORT)?;
        let taken = self.bytes.get(self.at..end).ok_or(SHORT)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, BusError> {
        self.take(1)?.first().copied().ok_or(SHORT)
    }

    fn u32(&mut self) -> Result<u32, BusError> {
        self.align(4)?;
        self.take(4)?.try_into().map(u32::from_le_bytes).map_err(|_| SHORT)
    }

    fn string(&mut self) -> Result<String, BusError> {
        let count = usize::try_from(self.u32()?).map_err(|_| SHORT)?;
        self.text(count)
    }

    fn signature(&mut self) -> Result<String, BusError> {
        let count = usize::from(self.byte()?);
        self.text(count)
    }

    fn text(&mut self, count: usize) -> Result<String, BusError> {
        let text = self.take(count)?.to_vec();
        if self.byte()? != 0 {
            return Err(BusError::Malformed { reason: "a text without its final NUL" });
        }
        String::from_utf8(text).map_err(|_| BusError::Malformed { reason: "a text that is not UTF-8" })
    }
}

#[cfg(test)]
mod tests;
