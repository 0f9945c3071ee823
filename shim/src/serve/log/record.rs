//! Output cut into log records: `<moment> <stream> <P|F> <content>\n`, one for each line, long lines in pieces.
//! Pure functions over bytes in the shim's only thread; one [`Splitter`] per stream.
//! Owns the unfinished last line, at most one record's content; it holds no memory while there is none.
//! Must never lose, reorder or invent a byte of content: joining the records of a stream gives the stream.

use crate::clock;

/// Longest content of a record when the daemon asks for nothing else (kubelet and log collectors expect it).
pub(in crate::serve) const DEFAULT_MAX: usize = 16 * 1024;

/// Which standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::serve) enum Stream {
    Stdout,
    Stderr,
}

/// Whether a record ends its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Partial,
    Full,
}

/// The beginning of every record of one batch of one stream: moment, stream, tag.
pub(in crate::serve) struct Prefix {
    bytes: [u8; Prefix::LENGTH],
}

impl Prefix {
    const LENGTH: usize = clock::LENGTH + " stdout F ".len();
    const TAG: usize = Prefix::LENGTH - 2;

    pub(in crate::serve) fn new(stream: Stream, moment: i64) -> Prefix {
        let mut bytes = [0; Prefix::LENGTH];
        let (head, tail) = bytes.split_at_mut(clock::LENGTH);
        head.copy_from_slice(&clock::format(moment));
        tail.copy_from_slice(match stream {
            Stream::Stdout => b" stdout F ",
            Stream::Stderr => b" stderr F ",
        });
        Prefix { bytes }
    }

    fn write(&self, tag: Tag, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes);
        if tag == Tag::Partial {
            let at = out.len() - Prefix::LENGTH + Prefix::TAG;
            if let Some(byte) = out.get_mut(at) {
                *byte = b'P';
            }
        }
    }
}

/// Cuts one stream.
pub(in crate::serve) struct Splitter {
    /// The unfinished last line, not longer than `max`.
    carry: Vec<u8>,
    max: usize,
}

impl Splitter {
    /// `max`: the longest content of a record.
    pub(in crate::serve) fn new(max: usize) -> Splitter {
        Splitter { carry: Vec::new(), max: max.max(1) }
    }

    /// Appends the records that `data` completes to `out`, until that holds more than `full` bytes; returns what of `data`
    /// is left to do then. An unfinished last line waits for its end, or until it is longer than a record may be.
    pub(in crate::serve) fn push<'d>(
        &mut self,
        data: &'d [u8],
        prefix: &Prefix,
        out: &mut Vec<u8>,
        full: usize,
    ) -> &'d [u8] {
        let mut rest = data;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            if out.len() > full {
                return rest;
            }
            let (line, after) = rest.split_at(end + 1);
            if self.carry.is_empty() && end <= self.max {
                prefix.write(Tag::Full, out);
                out.extend_from_slice(line);
            } else {
                self.cut(line.strip_suffix(b"\n").unwrap_or(line), prefix, out, true);
            }
            rest = after;
        }
        self.cut(rest, prefix, out, false);
        if self.carry.is_empty() {
            self.carry = Vec::new();
        }
        &[]
    }

    /// The stream has ended: what waits becomes a partial record.
    pub(in crate::serve) fn finish(&mut self, prefix: &Prefix, out: &mut Vec<u8>) {
        let rest = std::mem::take(&mut self.carry);
        if !rest.is_empty() {
            record(prefix, Tag::Partial, &rest, &[], out);
        }
    }

    fn cut(&mut self, mut line: &[u8], prefix: &Prefix, out: &mut Vec<u8>, ended: bool) {
        while let Some((head, tail)) = line.split_at_checked(self.max - self.carry.len()) {
            if tail.is_empty() {
                break;
            }
            record(prefix, Tag::Partial, &self.carry, head, out);
            self.carry.clear();
            line = tail;
        }
        if ended {
            record(prefix, Tag::Full, &self.carry, line, out);
            self.carry.clear();
        } else {
            self.carry.extend_from_slice(line);
        }
    }
}

fn record(prefix: &Prefix, tag: Tag, first: &[u8], second: &[u8], out: &mut Vec<u8>) {
    prefix.write(tag, out);
    out.extend_from_slice(first);
    out.extend_from_slice(second);
    out.push(b'\n');
}

#[cfg(test)]
mod tests;
