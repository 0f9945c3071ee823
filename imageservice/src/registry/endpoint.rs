//! One place that serves a registry's images: its URL, what it may be asked, what it is sent, how it is trusted.
//! Built on a blocking thread (it reads the system's certificates), used by async tasks.
//! Owns the connections to it. Must never give its own headers or certificate to another host.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use reqwest::{Client, Url};

use super::{
    error::Cause,
    hosts::is_loopback,
    tls::{self, Trust},
};

/// What an endpoint is to the registry it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The registry itself, or the `server` that an operator has put in its place.
    Origin,
    /// A copy.
    Mirror,
}

/// What an endpoint may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Content by digest.
    pub(super) pull: bool,
    /// Which digest a tag has.
    pub(super) resolve: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self { pull: true, resolve: true }
    }
}

/// An endpoint as configured.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) url: String,
    pub(super) override_path: bool,
    /// The registry whose images it serves.
    pub(super) namespace: String,
    pub(super) role: Role,
    pub(super) capabilities: Capabilities,
    pub(super) headers: HeaderMap,
    pub(super) dial_timeout: Duration,
}

/// An endpoint, ready to be asked.
#[derive(Debug)]
pub(super) struct Endpoint {
    base: Url,
    namespace: String,
    role: Role,
    pub(super) capabilities: Capabilities,
    pub(super) headers: HeaderMap,
    trust: Arc<Trust>,
    dial_timeout: Duration,
    client: Result<Client, String>,
    /// For redirects to other hosts and for token servers: same trust, no client certificate.
    elsewhere: Arc<OnceLock<Result<Client, String>>>,
    plain: Option<Plain>,
}

/// The same host without TLS, for loopback registries.
#[derive(Debug)]
struct Plain {
    endpoint: Arc<Endpoint>,
    /// TLS was found to be what is spoken after all.
    is_tls: AtomicBool,
}

/// Settings that make no endpoint.
#[derive(Debug)]
pub(super) struct BadEndpoint {
    /// The certificate file at fault, if one is.
    pub(super) file: Option<PathBuf>,
    pub(super) reason: String,
}

impl Endpoint {
    pub(super) fn new(settings: Settings, trust: Trust) -> Result<Self, BadEndpoint> {
        let bad = |reason: String| BadEndpoint { file: None, reason };
        let given = &settings.url;
        let text = if given.contains("://") { given.clone() } else { format!("https://{given}") };
        let mut base = Url::parse(&text).map_err(|error| bad(format!("`{given}` is no URL: {error}")))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none_or(str::is_empty) {
            return Err(bad(format!("`{given}` is no http or https URL")));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(bad("the URL holds a password; give it in `header` instead".into()));
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(bad(format!("`{given}` has a query or a fragment")));
        }
        let path = base.path().trim_end_matches('/').to_owned();
        let path = if settings.override_path || path.ends_with("/v2") { path } else { format!("{path}/v2") };
        base.set_path(&path);
        trust.check()?;
        let plain = base.scheme() == "http";
        let local = is_loopback(base.host_str().unwrap_or_default());
        let client = tls::client(&trust, &tls::Dial { timeout: settings.dial_timeout, plain, proxy: !local });
        Ok(Self {
            base,
            namespace: settings.namespace,
            role: settings.role,
            capabilities: settings.capabilities,
            headers: settings.headers,
            trust: Arc::new(trust),
            dial_timeout: settings.dial_timeout,
            client,
            elsewhere: Arc::default(),
            plain: None,
        })
    }

