//! Finds places in a configuration text: the line of a key, the first key nobody knows, the known key nearest to it.
//! Pure functions over the text, on the daemon's main thread at start and in `keelson config check`.
//! Owns the set of known keys, which is read from the default configuration: there is no second list.
//! Must never decide what a value means.

use toml::de::{DeTable, DeValue};

use super::DEFAULT_TEXT;

/// A key that is in the text and in no list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnknownKey {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) nearest: Option<String>,
}

/// The first key of the text that the default configuration does not have; `None` also when the text is no TOML.
pub(super) fn unknown_key(text: &str) -> Option<UnknownKey> {
    let known: Vec<String> = keys(DEFAULT_TEXT).into_iter().map(|(key, _)| key).collect();
    keys(text)
        .into_iter()
        .filter(|(key, _)| !known.contains(key) && !is_of_a_runtime(key))
        .min_by_key(|(_, at)| *at)
        .map(|(key, at)| UnknownKey { line: line_at(text, at), nearest: nearest(&key, &known), key })
}

/// The names of runtimes are a person's own.
fn is_of_a_runtime(key: &str) -> bool {
    let mut words = key.split('.');
    words.next() == Some("runtimes")
        && words.next().is_some()
        && matches!(words.next(), None | Some("path" | "options" | "sandboxed"))
        && words.next().is_none()
}

/// The line, counted from 1, on which a dotted key is set.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    keys(text).into_iter().find(|(found, _)| found == key).map(|(_, at)| line_at(text, at))
}

/// The line, counted from 1, of a byte of the text.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// Every dotted key of the text, tables too, with the byte it starts at.
fn keys(text: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    if let Ok(table) = DeTable::parse(text) {
        walk(table.get_ref(), "", &mut found);
    }
    found
}

fn walk(table: &DeTable<'_>, prefix: &str, found: &mut Vec<(String, usize)>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        if let DeValue::Table(inner) = value.get_ref() {
            walk(inner, &name, found);
        }
        found.push((name, key.span().start));
    }
}

/// The known key that a person most likely meant: the same last word in another table, else a few letters away.
fn nearest(key: &str, known: &[String]) -> Option<String> {
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
    known
        .iter()
        .map(|candidate| {
            let whole = distance(key, candidate);
            let word = if last(key) == last(candidate) { 1 } else { usize::MAX };
            (whole.min(word), candidate)
        })
        .min()
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3))
        .map(|(_, candidate)| candidate.clone())
}

/// Levenshtein distance, in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(&b) {
            let above = *cell;
            *cell = (diagonal + usize::from(from != *to)).min(above + 1).min(left + 1);
            diagonal = above;
            left = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_in_edits() {
        for (a, b, want) in [("", "", 0), ("a", "", 1), ("", "abc", 3), ("kitten", "sitting", 3), ("root", "root", 0)] {
            assert_eq!(distance(a, b), want, "{a} {b}");
        }
    }

    #[test]
    fn an_unknown_key_is_found_with_its_line_and_its_neighbour() {
        for (text, key, line, near) in [
            ("rot = \"/x\"\n", "rot", 1, Some("root")),
            ("\n\n[images]\nhost_dir = \"/x\"\n", "images.host_dir", 4, Some("images.hosts_dir")),
            ("hosts_dir = \"/x\"\n", "hosts_dir", 1, Some("images.hosts_dir")),
            ("[netwrok]\n", "netwrok", 1, Some("network")),
            ("[log]\nlevel = \"info\"\nzzzzzzzzzzzz = 1\n", "log.zzzzzzzzzzzz", 3, None),
        ] {
            let found = unknown_key(text).unwrap();
            assert_eq!((found.key.as_str(), found.line, found.nearest.as_deref()), (key, line, near), "{text}");
        }
        assert_eq!(unknown_key("[log]\nlevel = \"info\"\n"), None);
        assert_eq!(unknown_key("this is = not toml ="), None);
    }

    #[test]
    fn the_line_of_a_dotted_key_is_found_in_either_form() {
        assert_eq!(line_of("\n[network]\nmtu = 3\n", "network.mtu"), Some(3));
        assert_eq!(line_of("network.mtu = 3\n", "network.mtu"), Some(1));
        assert_eq!(line_of("", "network.mtu"), None);
    }
}
