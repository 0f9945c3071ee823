//! `/proc/<pid>/mountinfo`, as far as it concerns what CRIU is told of a container's mounts.
//! Pure.
//! Owns nothing.
//! Must never take a mount for the kernel's own procfs by anything but its filesystem type.

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) id: u64,
    /// Where, in the container.
    pub(super) mountpoint: String,
    pub(super) fstype: String,
}

/// The lines that have the form of a mount.
pub(super) fn parse(text: &str) -> Vec<Line> {
    text.lines().filter_map(line).collect()
}

fn line(text: &str) -> Option<Line> {
    let mut words = text.split(' ');
    let id = words.next()?.parse().ok()?;
    let mountpoint = unescape(words.nth(3)?);
    let fstype = text.split_once(" - ")?.1.split(' ').next()?.to_owned();
    Some(Line { id, mountpoint, fstype })
}

/// Blanks, line ends and backslashes are written in octal.
fn unescape(word: &str) -> String {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_blanks() {
        let text = "79 43 0:40 /sub /proc/a\\040b rw,relatime shared:1 master:2 - proc proc rw\nnonsense\n";
        let expected = Line { id: 79, mountpoint: "/proc/a b".into(), fstype: "proc".into() };
        assert_eq!(parse(text), [expected]);
    }
}
