//! HTTP clients: whom they trust, what they show, how long they dial.
//! Built on blocking threads, because reading the system's certificates takes milliseconds. Owns the choice of TLS provider (ring).
//! Must never follow a redirect by itself: `exchange` decides what a next host may be shown.

use std::{path::PathBuf, time::Duration};

use reqwest::{Certificate, Client, Identity, redirect::Policy};

use super::{endpoint::BadEndpoint, error::chain};

/// Certificates of one endpoint, as read from their files.
#[derive(Debug, Default, Clone)]
pub(super) struct Trust {
    /// CAs beside the system's own.
    pub(super) ca: Vec<(PathBuf, Vec<u8>)>,
    /// Certificate and key to show, PEM.
    pub(super) identity: Option<(PathBuf, Vec<u8>)>,
    /// Accept any certificate.
    pub(super) skip_verify: bool,
}

/// How to connect.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) timeout: Duration,
    /// Only http is spoken: the system's certificates are not read.
    pub(super) plain: bool,
    /// Whether proxies of the environment apply.
    pub(super) proxy: bool,
}

impl Trust {
    /// Whether the files hold what they should.
    pub(super) fn check(&self) -> Result<(), BadEndpoint> {
        for (path, pem) in &self.ca {
            let bad = |reason: String| BadEndpoint { file: Some(path.clone()), reason };
            match Certificate::from_pem_bundle(pem) {
                Ok(found) if found.is_empty() => return Err(bad("holds no certificate in PEM form".into())),
                Ok(_) => {}
                Err(error) => return Err(bad(format!("is no PEM certificate: {}", chain(&error)))),
            }
        }
        if let Some((path, pem)) = &self.identity
            && let Err(error) = Identity::from_pem(pem)
        {
            let reason = format!("is no PEM certificate with its private key: {}", chain(&error));
            return Err(BadEndpoint { file: Some(path.clone()), reason });
        }
        Ok(())
    }

    pub(super) fn without_identity(&self) -> Self {
        Self { ca: self.ca.clone(), identity: None, skip_verify: self.skip_verify }
    }
}

/// A client; the error says why there is none.
pub(super) fn client(trust: &Trust, dial: &Dial) -> Result<Client, String> {
    // Fails when somebody in this process has chosen already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("keelson/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(dial.timeout)
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_keepalive(Duration::from_secs(30));
    if !dial.proxy {
        builder = builder.no_proxy();
    }
    let mut roots = Vec::new();
    for (_, pem) in &trust.ca {
        roots.extend(Certificate::from_pem_bundle(pem).map_err(|error| chain(&error))?);
    }
    builder = if dial.plain { builder.tls_certs_only(roots) } else { builder.tls_certs_merge(roots) };
    if trust.skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    if let Some((_, pem)) = &trust.identity {
        builder = builder.identity(Identity::from_pem(pem).map_err(|error| chain(&error))?);
    }
    builder.build().map_err(|error| match chain(&error) {
        text if text.contains("No CA certificates") => {
            "this node has no CA certificates: install the package `ca-certificates`, or give `ca` in hosts.toml".into()
        }
        text => text,
    })
}
