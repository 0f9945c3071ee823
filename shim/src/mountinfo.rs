//! The kernel's table of mounts, `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)), for everybody who reads one.
//! Pure: the text is the caller's. Owns nothing.
//! Must never be fooled by a mount point: blanks, line ends and backslashes in it are written in octal and come back as they are.

use std::borrow::Cow;

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Its number.
    pub id: u64,
    /// The number of the mount that it lies on.
    pub parent: u64,
    /// What of the filesystem is mounted.
    pub root: Cow<'a, str>,
    /// Where, as the process that the table belongs to sees it.
    pub point: Cow<'a, str>,
    /// Options of this mount, with commas: `rw,nosuid`.
    pub options: &'a str,
    /// Propagation, with blanks: `shared:1 master:2`; empty: private.
    pub tags: &'a str,
    /// Type of the filesystem.
    pub fstype: &'a str,
    /// Options of the filesystem, with commas.
    pub super_options: &'a str,
}

impl Mount<'_> {
    /// It has a propagation tag of this kind, such as `shared:`.
    #[must_use]
    pub fn is_tagged(&self, kind: &str) -> bool {
        self.tags.split(' ').any(|tag| tag.starts_with(kind))
    }
}

/// The mounts of a table, in its order; a line that does not have the form of a mount is passed over.
pub fn parse(text: &str) -> impl Iterator<Item = Mount<'_>> {
    text.lines().filter_map(line)
}

fn line(text: &str) -> Option<Mount<'_>> {
    let (front, back) = text.split_once(" - ")?;
    let mut front = front.splitn(7, ' ');
    let (id, parent) = (front.next()?.parse().ok()?, front.next()?.parse().ok()?);
    let (root, point) = (unescape(front.nth(1)?), unescape(front.next()?));
    let (options, tags) = (front.next()?, front.next().unwrap_or_default());
    let mut back = back.split(' ');
    let (fstype, super_options) = (back.next()?, back.nth(1).unwrap_or_default());
    Some(Mount { id, parent, root, point, options, tags, fstype, super_options })
}

fn unescape(word: &str) -> Cow<'_, str> {
    if !word.contains('\\') {
        return Cow::Borrowed(word);
    }
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let [byte, after @ ..] = rest {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match (byte, digits.and_then(|digits| u8::from_str_radix(digits, 8).ok())) {
            (b'\\', Some(escaped)) => {
                plain.push(escaped);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&plain).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_blanks() {
        let text = "79 43 0:40 /sub /proc/a\\040b rw,relatime shared:1 master:2 - proc proc rw\nnonsense\n";
        let found: Vec<_> = parse(text).collect();
        let expected = Mount {
            id: 79,
            parent: 43,
            root: "/sub".into(),
            point: "/proc/a b".into(),
            options: "rw,relatime",
            tags: "shared:1 master:2",
            fstype: "proc",
            super_options: "rw",
        };
        assert_eq!(found, [expected]);
        assert!(found[0].is_tagged("shared:") && !found[0].is_tagged("propagate_from:"));
    }

    #[test]
    fn what_is_no_escape_stays() {
        assert_eq!(unescape("/a\\b\\04"), "/a\\b\\04");
        assert_eq!(unescape("/back\\134slash\\011tab"), "/back\\slash\ttab");
        let private = parse("1 0 8:1 / / rw - ext4 /dev/root rw,errors=continue").next().unwrap();
        assert_eq!((private.tags, private.super_options), ("", "rw,errors=continue"));
    }
}
