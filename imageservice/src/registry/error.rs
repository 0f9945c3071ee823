//! What went wrong at each endpoint of a registry, in words that say what to do next.
//! Plain data, shared by every pull that was waiting. Owns the wording of advice.
//! Must never hold a credential, a token, or the query of a signed URL.

use std::fmt;

use http::StatusCode;
use keelson_api::Digest;

/// Why one endpoint did not answer as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// No connection, or it broke before an answer came.
    #[error("{reason}")]
    Connect {
        /// The chain of reasons, without URLs.
        reason: String,
    },
    /// The certificate was not accepted, or no TLS was spoken.
    #[error("{reason}")]
    Tls {
        /// The chain of reasons.
        reason: String,
    },
    /// Files of the endpoint's configuration cannot be used.
    #[error("{reason}")]
    Setup {
        /// Which, and why.
        reason: String,
    },
    /// No answer in time.
    #[error("no answer within {seconds} s")]
    Timeout {
        /// How long was waited.
        seconds: u64,
    },
    /// Bytes came too slowly.
    #[error("stalled: {received} bytes in {seconds} s, less than {floor} bytes a second")]
    Stalled {
        /// Bytes in the last window.
        received: u64,
        /// Length of the window.
        seconds: u64,
        /// The least accepted.
        floor: u64,
    },
    /// The body ended early.
    #[error("the connection broke after {received} of {expected} bytes: {reason}")]
    Broken {
        /// Bytes until then.
        received: u64,
        /// Bytes due.
        expected: u64,
        /// The chain of reasons.
        reason: String,
    },
    /// 404.
    #[error("not found{}", aside(detail))]
    NotFound {
        /// The registry's own words.
        detail: String,
    },
    /// 401 after everything was tried.
    #[error("401 unauthorized{}", aside(detail))]
    Unauthorized {
        /// The registry's own words.
        detail: String,
        /// What was shown.
        shown: Shown,
    },
    /// 403.
    #[error("403 forbidden{}", aside(detail))]
    Forbidden {
        /// The registry's own words.
        detail: String,
        /// What was shown.
        shown: Shown,
    },
    /// 429, and its time was too far off or came too often.
    #[error("429 too many requests{}", retry_after.map(|seconds| format!(", retry after {seconds} s")).unwrap_or_default())]
    Throttled {
        /// What the registry asked for.
        retry_after: Option<u64>,
        /// What was shown.
        shown: Shown,
    },
    /// Any other status.
    #[error("{status}{}", aside(detail))]
    Status {
        /// The status.
        status: StatusCode,
        /// The registry's own words.
        detail: String,
    },
    /// A redirect that is not followed.
    #[error("redirect refused: {reason}")]
    Redirect {
        /// Why.
        reason: String,
    },
    /// The token server did not give a token.
    #[error("token from {realm}: {reason}")]
    Token {
        /// Scheme and host of the token server.
        realm: String,
        /// Why.
        reason: String,
        /// Whether it was a refusal rather than a failure.
        refused: bool,
        /// What was shown.
        shown: Shown,
    },
    /// An answer that makes no sense.
    #[error("{reason}")]
    Protocol {
        /// In which way.
        reason: String,
    },
    /// More bytes than accepted.
    #[error("the answer is larger than {limit} bytes, the limit of this node")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
    /// What came is not what was asked for.
    #[error("asked for {expected}, got content with the digest {found}")]
    Digest {
        /// Asked for.
        expected: Digest,
        /// Got.
        found: Digest,
    },
}

fn aside(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

/// What a request carried to prove who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Nothing; the pull had no credentials.
    Anonymous,
    /// The pull's credentials.
    Credentials,
    /// Nothing: the pull's credentials belong to another host.
    Withheld,
}

