//! Content digests: `sha256:` and 64 lower-case hex characters, the one algorithm that keelson stores under.
//! Plain data in every process. The one digest parser of the project (CVE-2024-3727: unchecked digests became paths).
//! Must never accept another algorithm, upper case, or a short hash.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A checked `sha256` digest (OCI image spec, descriptor "Digests").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// An algorithm other than sha256.
    #[error("digest `{text}`: algorithm is not sha256, the only one supported")]
    Algorithm {
        /// The text as given, cut to 100 characters.
        text: String,
    },
    /// Not 64 lower-case hex characters.
    #[error("digest `{text}`: want `sha256:` and 64 lower-case hex characters")]
    Hex {
        /// The text as given, cut to 100 characters.
        text: String,
    },
}

impl Digest {
    /// The digest with these hash bytes.
    #[must_use]
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The hash bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex characters alone: safe as a file name.
    #[must_use]
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        let mut text = String::with_capacity(64);
        for byte in self.0 {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// The digest whose hex form this is (the inverse of [`Digest::hex`]).
    ///
    /// # Errors
    /// [`InvalidDigest::Hex`] for anything but 64 lower-case hex characters.
    pub fn from_hex(hex: &str) -> Result<Self, InvalidDigest> {
        let bad = || InvalidDigest::Hex { text: hex.chars().take(100).collect() };
        let text = hex.as_bytes();
        if text.len() != 64 {
            return Err(bad());
        }
        let nibble = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let mut hash = [0u8; 32];
        for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
            let [high, low] = pair else { return Err(bad()) };
            *byte = nibble(*high).ok_or_else(bad)? << 4 | nibble(*low).ok_or_else(bad)?;
        }
        Ok(Self(hash))
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        match text.split_once(':') {
            Some(("sha256", hex)) => Self::from_hex(hex),
            Some(_) => Err(InvalidDigest::Algorithm { text: text.chars().take(100).collect() }),
            None => Err(InvalidDigest::Hex { text: text.chars().take(100).collect() }),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_its_text_form() {
        let digest = Digest::from_sha256([0x1f; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }

    #[test]
    fn other_texts_are_refused() {
        let good = "ab".repeat(32);
        for text in [
            String::new(),
            "sha256:".into(),
            good.clone(),
            format!("sha512:{good}"),
            format!("SHA256:{good}"),
            format!("sha256:{}", good.to_uppercase()),
            format!("sha256:{good}0"),
            format!("sha256:../{}", "ab".repeat(30)),
            format!("sha256:{}\n", &good[1..]),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics_and_only_accepts_its_own_print(text in ".{0,90}") {
            if let Ok(digest) = text.parse::<Digest>() {
                proptest::prop_assert_eq!(digest.to_string(), text);
            }
        }
    }
}
