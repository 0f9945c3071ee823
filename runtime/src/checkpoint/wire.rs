//! The form of CRIU's images: a magic number, then protobuf messages with their lengths; and fields of such a message.
//! Pure. Reads what a stranger wrote: every length is checked, nothing is allocated by what a message claims.
//! Owns nothing. Must never skip over what it does not understand without saying so to who asked.

/// First word of every image of processes.
pub(super) const COMMON: u32 = 0x5456_4319;

/// The inventory alone begins with its own: it tells how the others begin.
pub(super) const INVENTORY: u32 = 0x5831_3116;

/// One field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// Also booleans and enumerations.
    Number(u64),
    Bytes(&'a [u8]),
}

/// What is wrong with an image or a message.
pub(super) type Bad = &'static str;

/// The second magic number, and the messages.
pub(super) fn image(bytes: &[u8]) -> Result<(u32, Vec<&[u8]>), Bad> {
    let (kind, mut rest) = header(bytes)?;
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let (message, after) = message(rest)?;
        messages.push(message);
        rest = after;
    }
    Ok((kind, messages))
}

/// The first message of an image that has other data behind it.
pub(super) fn first(bytes: &[u8]) -> Result<&[u8], Bad> {
    header(bytes).and_then(|(_, rest)| message(rest)).map(|(first, _)| first)
}

fn header(bytes: &[u8]) -> Result<(u32, &[u8]), Bad> {
    let (common, rest) = word(bytes).ok_or("it is empty")?;
    if common == INVENTORY {
        return Ok((common, rest));
    }
    if common != COMMON {
        return Err("it is no image of CRIU, or of one before version 2");
    }
    word(rest).ok_or("it ends in its header")
}

fn message(bytes: &[u8]) -> Result<(&[u8], &[u8]), Bad> {
    let (length, rest) = word(bytes).ok_or("it ends in a length")?;
    let length = usize::try_from(length).map_err(|_| "a message is too long")?;
    rest.split_at_checked(length).ok_or("it ends in a message")
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*word), rest))
}

/// The fields of a message in their order.
pub(super) fn fields(mut bytes: &[u8]) -> Result<Vec<(u64, Value<'_>)>, Bad> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (key, rest) = varint(bytes)?;
        let (value, rest) = match key & 7 {
            0 => varint(rest).map(|(number, rest)| (Value::Number(number), rest))?,
            1 => {
                let (word, rest) = rest.split_first_chunk::<8>().ok_or("a message ends in a number")?;
                (Value::Number(u64::from_le_bytes(*word)), rest)
            }
            2 => {
                let (length, rest) = varint(rest)?;
                let length = usize::try_from(length).map_err(|_| "a field is too long")?;
                let (content, rest) = rest.split_at_checked(length).ok_or("a message ends in a field")?;
                (Value::Bytes(content), rest)
            }
            5 => {
                let (word, rest) = word(rest).ok_or("a message ends in a number")?;
                (Value::Number(word.into()), rest)
            }
            _ => return Err("a field of an unknown form"),
        };
        found.push((key >> 3, value));
        bytes = rest;
    }
    Ok(found)
}

fn varint(bytes: &[u8]) -> Result<(u64, &[u8]), Bad> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        let shift = u32::try_from(7 * at).unwrap_or(64);
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok((value, bytes.get(at + 1..).unwrap_or_default()));
        }
    }
    Err("a message ends in a number")
}

/// A message whose fields can be asked for.
#[derive(Debug)]
pub(super) struct Fields<'a>(Vec<(u64, Value<'a>)>);

