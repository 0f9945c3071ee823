//! A tar, entry by entry, from a stream: ustar, PAX and GNU headers in, plain entries and their data out.
//! Runs on the extracting thread. Owns what a header means and where the next one starts; the block layout is the `tar` crate's.
//! Where formats leave room, reads what Go's `archive/tar` reads, since that is what images were built and checked with. Must never
//! hold more of the archive in memory than one bounded header.

use std::io::BufRead;

use rustix::fs::Timespec;
use tar::Header;

use super::{
    UnpackError,
    pax::{self, Pax},
    sparse::{MAX_SEGMENTS, Map, MapReader, Segment},
};
use crate::config::Limits;

const BLOCK: usize = 512;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    SymbolicLink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// One entry, all headers before it taken together. Names are as the archive has them.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timespec,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data goes, if not in one piece from the start.
    pub(super) sparse: Option<Map>,
}

/// The archive. Take the data of an entry with `data` and `consume` before asking for the next, or leave it.
pub(super) struct Archive<'a, R> {
    input: R,
    limits: &'a Limits,
    /// Data of the current entry not yet taken, and the padding behind it.
    left: u64,
    padding: u64,
    /// Headers seen.
    headers: u64,
}

impl<'a, R: BufRead> Archive<'a, R> {
    pub(super) fn new(input: R, limits: &'a Limits) -> Self {
        Self { input, limits, left: 0, padding: 0, headers: 0 }
    }

    pub(super) fn into_input(self) -> R {
        self.input
    }