    /// Lets this be asked over plain http first: on loopback seldom anything else listens, a TLS server refuses such a request at
    /// once, and a plain one may wait long for the rest of what it takes a TLS greeting for.
    pub(super) fn allow_plain(&mut self) {
        let mut base = self.base.clone();
        if base.set_scheme("http").is_err() {
            return;
        }
        let endpoint = Self {
            base,
            namespace: self.namespace.clone(),
            role: self.role,
            capabilities: self.capabilities,
            headers: self.headers.clone(),
            trust: self.trust.clone(),
            dial_timeout: self.dial_timeout,
            client: tls::client(
                &Trust::default(),
                &tls::Dial { timeout: self.dial_timeout, plain: true, proxy: false },
            ),
            elsewhere: self.elsewhere.clone(),
            plain: None,
        };
        self.plain = Some(Plain { endpoint: Arc::new(endpoint), is_tls: AtomicBool::new(false) });
    }

    /// What to ask first here: the plain form, if there is one, unless TLS is known to be spoken.
    pub(super) fn current(self: &Arc<Self>) -> Arc<Self> {
        match &self.plain {
            Some(plain) if !plain.is_tls.load(Ordering::Relaxed) => plain.endpoint.clone(),
            _ => self.clone(),
        }
    }

    /// What to ask after the plain form failed in a way in which TLS servers do.
    pub(super) fn other_form(self: &Arc<Self>, asked: &Arc<Self>, cause: &Cause) -> Option<Arc<Self>> {
        let suspect = match cause {
            Cause::Connect { reason } => !reason.contains("refused"),
            Cause::Status { status, .. } => *status == StatusCode::BAD_REQUEST,
            _ => false,
        };
        (suspect && !Arc::ptr_eq(self, asked)).then(|| self.clone())
    }

    /// Notes which form has answered, or with `None` that the known one does not any more.
    pub(super) fn learn(self: &Arc<Self>, answered: Option<&Arc<Self>>) {
        if let Some(plain) = &self.plain {
            plain.is_tls.store(answered.is_some_and(|form| Arc::ptr_eq(self, form)), Ordering::Relaxed);
        }
    }

    pub(super) fn is_origin(&self) -> bool {
        self.role == Role::Origin
    }

    /// Whether a URL is on this endpoint's scheme, host and port.
    pub(super) fn is_at(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    pub(super) fn is_plain(&self) -> bool {
        self.base.scheme() == "http"
    }

    /// Host and port, without a port that the scheme implies.
    pub(super) fn authority(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        self.base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// Scheme, host, port and path, as a key.
    pub(super) fn base(&self) -> &str {
        self.base.as_str()
    }

    /// The URL of `rest` (`name/manifests/tag`); mirrors are told which registry is meant, as containerd does.
    pub(super) fn url(&self, rest: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{rest}", self.base.path().trim_end_matches('/')));
        let hub = self.namespace == crate::reference::DEFAULT_HOST && self.authority() == "registry-1.docker.io";
        if self.authority() != self.namespace && !hub {
            url.query_pairs_mut().append_pair("ns", &self.namespace);
        }
        url
    }

    pub(super) fn client(&self) -> Result<&Client, Cause> {
        self.client.as_ref().map_err(|reason| Cause::Setup { reason: reason.clone() })
    }

    /// A client for another host that this endpoint has pointed at. The first call reads the system's certificates.
    pub(super) async fn elsewhere(&self) -> Result<Client, Cause> {
        let (cell, trust, timeout) = (self.elsewhere.clone(), self.trust.clone(), self.dial_timeout);
        let made = tokio::task::spawn_blocking(move || {
            let dial = tls::Dial { timeout, plain: false, proxy: true };
            cell.get_or_init(|| tls::client(&trust.without_identity(), &dial)).clone()
        });
        match made.await {
            Ok(client) => client.map_err(|reason| Cause::Setup { reason }),
            Err(_) => Err(Cause::Setup { reason: "the daemon is stopping".into() }),
        }
    }
}

/// `name:port` as its parts; a bracketed IPv6 address keeps its brackets.
pub(super) fn split_port(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && (!host.starts_with('[') || name.ends_with(']')) => {
            match port.parse() {
                Ok(port) => (name, Some(port)),
                Err(_) => (host, None),
            }
        }
        _ => (host, None),
    }
}
