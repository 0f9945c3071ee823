//! Sparse files in all four dialects of GNU tar: the old header's, and PAX 0.0, 0.1 and 1.0.
//! Pure functions on the extracting thread. Owns the check that a map makes sense.
//! Must never let a map write outside its file or claim data that is not in the archive.

/// A run of data; between runs there are holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Runs in one file. 16 bytes each in memory; no honest file comes near.
pub(super) const MAX_SEGMENTS: usize = 1 << 20;

/// Where the data of a file goes, and how long the file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) segments: Vec<Segment>,
    pub(super) size: u64,
}

impl Map {
    /// A map whose runs are in order, inside the file, and together as long as the `stored` data.
    pub(super) fn checked(mut segments: Vec<Segment>, size: u64, stored: u64) -> Result<Self, &'static str> {
        let (mut end, mut sum) = (0u64, 0u64);
        for segment in &segments {
            if segment.offset < end {
                return Err("a sparse map that is out of order");
            }
            end = segment.offset.checked_add(segment.length).ok_or("a sparse map beyond any file")?;
            sum += segment.length;
        }
        if end > size || i64::try_from(size).is_err() {
            return Err("a sparse map beyond the end of its file");
        }
        if sum != stored {
            return Err("a sparse map that does not match its data");
        }
        segments.retain(|segment| segment.length > 0);
        Ok(Self { segments, size })
    }
}

/// Reads the map at the start of a 1.0 file's data, number by number: a count, then that many offsets and lengths, each on its
/// own line, padded with zeros to a block.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    digits: Vec<u8>,
    wanted: Option<usize>,
    offset: Option<u64>,
    segments: Vec<Segment>,
}

impl MapReader {
    /// Takes the next block; the segments once the last number is in it.
    pub(super) fn take(&mut self, block: &[u8]) -> Result<Option<Vec<Segment>>, &'static str> {
        const BAD: &str = "a sparse map that is not a list of numbers";
        for byte in block {
            if *byte != b'\n' {
                self.digits.push(*byte);
                if self.digits.len() > 20 {
                    return Err(BAD);
                }
                continue;
            }
            let number = super::pax::number(&self.digits).ok_or(BAD)?;
            self.digits.clear();
            match (self.wanted, self.offset.take()) {
                (None, _) => {
                    let wanted = usize::try_from(number).ok().filter(|wanted| *wanted <= MAX_SEGMENTS);
                    self.wanted = Some(wanted.ok_or("a sparse map with too many runs")?);
                }
                (Some(_), None) => self.offset = Some(number),
                (Some(_), Some(offset)) => self.segments.push(Segment { offset, length: number }),
            }
            if self.wanted == Some(self.segments.len()) {
                return Ok(Some(std::mem::take(&mut self.segments)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(pairs: &[(u64, u64)]) -> Vec<Segment> {
        pairs.iter().map(|(offset, length)| Segment { offset: *offset, length: *length }).collect()
    }

    #[test]
    fn only_maps_that_fit_their_file_and_data_are_taken() {
        assert!(Map::checked(segments(&[(0, 4), (10, 6), (20, 0)]), 20, 10).is_ok());
        assert!(Map::checked(vec![], 1 << 40, 0).is_ok());
        for (pairs, size, stored) in [
            (vec![(10, 4), (0, 4)], 20, 8),
            (vec![(0, 8), (4, 8)], 20, 16),
            (vec![(16, 8)], 20, 8),
            (vec![(0, 8)], 20, 4),
            (vec![(u64::MAX, 8)], u64::MAX, 8),
            (vec![(0, 0)], u64::MAX, 0),
        ] {
            assert!(Map::checked(segments(&pairs), size, stored).is_err(), "{pairs:?}");
        }
    }

    #[test]
    fn a_map_may_span_blocks() {
        let mut reader = MapReader::default();
        assert_eq!(reader.take(b"2\n0\n1"), Ok(None));
        assert_eq!(reader.take(b"0\n50\n5\n\0\0\0"), Ok(Some(segments(&[(0, 10), (50, 5)]))));
        assert_eq!(MapReader::default().take(b"0\n\0\0"), Ok(Some(vec![])));
        for bad in [b"x\n".as_slice(), b"\n", b"-1\n", b"99999999\n", b"111111111111111111111"] {
            assert!(MapReader::default().take(bad).is_err());
        }
    }
}