impl<'a> Fields<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Bad> {
        fields(bytes).map(Self)
    }

    fn one(&self, field: u64) -> Result<Option<Value<'a>>, Bad> {
        let mut values = self.0.iter().filter(|(number, _)| *number == field);
        let first = values.next().map(|(_, value)| *value);
        // Of two, a reader takes the last, or melts them together: honest images have one.
        if values.next().is_some() { Err("a field comes twice") } else { Ok(first) }
    }

    /// A number that comes at most once.
    pub(super) fn number(&self, field: u64) -> Result<Option<u64>, Bad> {
        match self.one(field)? {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(Some(number)),
            Some(Value::Bytes(_)) => Err("a field has another type"),
        }
    }

    /// As [`Fields::number`], in 32 bits as CRIU takes it.
    pub(super) fn small(&self, field: u64) -> Result<Option<u32>, Bad> {
        Ok(self.number(field)?.map(|number| u32::try_from(number & u64::from(u32::MAX)).unwrap_or(u32::MAX)))
    }

    /// Text or a message that comes at most once.
    pub(super) fn bytes(&self, field: u64) -> Result<Option<&'a [u8]>, Bad> {
        match self.one(field)? {
            None => Ok(None),
            Some(Value::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Value::Number(_)) => Err("a field has another type"),
        }
    }

    /// A message that comes at most once.
    pub(super) fn message(&self, field: u64) -> Result<Option<Fields<'a>>, Bad> {
        self.bytes(field)?.map(Fields::read).transpose()
    }

    /// Whether it comes at all.
    pub(super) fn has(&self, field: u64) -> bool {
        self.0.iter().any(|(number, _)| *number == field)
    }

    /// Messages, any number of them.
    pub(super) fn messages(&self, field: u64) -> Result<Vec<Fields<'a>>, Bad> {
        let values = self.0.iter().filter(|(number, _)| *number == field);
        values
            .map(|(_, value)| match value {
                Value::Bytes(bytes) => Fields::read(bytes),
                Value::Number(_) => Err("a field has another type"),
            })
            .collect()
    }

    /// Numbers, one by one or packed.
    pub(super) fn numbers(&self, field: u64) -> Result<Vec<u64>, Bad> {
        let mut found = Vec::new();
        for (_, value) in self.0.iter().filter(|(number, _)| *number == field) {
            match value {
                Value::Number(number) => found.push(*number),
                Value::Bytes(packed) => {
                    let mut packed = *packed;
                    while !packed.is_empty() {
                        let (number, rest) = varint(packed)?;
                        found.push(number);
                        packed = rest;
                    }
                }
            }
        }
        Ok(found)
    }
}

/// An image of these messages.
pub(super) fn write_image(kind: u32, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = [COMMON.to_le_bytes(), kind.to_le_bytes()].concat();
    for message in messages {
        bytes.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(message);
    }
    bytes
}

/// Adds a number.
pub(super) fn put_number(message: &mut Vec<u8>, field: u64, number: u64) {
    put_varint(message, field << 3);
    put_varint(message, number);
}

/// Adds text.
pub(super) fn put_text(message: &mut Vec<u8>, field: u64, text: &str) {
    put_bytes(message, field, text.as_bytes());
}

/// Adds bytes, or a message.
pub(super) fn put_bytes(message: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(message, field << 3 | 2);
    put_varint(message, u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    message.extend(bytes);
}

fn put_varint(message: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or(0);
        number >>= 7;
        if number == 0 {
            return message.push(low);
        }
        message.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut message = Vec::new();
        put_number(&mut message, 1, 300);
        put_text(&mut message, 7, "/proc");
        put_number(&mut message, 9, u64::MAX);
        let image = write_image(7, &[message.clone(), Vec::new()]);
        let (kind, messages) = super::image(&image).unwrap();
        assert_eq!((kind, messages.len()), (7, 2));
        let fields = Fields::read(messages[0]).unwrap();
        assert_eq!(fields.number(1), Ok(Some(300)));
        assert_eq!(fields.bytes(7), Ok(Some(b"/proc".as_slice())));
        assert_eq!((fields.number(9), fields.number(2)), (Ok(Some(u64::MAX)), Ok(None)));
        assert!(fields.number(7).is_err() && fields.bytes(1).is_err());
    }

    #[test]
    fn a_field_that_comes_twice_is_no_answer() {
        let mut message = Vec::new();
        put_number(&mut message, 1, 1);
        put_number(&mut message, 1, 2);
        let fields = Fields::read(&message).unwrap();
        assert_eq!(fields.number(1), Err("a field comes twice"));
        assert_eq!(fields.numbers(1), Ok(vec![1, 2]));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_an_image_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let bytes = [COMMON.to_le_bytes().as_slice(), &bytes].concat();
            if let Ok((_, messages)) = image(&bytes) {
                for message in messages {
                    let _ = fields(message);
                }
            }
            let _ = first(&bytes);
        }
    }
}
