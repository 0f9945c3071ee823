//! References: what a person calls an image, in canonical form.
//! Plain data. Owns the grammar. Must never do I/O.

use std::{fmt, str::FromStr};

/// A checked, canonical reference: `host/path:tag` or `host/path@sha256:..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference(String);

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image reference `{text}`: empty or not printable")]
pub struct InvalidReference {
    /// As given.
    pub text: String,
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(InvalidReference { text: text.chars().take(100).collect() });
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
