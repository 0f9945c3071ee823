//! What a caller gives to prove who it is, and to which endpoints that may be shown.
//! Plain data, held in memory for one pull and never written or logged. Owns the rule against showing it to a stranger.
//! Must never print a secret, in `Debug` either.

use std::fmt;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};

use super::endpoint::Endpoint;

/// Credentials as the CRI carries them; an empty field is an absent one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Base64 of `username:password`, instead of those two.
    pub auth: String,
    /// The host that these are for; any host of the pulled image's registry when empty.
    pub server_address: String,
    /// OAuth2 refresh token, to be exchanged at the token server.
    pub identity_token: String,
    /// Bearer token to send as it is.
    pub registry_token: String,
}

/// Which form of proof there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof<'a> {
    Password { username: &'a str, password: &'a str },
    Identity { token: &'a str },
    Registry { token: &'a str },
}

/// Credentials that hold no usable proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("read credentials: {reason}")]
pub struct InvalidCredentials {
    /// What is wrong, without the value.
    pub reason: &'static str,
}

impl Credentials {
    /// Decodes `auth` and refuses what cannot be sent in a header.
    ///
    /// # Errors
    /// [`InvalidCredentials`].
    pub fn check(mut self) -> Result<Option<Self>, InvalidCredentials> {
        let bad = |reason| Err(InvalidCredentials { reason });
        if self.username.is_empty() && self.password.is_empty() && !self.auth.is_empty() {
            let engine = base64::engine::GeneralPurpose::new(
                &base64::alphabet::STANDARD,
                base64::engine::GeneralPurposeConfig::new()
                    .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
            );
            let Ok(bytes) = engine.decode(self.auth.trim()) else { return bad("`auth` is not base64") };
            let Ok(text) = String::from_utf8(bytes) else { return bad("`auth` is not UTF-8 inside") };
            let Some((username, password)) = text.split_once(':') else { return bad("`auth` has no `:` inside") };
            self.username = username.to_owned();
            self.password = password.trim_end_matches('\0').to_owned();
        }
        self.auth.clear();
        if self.username.contains(':') {
            return bad("the user name holds a `:`");
        }
        let texts = [&self.username, &self.password, &self.identity_token, &self.registry_token];
        if texts.iter().any(|text| text.chars().any(char::is_control)) {
            return bad("a value holds a control character");
        }
        Ok(self.proof().is_some().then_some(self))
    }

    pub(super) fn proof(&self) -> Option<Proof<'_>> {
        if !self.registry_token.is_empty() {
            Some(Proof::Registry { token: &self.registry_token })
        } else if !self.identity_token.is_empty() {
            Some(Proof::Identity { token: &self.identity_token })
        } else if !self.username.is_empty() {
            Some(Proof::Password { username: &self.username, password: &self.password })
        } else {
            None
        }
    }

    /// Whether these may be shown to `endpoint` when it serves the registry `host`: to the registry itself or what stands in for it
    /// as `server`, unless they are said to be for another host; to a mirror only when they are said to be for that mirror.
    pub(super) fn may_go_to(&self, endpoint: &Endpoint, host: &str) -> bool {
        let authority = endpoint.authority();
        if self.server_address.is_empty() {
            return endpoint.is_origin() || authority == host;
        }
        let stated = stated_host(&self.server_address);
        let hub = |name: &str| matches!(name, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        let same = |name: &str| name == stated || (hub(name) && hub(&stated));
        same(&authority) || (endpoint.is_origin() && same(host))
    }

    /// Tells credentials apart without holding them.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let fields = [
            &self.username,
            &self.password,
            &self.auth,
            &self.server_address,
            &self.identity_token,
            &self.registry_token,
        ];
        for field in fields {
            hash.update(u64::try_from(field.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(field);
        }
        hash.finalize().into()
    }
}

/// `https://index.docker.io/v1/` as `index.docker.io`.
fn stated_host(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default().to_ascii_lowercase()
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.proof() {
            Some(Proof::Password { .. }) => "password",
            Some(Proof::Identity { .. }) => "identity token",
            Some(Proof::Registry { .. }) => "registry token",
            None => "none",
        };
        f.debug_struct("Credentials")
            .field("kind", &kind)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auth_is_decoded_and_secrets_are_not_printed() {
        let auth = |text: &str| Credentials { auth: text.into(), ..Credentials::default() }.check();
        // "user:p:w" with and without padding.
        for text in ["dXNlcjpwOnc=", "dXNlcjpwOnc"] {
            let credentials = auth(text).unwrap().unwrap();
            assert_eq!(credentials.proof(), Some(Proof::Password { username: "user", password: "p:w" }));
            assert!(!format!("{credentials:?}").contains("p:w"));
        }
        for text in ["%%%", "dXNlcg==", "/w=="] {
            assert!(auth(text).is_err(), "{text}");
        }
        let control =
            Credentials { username: "a".into(), password: "b\r\nHost: evil".into(), ..Credentials::default() };
        assert!(control.check().is_err());
        assert_eq!(Credentials::default().check(), Ok(None));
    }

    #[test]
    fn an_address_is_brought_to_its_host() {
        for text in ["https://index.docker.io/v1/", "index.docker.io", "http://INDEX.docker.io"] {
            assert_eq!(stated_host(text), "index.docker.io", "{text}");
        }
        assert_eq!(stated_host("localhost:5000/x"), "localhost:5000");
    }
}
