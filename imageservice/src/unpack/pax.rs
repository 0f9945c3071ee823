//! PAX extended headers: `length key=value\n` records, the few keys that an image layer may use.
//! Pure functions on the extracting thread. Owns what survives of them: names, numbers, times, extended attributes, sparse maps.
//! Must never trust a length, and must keep every value's bytes as they are (attribute values are binary).

use rustix::fs::Timespec;

use super::sparse::Segment;

/// What the headers before an entry say about it; what is `None` comes from the entry's own header.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timespec>,
    /// Names without the `SCHILY.xattr.` before them, in order, each once.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// The GNU.sparse keys of all three versions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    /// 1.0: the map is at the start of the data.
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub(super) size: Option<u64>,
    /// 0.0 and 0.1: the map itself.
    pub(super) map: Vec<Segment>,
    /// 0.0 or 0.1 was seen, even with an empty map.
    pub(super) mapped: bool,
    /// 0.0: an offset that waits for its length.
    offset: Option<u64>,
}

/// Reads the records of one header.
pub(super) fn parse(mut text: &[u8]) -> Result<Pax, String> {
    let mut pax = Pax::default();
    while !text.is_empty() {
        let (record, rest) = record(text).ok_or("a PAX record with a wrong length")?;
        text = rest;
        let at = record.iter().position(|byte| *byte == b'=').ok_or("a PAX record without `=`")?;
        let (key, value) = (record.get(..at).unwrap_or_default(), record.get(at + 1..).unwrap_or_default());
        pax.take(key, value).ok_or_else(|| format!("a bad value in PAX record `{}`", String::from_utf8_lossy(key)))?;
    }
    if pax.sparse.offset.is_some() {
        return Err("a PAX sparse map with an offset that has no length".into());
    }
    Ok(pax)
}

fn record(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = text.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(number(text.get(..space)?)?).ok()?;
    let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
    Some((record, text.get(length..)?))
}

impl Pax {
    /// `None` for a value that cannot be. An empty value takes a keyword back (POSIX pax, "extended header keyword precedence").
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let text = |value: &[u8]| (!value.contains(&0)).then(|| (!value.is_empty()).then(|| value.to_vec()));
        let count = |value: &[u8]| if value.is_empty() { Some(None) } else { number(value).map(Some) };
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = count(value)?,
            b"uid" => self.uid = count(value)?,
            b"gid" => self.gid = count(value)?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            b"GNU.sparse.major" => self.sparse.major = count(value)?,
            b"GNU.sparse.minor" => self.sparse.minor = count(value)?,
            b"GNU.sparse.name" => self.sparse.name = text(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = count(value)?,
            b"GNU.sparse.numblocks" => self.sparse.mapped = true,
            b"GNU.sparse.offset" => {
                self.sparse.mapped = true;
                if self.sparse.offset.replace(number(value)?).is_some() {
                    return None;
                }
            }
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take()?;
                self.sparse.map.push(Segment { offset, length: number(value)? });
            }
            b"GNU.sparse.map" => {
                self.sparse.mapped = true;
                self.sparse.map = map(value)?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.take_xattr(name, value)?;
                }
            }
        }
        Some(())
    }

    fn take_xattr(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        if name.is_empty() || name.contains(&0) {
            return None;
        }
        // Linear search is bounded by the header's size over the shortest record: some ten thousand, once.
        let full = self.xattrs.len() >= MAX_XATTRS;
        match self.xattrs.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value.to_vec(),
            None if full => return None,
            None => self.xattrs.push((name.to_vec(), value.to_vec())),
        }
        Some(())
    }
}

/// Extended attributes of one entry; no filesystem here takes more.
const MAX_XATTRS: usize = 1024;

fn map(text: &[u8]) -> Option<Vec<Segment>> {
    let mut segments = Vec::new();
    if text.is_empty() {
        return Some(segments);
    }
    let mut numbers = text.split(|byte| *byte == b',').map(number);
    while let Some(offset) = numbers.next() {
        segments.push(Segment { offset: offset?, length: numbers.next()?? });
    }
    Some(segments)
}

/// A decimal number without sign or space.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]seconds[.fraction]`, cut to nanoseconds.
fn time(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds = i64::try_from(number(whole.strip_prefix('-').unwrap_or(whole).as_bytes())?).ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    let (tv_sec, tv_nsec) = match (negative, nanoseconds) {
        (false, nanoseconds) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, nanoseconds) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    };
    Some(Timespec { tv_sec, tv_nsec })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(pairs: &[(&str, &[u8])]) -> Vec<u8> {
        let mut text = Vec::new();
        for (key, value) in pairs {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + rest.to_string().len();
            length = rest + length.to_string().len();
            text.extend(format!("{length} {key}=").bytes());
            text.extend(*value);
            text.push(b'\n');
        }
        text
    }

    #[test]
    fn the_keys_of_a_layer_are_read() {
        let pax = parse(&records(&[
            ("path", b"a/b"),
            ("size", b"12"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.security.capability", b"\x01\0=\n\xff"),
            ("comment", b"what ever"),
            ("path", b""),
        ]))
        .unwrap();
        assert_eq!((pax.path, pax.size), (None, Some(12)));
        assert_eq!(pax.mtime, Some(Timespec { tv_sec: -2, tv_nsec: 750_000_000 }));
        assert_eq!(pax.xattrs, [(b"security.capability".to_vec(), b"\x01\0=\n\xff".to_vec())]);
    }

    #[test]
    fn both_old_sparse_maps_are_read() {
        let old = parse(&records(&[
            ("GNU.sparse.size", b"100"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"10"),
            ("GNU.sparse.offset", b"50"),
            ("GNU.sparse.numbytes", b"5"),
        ]))
        .unwrap();
        let new = parse(&records(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,10,50,5")])).unwrap();
        assert_eq!(old.sparse.map, new.sparse.map);
        assert_eq!(old.sparse.map[1], Segment { offset: 50, length: 5 });
    }

    #[test]
    fn broken_records_are_refused() {
        for text in [
            b"5 a=b".as_slice(),
            b"99 a=b\n",
            b"6 a b\n\n",
            b"0 a=b\n",
            b"3 \n",
            b"-7 a=b\n",
            b"18446744073709551616 a=b\n",
            b"11 size=-1\n",
            b"11 path=\0a\n",
            b"24 GNU.sparse.map=1,2,3\n",
            b"23 GNU.sparse.offset=1\n",
        ] {
            assert!(parse(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = parse(&text);
        }

        #[test]
        fn times_never_panic(text in "-?[0-9]{0,25}(\\.[0-9]{0,12})?") {
            let _ = time(text.as_bytes());
        }
    }
}
