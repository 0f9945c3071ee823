//! One pull's talk with one registry: its endpoints in order of preference, what each may be asked and shown.
//! Async, shared by the tasks of one pull. Owns the memory of which endpoints have failed in this pull.
//! Must never ask a mirror which digest a tag has unless it may `resolve`, nor accept a document whose digest is not the one asked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Method, header};
use keelson_api::Digest;
use reqwest::{Response, Url};
use sha2::{Digest as _, Sha256};

use super::{
    Registry, Timing,
    auth::{self, Key, Tokens},
    body,
    credentials::{Credentials, Proof},
    endpoint::Endpoint,
    error::{Attempts, Cause, Shown, quote},
    exchange::{self, Ask},
};
use crate::reference::Reference;

/// What is accepted under `/manifests/`, best first: the media types of `manifest.rs`, and whatever old registries send instead.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";
/// Tries at the last endpoint there is to ask; the others are given one.
const TRIES: u32 = 3;

pub(crate) struct Session {
    registry: Arc<Registry>,
    pub(super) reference: Reference,
    credentials: Option<Credentials>,
    endpoints: Vec<(Arc<Endpoint>, AtomicBool)>,
    timing: Timing,
}

/// What a name resolved to.
pub(crate) enum Resolved {
    /// Only the digest was asked for.
    Digest(Digest),
    /// The document came with it.
    Document { digest: Digest, bytes: Vec<u8>, media_type: Option<String> },
}

/// Who gave an answer that looks good so far, and to what.
pub(super) struct Served {
    asked: String,
    at: usize,
}

impl Session {
    pub(super) fn new(
        registry: Arc<Registry>,
        reference: Reference,
        credentials: Option<Credentials>,
        (endpoints, timing): (Vec<Arc<Endpoint>>, Timing),
    ) -> Self {
        let endpoints = endpoints.into_iter().map(|endpoint| (endpoint, AtomicBool::new(false))).collect();
        Self { registry, reference, credentials, endpoints, timing }
    }

    /// The digest of the reference's manifest or index, or the document itself when nobody asked for less.
    pub(crate) async fn resolve(&self, head: bool) -> Result<Resolved, Attempts> {
        let need = if self.reference.digest().is_some() { Need::Pull } else { Need::Resolve };
        let mut walk = Walk::new(self, need);
        // An endpoint that may only resolve is not asked for the document.
        let head = head || (need == Need::Resolve && walk.some_only_resolve());
        let wanted = match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        if head {
            let ask = self.manifest(Method::HEAD, &wanted);
            while let Some((response, served)) = walk.next(&ask).await {
                match (stated_digest(&response), self.reference.digest()) {
                    (Some(found), Some(expected)) if found != expected => {
                        walk.blame(&served, Cause::Digest { expected, found });
                    }
                    (None, Some(digest)) | (Some(digest), _) => return Ok(Resolved::Digest(digest)),
                    // The registry does not say; the document will.
                    (None, None) => return self.document(&wanted, walk).await,
                }
            }
            let no_head =
                matches!(walk.attempts.decisive(), Some(Cause::Status { status, .. }) if status.as_u16() == 405);
            if !no_head {
                return Err(walk.attempts);
            }
            walk = Walk::new(self, need);
        }
        self.document(&wanted, walk).await
    }

    /// A document by digest, at most `limit` bytes.
    pub(crate) async fn fetch_document(&self, digest: &Digest) -> Result<(Vec<u8>, Option<String>), Attempts> {
        match self.document_by(&digest.to_string(), Some(*digest), Walk::new(self, Need::Pull)).await? {
            Resolved::Document { bytes, media_type, .. } => Ok((bytes, media_type)),
            Resolved::Digest(_) => Err(Attempts::default()),
        }
    }

    async fn document(&self, wanted: &str, walk: Walk<'_>) -> Result<Resolved, Attempts> {
        self.document_by(wanted, self.reference.digest(), walk).await
    }

    async fn document_by(
        &self,
        wanted: &str,
        expected: Option<Digest>,
        mut walk: Walk<'_>,
    ) -> Result<Resolved, Attempts> {
        let ask = self.manifest(Method::GET, wanted);
        while let Some((response, served)) = walk.next(&ask).await {
            let media_type = response.headers().get(header::CONTENT_TYPE);
            let media_type = media_type.and_then(|value| value.to_str().ok()).map(quote);
            if media_type.as_deref().is_some_and(|media_type| media_type.starts_with("text/html")) {
                walk.blame(
                    &served,
                    Cause::Protocol { reason: "answered with a web page instead of a manifest".into() },
                );
                continue;
            }
            let stated = stated_digest(&response);
            match body::read_all(response, self.registry.manifest_max, &self.timing).await {
                Ok(bytes) => {
                    let found = Digest::from_sha256(Sha256::digest(&bytes).into());
                    match expected.or(stated) {
                        Some(expected) if expected != found => walk.blame(&served, Cause::Digest { expected, found }),
                        _ => return Ok(Resolved::Document { digest: found, bytes, media_type }),
                    }
                }
                Err(cause) => walk.blame(&served, cause),
            }
        }
        Err(walk.attempts)
    }

    fn manifest(&self, method: Method, wanted: &str) -> Ask {
        let path = format!("{}/manifests/{wanted}", self.reference.repository());
        Ask { method, path, accept: Some(ACCEPT), from: 0 }
    }