    /// The next entry; `None` at the end marker or the end of the stream.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut pax: Option<Pax> = None;
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip()?;
            let pending = pax.is_some() || long_name.is_some() || long_link.is_some();
            let Some(block) = self.header()? else {
                return if pending { Err(self.bad("the archive ends after an extended header")) } else { Ok(None) };
            };
            let header = Header::from_byte_slice(&block);
            let size = self.size(&header.as_old().size)?;
            let [flag] = header.as_old().linkflag;
            match flag {
                b'x' => {
                    let text = self.small(size)?;
                    pax = Some(pax::parse(&text).map_err(|reason| self.bad(reason))?);
                }
                b'g' => drop(self.small(size)?),
                b'L' => long_name = Some(until_nul(&self.small(size)?).to_vec()),
                b'K' => long_link = Some(until_nul(&self.small(size)?).to_vec()),
                _ => {
                    let mut pax = pax.unwrap_or_default();
                    let path = pax.path.take().or(long_name);
                    let link = pax.link.take().or(long_link);
                    return self.entry(header, pax, (path, link)).map(Some);
                }
            }
        }
    }

    /// The next piece of the current entry's data; empty at its end.
    pub(super) fn data(&mut self) -> Result<&[u8], UnpackError> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        // Borrowed twice because the error needs `self`.
        if self.peek()?.is_empty() {
            return Err(self.bad("the archive ends inside the data of an entry"));
        }
        let piece = self.peek()?;
        Ok(piece.get(..left).unwrap_or(piece))
    }

    /// Goes on by `amount` bytes of what `data` returned.
    pub(super) fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
        self.left = self.left.saturating_sub(u64::try_from(amount).unwrap_or(u64::MAX));
    }

    /// Data of the current entry that is left.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: Pax,
        (path, link): (Option<Vec<u8>>, Option<Vec<u8>>),
    ) -> Result<Entry, UnpackError> {
        let old = header.as_old();
        let path = path.unwrap_or_else(|| header_path(header));
        let link = link.unwrap_or_else(|| until_nul(&old.linkname).to_vec());
        let [flag] = old.linkflag;
        let kind = match flag {
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::SymbolicLink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(self.bad(format!("an entry of the unknown type {:?}", char::from(other)))),
        };
        let stated = self.size(&old.size)?;
        // Only files have data; what others claim as their size is not in the archive.
        self.expect(if kind == Kind::File { pax.size.unwrap_or(stated) } else { 0 })?;
        let device = match kind {
            Kind::Character | Kind::Block => {
                let fields = header.as_ustar().map(|ustar| (ustar.dev_major, ustar.dev_minor));
                let fields = fields.or_else(|| header.as_gnu().map(|gnu| (gnu.dev_major, gnu.dev_minor)));
                let (major, minor) = fields.unwrap_or_default();
                (self.field(&major, "device number")?, self.field(&minor, "device number")?)
            }
            _ => (0, 0),
        };
        let mut entry = Entry {
            kind,
            path,
            link,
            mode: u32::try_from(number(&old.mode).ok_or_else(|| self.bad("a bad mode"))? & 0o7777).unwrap_or(0),
            uid: self.id(pax.uid, &old.uid)?,
            gid: self.id(pax.gid, &old.gid)?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => Timespec {
                    tv_sec: number(&old.mtime).ok_or_else(|| self.bad("a bad modification time"))?,
                    tv_nsec: 0,
                },
            },
            device,
            xattrs: pax.xattrs,
            sparse: None,
        };
        if kind == Kind::File {
            let sparse = pax.sparse;
            entry.sparse = if flag == b'S' {
                Some(self.old_sparse(header)?)
            } else if sparse.major == Some(1) && sparse.minor == Some(0) {
                Some(self.leading_sparse(sparse.size)?)
            } else if sparse.mapped {
                Some(self.map(sparse.map, sparse.size)?)
            } else {
                None
            };
            if let Some(name) = sparse.name.filter(|_| entry.sparse.is_some()) {
                entry.path = name;
            }
        }
        Ok(entry)
    }

    /// The old dialect: four runs in the header, more in blocks behind it.
    fn old_sparse(&mut self, header: &Header) -> Result<Map, UnpackError> {
        let Some(gnu) = header.as_gnu() else { return Err(self.bad("a sparse entry without a GNU header")) };
        let mut segments = Vec::new();
        for run in &gnu.sparse {
            self.old_run(&mut segments, &run.offset, &run.numbytes)?;
        }
        let size = self.size(&gnu.realsize)?;
        let mut more = gnu.isextended != [0];
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            if !self.block(block.as_mut_bytes())? {
                return Err(self.bad("the archive ends inside a sparse map"));
            }
            for run in block.sparse() {
                self.old_run(&mut segments, &run.offset, &run.numbytes)?;
            }
            more = block.is_extended();
        }
        self.map(segments, Some(size))
    }

    fn old_run(&self, segments: &mut Vec<Segment>, offset: &[u8; 12], length: &[u8; 12]) -> Result<(), UnpackError> {
        if length.first() == Some(&0) {
            return Ok(());
        }
        if segments.len() >= MAX_SEGMENTS {
            return Err(self.bad("a sparse map with too many runs"));
        }
        segments.push(Segment { offset: self.size(offset)?, length: self.size(length)? });
        Ok(())
    }

    /// The 1.0 dialect: the map is the first part of the data, in whole blocks.
    fn leading_sparse(&mut self, size: Option<u64>) -> Result<Map, UnpackError> {
        let mut reader = MapReader::default();
        loop {
            let mut block = [0; BLOCK];
            let Some(left) = self.left.checked_sub(BLOCK as u64) else {
                return Err(self.bad("a sparse map that is longer than its data"));
            };
            if !self.block(&mut block)? {
                return Err(self.bad("the archive ends inside a sparse map"));
            }
            self.left = left;
            if let Some(segments) = reader.take(&block).map_err(|reason| self.bad(reason))? {
                return self.map(segments, size);
            }
        }
    }

    fn map(&self, segments: Vec<Segment>, size: Option<u64>) -> Result<Map, UnpackError> {
        let size = size.ok_or_else(|| self.bad("a sparse map without the size of its file"))?;
        Map::checked(segments, size, self.left).map_err(|reason| self.bad(reason))
    }

    /// The next header block, its checksum verified; `None` at the end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let mut block = [0; BLOCK];
        if !self.block(&mut block)? {
            return Ok(None);
        }
        if block == [0; BLOCK] {
            return match self.block(&mut block)? {
                true if block != [0; BLOCK] => Err(self.bad("one zero block before another header")),
                _ => Ok(None),
            };
        }
        self.headers += 1;
        // Three extended headers may precede each entry.
        if self.headers > self.limits.entries.saturating_mul(4) {
            return Err(UnpackError::Limit { what: "entries in one layer", limit: self.limits.entries });
        }
        let stated = number(&Header::from_byte_slice(&block).as_old().cksum);
        let (before, after) = (block.get(..148).unwrap_or_default(), block.get(156..).unwrap_or_default());
        let sum = |signed: bool| {
            let value = |byte: &u8| if signed { i64::from(byte.cast_signed()) } else { i64::from(*byte) };
            before.iter().chain(after).map(value).sum::<i64>() + 8 * i64::from(b' ')
        };
        if stated != Some(sum(false)) && stated != Some(sum(true)) {
            return Err(self.bad("its header has a wrong checksum"));
        }
        Ok(Some(block))
    }

    /// Fills `block`; false when the stream ended before it.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, UnpackError> {
        let mut filled = 0;
        while filled < BLOCK {
            let piece = self.peek()?;
            if piece.is_empty() {
                return if filled == 0 { Ok(false) } else { Err(self.bad("the archive ends inside a block")) };
            }
            let amount = piece.len().min(BLOCK - filled);
            if let (Some(into), Some(from)) = (block.get_mut(filled..filled + amount), piece.get(..amount)) {
                into.copy_from_slice(from);
            }
            self.input.consume(amount);
            filled += amount;
        }
        Ok(true)
    }

    /// The data of an extended header, whole.
    fn small(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size > self.limits.header_bytes {
            return Err(UnpackError::Limit { what: "bytes in one extended header", limit: self.limits.header_bytes });
        }
        self.expect(size)?;
        let mut text = Vec::new();
        loop {
            let piece = self.data()?;
            if piece.is_empty() {
                return Ok(text);
            }
            text.extend_from_slice(piece);
            let amount = piece.len();
            self.consume(amount);
        }
    }

    /// Says how much data follows.
    fn expect(&mut self, size: u64) -> Result<(), UnpackError> {
        if size > self.limits.layer_bytes {
            return Err(UnpackError::Limit { what: "bytes in one layer", limit: self.limits.layer_bytes });
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// Goes to the next header.
    fn skip(&mut self) -> Result<(), UnpackError> {
        self.left += std::mem::take(&mut self.padding);
        loop {
            let amount = self.data()?.len();
            if amount == 0 {
                return Ok(());
            }
            self.consume(amount);
        }
    }

    fn peek(&mut self) -> Result<&[u8], UnpackError> {
        let entry = self.headers;
        self.input.fill_buf().map_err(|error| UnpackError::Archive { entry, reason: error.to_string() })
    }

    fn size(&self, field: &[u8]) -> Result<u64, UnpackError> {
        number(field).and_then(|size| u64::try_from(size).ok()).ok_or_else(|| self.bad("a bad size"))
    }

    fn field(&self, field: &[u8], what: &'static str) -> Result<u32, UnpackError> {
        number(field).and_then(|number| u32::try_from(number).ok()).ok_or_else(|| self.bad(format!("a bad {what}")))
    }

    /// An owner. All ones would mean "leave it" to the kernel.
    fn id(&self, pax: Option<u64>, field: &[u8]) -> Result<u32, UnpackError> {
        let id = pax.or_else(|| number(field).and_then(|id| u64::try_from(id).ok()));
        let id = id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX);
        id.ok_or_else(|| self.bad("an owner that is no user or group id"))
    }

    fn bad(&self, reason: impl Into<String>) -> UnpackError {
        UnpackError::Archive { entry: self.headers, reason: reason.into() }
    }
}

fn header_path(header: &Header) -> Vec<u8> {
    let name = until_nul(&header.as_old().name);
    match header.as_ustar().map(|ustar| until_nul(&ustar.prefix)) {
        Some(prefix) if !prefix.is_empty() => super::path::join(prefix, name),
        _ => name.to_vec(),
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A header's number: octal text between spaces and NULs, empty for zero; or base 256 with the top bit set, two's complement.
fn number(field: &[u8]) -> Option<i64> {
    match field {
        [first, rest @ ..] if first & 0x80 != 0 => {
            let negative = first & 0x40 != 0;
            let head = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
            let mut value = head;
            for byte in rest {
                value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
            }
            i64::try_from(value).ok()
        }
        _ => {
            let blank = |byte: &u8| matches!(byte, b' ' | 0);
            let from = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
            let text = until_nul(field.get(from..)?).trim_ascii_end();
            text.iter().try_fold(0i64, |value, byte| match byte {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
                _ => None,
            })
        }
    }
}

#[cfg(test)]
mod tests;
