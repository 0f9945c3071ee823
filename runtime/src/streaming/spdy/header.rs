//! SPDY/3 header blocks: name-value pairs in one zlib stream per direction, primed with the dictionary.
//! Pure state over byte slices, used by the session's reader and writer tasks. Owns one zlib state each.
//! Must bound what a peer's block may inflate to.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;

/// Longest inflated header block, bytes. Exec and port-forward headers are some hundred.
const BLOCK_MAX: usize = 64 * 1024;

/// Why a header block is refused. The compression state is lost then: the session must end.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Not a zlib stream with the SPDY dictionary.
    #[error("inflate header block")]
    Inflate(#[source] flate2::DecompressError),
    /// Inflates to more than the limit.
    #[error("header block inflates to more than {BLOCK_MAX} bytes")]
    TooLong,
    /// Counts and lengths do not fit the block.
    #[error("header block is malformed: {what}")]
    Malformed {
        /// Which part.
        what: &'static str,
    },
}

/// How a zlib stream begins that is primed with the dictionary: deflate, 32 KiB window, the dictionary's checksum.
pub(super) const STREAM_HEAD: [u8; 6] = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];

/// Names are lower case on the wire.
pub type Headers = Vec<(String, String)>;

/// Inflates the blocks that a peer sends, in order.
pub(super) struct Reader(Decompress);

impl Reader {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(super) fn read(&mut self, mut block: &[u8]) -> Result<Headers, HeaderError> {
        let mut plain = Vec::with_capacity(1024);
        loop {
            if plain.len() == plain.capacity() {
                if plain.len() >= BLOCK_MAX {
                    return Err(HeaderError::TooLong);
                }
                plain.reserve(plain.len().max(1024));
            }
            let before = self.0.total_in();
            let outcome = self.0.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            let used = usize::try_from(self.0.total_in() - before).unwrap_or(usize::MAX);
            block = block.get(used..).unwrap_or_default();
            match outcome {
                Ok(Status::StreamEnd) => return Err(HeaderError::Malformed { what: "the compressed stream ends" }),
                Ok(Status::Ok | Status::BufError) => {
                    if block.is_empty() && plain.len() < plain.capacity() {
                        break;
                    }
                    if used == 0 && plain.len() < plain.capacity() {
                        return Err(HeaderError::Malformed { what: "the compressed block is cut" });
                    }
                }
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(HeaderError::Inflate)?;
                }
                Err(error) => return Err(HeaderError::Inflate(error)),
            }
        }
        if plain.len() > BLOCK_MAX {
            return Err(HeaderError::TooLong);
        }
        parse(&plain)
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, HeaderError> {
    let mut headers = Vec::new();
    for _ in 0..number(&mut plain)? {
        // Lower case on the wire; a client that forgets it is understood.
        let name = text(&mut plain)?.to_ascii_lowercase();
        headers.push((name, text(&mut plain)?));
    }
    if plain.is_empty() { Ok(headers) } else { Err(HeaderError::Malformed { what: "bytes after the last pair" }) }
}

fn number(plain: &mut &[u8]) -> Result<u32, HeaderError> {
    let (bytes, rest) = plain.split_first_chunk::<4>().ok_or(HeaderError::Malformed { what: "a length is cut" })?;
    *plain = rest;
    Ok(u32::from_be_bytes(*bytes))
}

fn text(plain: &mut &[u8]) -> Result<String, HeaderError> {
    let length = usize::try_from(number(plain)?).unwrap_or(usize::MAX);
    let (bytes, rest) = plain.split_at_checked(length).ok_or(HeaderError::Malformed { what: "a string is cut" })?;
    *plain = rest;
    String::from_utf8(bytes.to_vec()).map_err(|_| HeaderError::Malformed { what: "a string is not UTF-8" })
}

/// Deflates the blocks that we send, in order.
pub(super) struct Writer(Compress);

impl Writer {
    /// # Errors
    /// The zlib state refuses the dictionary: only by a defect of the library.
    pub(super) fn new() -> Result<Self, flate2::CompressError> {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&DICTIONARY)?;
        Ok(Self(deflate))
    }

    /// # Errors
    /// As [`Writer::new`].
    pub(super) fn write(&mut self, headers: &[(&str, &str)]) -> Result<Vec<u8>, flate2::CompressError> {
        let length = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut plain = Vec::new();
        plain.extend_from_slice(&u32::try_from(headers.len()).unwrap_or(u32::MAX).to_be_bytes());
        for (name, value) in headers {
            plain.extend_from_slice(&length(name));
            plain.extend_from_slice(name.as_bytes());
            plain.extend_from_slice(&length(value));
            plain.extend_from_slice(value.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let begun = self.0.total_in();
        loop {
            let used = usize::try_from(self.0.total_in() - begun).unwrap_or(usize::MAX);
            self.0.compress_vec(plain.get(used..).unwrap_or_default(), &mut block, FlushCompress::Sync)?;
            if block.len() < block.capacity() {
                return Ok(block);
            }
            block.reserve(block.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_one_stream_are_read_in_order() {
        let (mut writer, mut reader) = (Writer::new().unwrap(), Reader::new());
        for i in 0..50 {
            let value = format!("value-{i}").repeat(i);
            let block = writer.write(&[("streamtype", "stdin"), ("port", &value)]).unwrap();
            let want = vec![("streamtype".to_owned(), "stdin".to_owned()), ("port".to_owned(), value)];
            assert_eq!(reader.read(&block).unwrap(), want);
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut writer = Writer::new().unwrap();
        let block = writer.write(&[("x", &"y".repeat(1 << 20))]).unwrap();
        assert!(block.len() < 20_000);
        assert!(matches!(Reader::new().read(&block), Err(HeaderError::TooLong)));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for plain in [&[0, 0, 0, 1][..], &[0, 0, 0, 1, 0, 0, 0, 9, 1], &[0xff; 4], &[0, 0, 0, 0, 1]] {
            assert!(parse(plain).is_err(), "{plain:?}");
        }
    }
}