impl Cause {
    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Stalled { .. } | Self::Broken { .. } => true,
            Self::Throttled { .. } => true,
            Self::Status { status, .. } => status.is_server_error() || *status == StatusCode::REQUEST_TIMEOUT,
            Self::Token { refused, .. } => !refused,
            Self::Tls { .. } | Self::Setup { .. } | Self::NotFound { .. } | Self::Unauthorized { .. } => false,
            Self::Forbidden { .. } | Self::Redirect { .. } | Self::Protocol { .. } => false,
            Self::TooLarge { .. } | Self::Digest { .. } => false,
        }
    }

    /// What a person can do about it.
    fn advice(&self) -> Option<&'static str> {
        Some(match self {
            Self::Tls { reason } if reason.contains("expired") => {
                "renew the registry's certificate and check this node's clock"
            }
            Self::Tls { reason } if reason.contains("not valid for name") || reason.contains("NotValidForName") => {
                "use the name that the registry's certificate was issued for"
            }
            Self::Tls { reason } if reason.contains("InvalidContentType") || reason.contains("corrupt message") => {
                "if the registry speaks plain http, give its http:// URL in hosts.toml"
            }
            Self::Tls { .. } => "give the registry's CA in `ca` of hosts.toml, or install it on this node",
            Self::Setup { .. } => "correct hosts.toml or the files it names",
            Self::Connect { reason } if reason.contains("dns") || reason.contains("lookup") => {
                "check the registry's name and this node's DNS"
            }
            Self::Connect { .. } | Self::Timeout { .. } => {
                "check that the registry runs and that this node can reach it"
            }
            Self::Stalled { .. } | Self::Broken { .. } => "check the network and pull again",
            Self::NotFound { .. } => "check name and tag",
            Self::Unauthorized { shown, .. } | Self::Forbidden { shown, .. } => shown.advice(),
            Self::Token { refused: true, shown, .. } => shown.advice(),
            Self::Token { .. } => "check that the token server runs and that this node can reach it",
            Self::Throttled { shown: Shown::Credentials, .. } => "wait, or configure a mirror in hosts.toml",
            Self::Throttled { .. } => "wait, pull with credentials, or configure a mirror in hosts.toml",
            Self::Status { status, .. } if status.is_server_error() => "the registry is in trouble; try again later",
            Self::Digest { .. } => "the endpoint serves altered content; repair or remove it",
            Self::Redirect { .. } | Self::Protocol { .. } | Self::TooLarge { .. } | Self::Status { .. } => return None,
        })
    }
}

impl Shown {
    fn advice(self) -> &'static str {
        match self {
            Self::Anonymous => "asked without credentials: check the name, or add an image pull secret",
            Self::Credentials => "the credentials were refused: check them, and that they may pull this repository",
            Self::Withheld => {
                "credentials were withheld, as they are for another host: give this endpoint its own in `header` of hosts.toml"
            }
        }
    }
}

/// One endpoint and why it did not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// What was asked, without query: `GET https://host/v2/name/manifests/tag`.
    pub request: String,
    /// Why it failed.
    pub cause: Cause,
}

/// Every endpoint that was tried, in order; the last one decides what the whole is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attempts {
    /// In the order of trying.
    pub attempts: Vec<Attempt>,
}

impl Attempts {
    /// The cause that counts: that of the last endpoint, which is the origin.
    #[must_use]
    pub fn decisive(&self) -> Option<&Cause> {
        self.attempts.last().map(|attempt| &attempt.cause)
    }

    pub(crate) fn push(&mut self, request: &str, cause: Cause) {
        self.attempts.push(Attempt { request: request.to_owned(), cause });
    }
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attempts.is_empty() {
            return f.write_str("hosts.toml leaves no endpoint that may be asked for this");
        }
        for (number, Attempt { request, cause }) in self.attempts.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(f, "{separator}{request}: {cause}")?;
            if let Some(advice) = cause.advice() {
                write!(f, " ({advice})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Attempts {}

/// A stranger's words for a message: one line, at most 200 characters, nothing unprintable.
pub(crate) fn quote(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

/// An error and its sources on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    quote(&keelson_api::chain(error))
}