    pub(super) fn timing(&self) -> &Timing {
        &self.timing
    }

    pub(super) fn tokens(&self) -> &Tokens {
        &self.registry.tokens
    }

    pub(super) fn key(&self, endpoint: &Endpoint) -> Key {
        let mine =
            self.credentials.as_ref().filter(|credentials| credentials.may_go_to(endpoint, self.reference.host()));
        Key {
            base: endpoint.base().to_owned(),
            repository: self.reference.repository().to_owned(),
            credentials: mine.map(Credentials::fingerprint),
        }
    }

    /// The caller's proof, if this endpoint may see it.
    pub(super) fn proof_for(&self, endpoint: &Endpoint) -> Option<Proof<'_>> {
        let credentials = self.credentials.as_ref()?;
        credentials.may_go_to(endpoint, self.reference.host()).then(|| credentials.proof()).flatten()
    }

    pub(super) fn shown_to(&self, endpoint: &Endpoint) -> Shown {
        auth::shown(self.credentials.is_some(), self.proof_for(endpoint).is_some())
    }
}

/// What an endpoint must be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Pull,
    Resolve,
}

/// A walk over the endpoints for one thing: those that have not failed in this pull first.
pub(super) struct Walk<'a> {
    session: &'a Session,
    order: Vec<usize>,
    at: usize,
    pub(super) attempts: Attempts,
}

impl<'a> Walk<'a> {
    pub(super) fn new(session: &'a Session, need: Need) -> Self {
        let able = |at: &usize| {
            session.endpoints.get(*at).is_some_and(|(endpoint, _)| match need {
                Need::Pull => endpoint.capabilities.pull,
                Need::Resolve => endpoint.capabilities.resolve,
            })
        };
        let mut order: Vec<usize> = (0..session.endpoints.len()).filter(able).collect();
        // Stable: the order of the file within each half.
        order.sort_by_key(|at| session.endpoints.get(*at).is_some_and(|(_, failed)| failed.load(Ordering::Relaxed)));
        Self { session, order, at: 0, attempts: Attempts::default() }
    }

    fn some_only_resolve(&self) -> bool {
        let endpoints = self.order.iter().filter_map(|at| self.session.endpoints.get(*at));
        endpoints.into_iter().any(|(endpoint, _)| !endpoint.capabilities.pull)
    }

    /// The next good answer, from the current endpoint on; `None` when all have failed.
    pub(super) async fn next(&mut self, ask: &Ask) -> Option<(Response, Served)> {
        while let Some(at) = self.order.get(self.at).copied() {
            let (endpoint, _) = self.session.endpoints.get(at)?;
            let tries = if self.at + 1 == self.order.len() { TRIES } else { 1 };
            if let Some(answer) = self.ask_one(endpoint, ask, (at, tries)).await {
                return Some(answer);
            }
            self.give_up_on(at);
        }
        None
    }

    async fn ask_one(
        &mut self,
        endpoint: &Arc<Endpoint>,
        ask: &Ask,
        (at, tries): (usize, u32),
    ) -> Option<(Response, Served)> {
        let mut form = endpoint.current();
        let mut pause = self.session.timing.backoff;
        let mut tried = 0;
        loop {
            let asked = printable(&ask.method, &form.url(&ask.path));
            let cause = match exchange::ask(self.session, &form, ask).await {
                Ok(response) => {
                    endpoint.learn(Some(&form));
                    return Some((response, Served { asked, at }));
                }
                Err(cause) => cause,
            };
            if let Some(other) = endpoint.other_form(&form, &cause) {
                self.attempts.push(&asked, cause);
                form = other;
                continue;
            }
            let silent = matches!(
                cause,
                Cause::Connect { .. } | Cause::Tls { .. } | Cause::Timeout { .. } | Cause::Setup { .. }
            );
            endpoint.learn((!silent).then_some(&form));
            tried += 1;
            let wait = self.wait_before_retry(&cause, pause).filter(|_| tried < tries);
            let Some(wait) = wait else {
                self.attempts.push(&asked, cause);
                return None;
            };
            tokio::time::sleep(wait).await;
            pause = pause.saturating_mul(3);
        }
    }

    /// How long to wait before asking again; `None` when that is of no use.
    fn wait_before_retry(&self, cause: &Cause, pause: Duration) -> Option<Duration> {
        match cause {
            Cause::Throttled { retry_after: Some(seconds), .. } => {
                let wait = Duration::from_secs(*seconds);
                (wait <= self.session.timing.retry_after).then_some(wait)
            }
            // Waiting has taken long enough.
            Cause::Timeout { .. } => None,
            cause => cause.is_transient().then_some(pause),
        }
    }

    /// Records that a good-looking answer was not, and goes on to the next endpoint.
    pub(super) fn blame(&mut self, served: &Served, cause: Cause) {
        self.attempts.push(&served.asked, cause);
        self.give_up_on(served.at);
    }

    fn give_up_on(&mut self, at: usize) {
        if let Some((_, failed)) = self.session.endpoints.get(at) {
            failed.store(true, Ordering::Relaxed);
        }
        self.at += 1;
    }
}

fn stated_digest(response: &Response) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// For messages: no query, which may be signed.
fn printable(method: &Method, url: &Url) -> String {
    let host = url.origin().ascii_serialization();
    format!("{method} {host}{}", url.path())
}
