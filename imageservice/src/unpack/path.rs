//! Names in an archive, made plain: relative, no `.`, no `..`, no empty component.
//! Pure functions on the extracting thread. Owns the rules other runtimes have taught archives to rely on.
//! Must never let a name through that points above the layer's root.

use std::borrow::Cow;

use crate::config::Limits;

/// The name in plain form, components joined by `/`; empty for the root itself. `..` is taken lexically, as other runtimes do.
pub(super) fn clean<'a>(name: &'a [u8], limits: &Limits) -> Result<Cow<'a, [u8]>, &'static str> {
    if name.len() > limits.path_bytes {
        return Err("its name is longer than a path may be");
    }
    if name.contains(&0) {
        return Err("its name holds a NUL byte");
    }
    let trimmed = name.strip_suffix(b"/").unwrap_or(name);
    let mut depth = 0;
    let mut plain = true;
    for part in trimmed.split(|byte| *byte == b'/') {
        plain &= !matches!(part, b"" | b"." | b"..");
        depth += 1;
    }
    if depth > limits.path_depth {
        return Err("its name has too many components");
    }
    if plain {
        return Ok(Cow::Borrowed(trimmed));
    }
    let mut parts: Vec<&[u8]> = Vec::with_capacity(depth);
    for part in trimmed.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or("its name leads out of the layer")?;
            }
            part => parts.push(part),
        }
    }
    Ok(Cow::Owned(parts.join(b"/".as_slice())))
}

/// The directory part, empty for the root, and the last component. A path that is empty itself has no last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (path.get(..slash).unwrap_or_default(), path.get(slash + 1..).unwrap_or_default()),
        None => (b"", path),
    }
}

/// `directory/name`, or `name` alone below the root.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, name].join(b"/".as_slice()) }
}

/// A path for a message: lossy, and cut in the middle of anything long.
pub(super) fn shown(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path).chars().flat_map(char::escape_debug).collect();
    if text.chars().count() <= 200 {
        return text;
    }
    let head: String = text.chars().take(120).collect();
    let tail: Vec<char> = text.chars().rev().take(60).collect();
    let tail: String = tail.iter().rev().collect();
    format!("{head}...{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(name: &str) -> Result<String, &'static str> {
        clean(name.as_bytes(), &Limits::default()).map(|path| String::from_utf8(path.into_owned()).unwrap())
    }

    #[test]
    fn names_become_relative_and_plain() {
        for (name, want) in [
            ("a/b", "a/b"),
            ("a/b/", "a/b"),
            ("/a/b", "a/b"),
            ("./a//b/.", "a/b"),
            ("a/../b", "b"),
            ("/", ""),
            ("./", ""),
            ("", ""),
            ("a/..", ""),
            ("...", "..."),
            ("..a/b", "..a/b"),
        ] {
            assert_eq!(cleaned(name).as_deref(), Ok(want), "{name}");
        }
    }

    #[test]
    fn names_above_the_root_are_refused() {
        for name in ["..", "../a", "/..", "a/../../b", "./../etc/passwd", "a\0b"] {
            assert!(cleaned(name).is_err(), "{name:?}");
        }
        assert!(cleaned(&"a/".repeat(1025)).is_err());
        assert!(cleaned(&"a".repeat(5000)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn a_clean_name_has_no_component_that_moves(name in "[a./]{0,40}") {
            if let Ok(path) = cleaned(&name) {
                proptest::prop_assert!(path.is_empty() || path.split('/').all(|part| !["", ".", ".."].contains(&part)));
                proptest::prop_assert_eq!(cleaned(&path).unwrap(), path);
            }
        }
    }
}
