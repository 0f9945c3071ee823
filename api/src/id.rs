//! Ids of the things keelson makes: sandboxes, containers, exec sessions.
//! Plain data in every process. An id is 64 lower-case hex characters (exec ids: 16): kubelet and cAdvisor parse the text after
//! the last `-` of a cgroup name, so an id never holds a `-`. Must never hold a string that was not checked.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("id `{text}`: want {want} lower-case hex characters")]
pub struct InvalidId {
    /// The text as given, cut to 80 characters.
    pub text: String,
    /// How many characters an id of this kind has.
    pub want: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Length of the text form, characters.
            pub const LEN: usize = $bytes * 2;

            /// The id made of these random bytes; the caller brings the randomness.
            #[must_use]
            pub fn from_random(bytes: [u8; $bytes]) -> Self {
                use fmt::Write as _;
                let mut text = String::with_capacity(Self::LEN);
                for byte in bytes {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "{byte:02x}");
                }
                Self(text.into_boxed_str())
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if text.len() == Self::LEN && text.bytes().all(hex) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId { text: text.chars().take(80).collect(), want: Self::LEN })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A pod sandbox: what CRI calls `pod_sandbox_id`.
    SandboxId,
    32
);
id!(
    /// A container.
    ContainerId,
    32
);
id!(
    /// One process started in a running container by exec.
    ExecId,
    8
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text_form() {
        let id = ContainerId::from_random([0xa5; 32]);
        assert_eq!(id.as_str().len(), 64);
        assert_eq!(id.as_str().parse::<ContainerId>().as_ref(), Ok(&id));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "..", "A5", &"A5".repeat(32), &"a-".repeat(32), &"a5".repeat(33), "../../../../etc/passwd"] {
            assert!(text.parse::<ContainerId>().is_err(), "{text}");
        }
    }
}
