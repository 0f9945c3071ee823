//! The registry client.
//! Async, on the daemon's runtime. Owns connections and tokens. Must never send a credential to a host that did not ask for it.

/// What to show a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name; empty when only a token is given.
    pub username: String,
    /// Password.
    pub password: String,
    /// Identity token.
    pub identity_token: String,
    /// Registry token.
    pub registry_token: String,
}
