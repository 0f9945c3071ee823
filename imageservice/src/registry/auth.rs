//! Answers to 401: a password header, or a token fetched from the realm that the registry names.
//! Async. Owns the tokens, each for one endpoint, one repository and one set of credentials.
//! Must never fetch a token over http for a registry on https, follow a redirect with a password, or log what it holds.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Method, StatusCode, header};
use reqwest::Url;
use serde::Deserialize;

use super::{
    body,
    challenge::Challenge,
    credentials::Proof,
    endpoint::Endpoint,
    error::{Cause, Shown, quote},
    session::Session,
};

/// Bytes of a token answer.
const ANSWER_MAX: u64 = 1 << 20;
/// What a token without a stated life is good for (distribution token spec).
const LIFE: Duration = Duration::from_secs(60);
/// Kept tokens; more are a sign of a hostile list of names.
const TOKENS_MAX: usize = 1024;

/// For whom a token is good.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) base: String,
    pub(super) repository: String,
    pub(super) credentials: Option<[u8; 32]>,
}

/// Headers that have worked.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<Key, Grant>>);

struct Grant {
    header: HeaderValue,
    expires: Option<Instant>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    pub(super) fn get(&self, key: &Key) -> Option<HeaderValue> {
        let mut grants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let grant = grants.get(key)?;
        if grant.expires.is_some_and(|expires| expires <= Instant::now()) {
            grants.remove(key);
            return None;
        }
        Some(grant.header.clone())
    }

    fn put(&self, key: Key, header: HeaderValue, expires: Option<Instant>) {
        let mut grants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if grants.len() >= TOKENS_MAX {
            let now = Instant::now();
            grants.retain(|_, grant| grant.expires.is_none_or(|expires| expires > now));
            if grants.len() >= TOKENS_MAX {
                grants.clear();
            }
        }
        grants.insert(key, Grant { header, expires });
    }

    /// Forgets a header that was refused, unless a newer one has replaced it.
    pub(super) fn refused(&self, key: &Key, header: &HeaderValue) {
        let mut grants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if grants.get(key).is_some_and(|grant| grant.header == *header) {
            grants.remove(key);
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<f64>,
}

/// A header that answers `challenge`, remembered for the next request; `None` when there is nothing to show.
pub(super) async fn answer(
    session: &Session,
    endpoint: &Endpoint,
    key: &Key,
    challenge: &Challenge,
) -> Result<Option<HeaderValue>, Cause> {
    let proof = session.proof_for(endpoint);
    let (text, expires) = match (challenge, proof) {
        (Challenge::Basic, Some(Proof::Password { username, password })) => (basic(username, password), None),
        (Challenge::Basic, _) => return Ok(None),
        (Challenge::Bearer { .. }, Some(Proof::Registry { token })) => (format!("Bearer {token}"), None),
        (Challenge::Bearer { realm, service, scope }, proof) => {
            let url = realm_url(endpoint, realm)?;
            let scope = scope.clone().unwrap_or_else(|| format!("repository:{}:pull", key.repository));
            let wanted = Wanted { url, service: service.as_deref(), scope: &scope };
            let (token, life) = fetch(session, endpoint, &wanted, proof).await?;
            // A token that ends during a request costs one more round trip; one asked for too early costs nothing.
            let life = life.mul_f32(0.9);
            (format!("Bearer {token}"), Instant::now().checked_add(life))
        }
    };
    let mut header = HeaderValue::from_str(&text)
        .map_err(|_| Cause::Protocol { reason: "the token server gave a token that no header can hold".into() })?;
    header.set_sensitive(true);
    session.tokens().put(key.clone(), header.clone(), expires);
    Ok(Some(header))
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

struct Wanted<'a> {
    url: Url,
    service: Option<&'a str>,
    scope: &'a str,
}

/// The realm, if it may be asked: a registry on https must not send a password into the open (CVE-2020-15157's class).
fn realm_url(endpoint: &Endpoint, realm: &str) -> Result<Url, Cause> {
    let bad = |reason: String| Cause::Protocol { reason };
    let url = Url::parse(realm)
        .map_err(|_| bad(format!("the registry names `{}` as token server, which is no URL", quote(realm))))?;
    let host = url.host_str().unwrap_or_default().to_owned();
    match url.scheme() {
        "https" => {}
        "http" if endpoint.is_plain() => {}
        "http" => {
            return Err(bad(format!("the registry is on https but names a token server on http ({host}); refused")));
        }
        other => return Err(bad(format!("the registry names a token server by `{}:`; refused", quote(other)))),
    }
    if host.is_empty() || !url.username().is_empty() || url.password().is_some() {
        return Err(bad(format!("the registry names `{}` as token server; refused", quote(realm))));
    }
    Ok(url)
}

async fn fetch(
    session: &Session,
    endpoint: &Endpoint,
    wanted: &Wanted<'_>,
    proof: Option<Proof<'_>>,
) -> Result<(String, Duration), Cause> {
    let shown = session.shown_to(endpoint);
    let realm = wanted.url.origin().ascii_serialization();
    let failed = |reason: String, refused: bool| Cause::Token { realm: realm.clone(), reason, refused, shown };
    let client = if endpoint.is_at(&wanted.url) { endpoint.client()?.clone() } else { endpoint.elsewhere().await? };
    let mut url = wanted.url.clone();
    let request = if let Some(Proof::Identity { token }) = proof {
        let form = form(&[
            ("grant_type", "refresh_token"),
            ("service", wanted.service.unwrap_or_default()),
            ("client_id", "keelson"),
            ("scope", wanted.scope),
            ("refresh_token", token),
        ]);
        client.request(Method::POST, url).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
    } else {
        if let Some(service) = wanted.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        for scope in wanted.scope.split(' ').filter(|scope| !scope.is_empty()) {
            url.query_pairs_mut().append_pair("scope", scope);
        }
        if let Some(Proof::Password { username, password }) = proof {
            url.query_pairs_mut().append_pair("account", username);
            let mut header = HeaderValue::from_str(&basic(username, password))
                .map_err(|_| failed("the password cannot be sent".into(), true))?;
            header.set_sensitive(true);
            client.request(Method::GET, url).header(header::AUTHORIZATION, header)
        } else {
            client.request(Method::GET, url)
        }
    };
    let timing = session.timing();
    let response = match tokio::time::timeout(timing.answer, request.send()).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(failed(super::exchange::cause_of(&error).to_string(), false)),
        Err(_) => return Err(failed(format!("no answer within {} s", timing.answer.as_secs()), false)),
    };
    let status = response.status();
    if !status.is_success() {
        let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST);
        let redirect = if status.is_redirection() { " (redirects are not followed with a password)" } else { "" };
        return Err(failed(format!("{status}{redirect}"), refused));
    }
    let bytes = body::read_all(response, ANSWER_MAX, timing).await.map_err(|cause| failed(cause.to_string(), false))?;
    let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| failed("its answer is no token".into(), false))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() {
        return Err(failed("its answer holds no token".into(), false));
    }
    let life = answer.expires_in.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Ok((token, life.unwrap_or(LIFE).clamp(Duration::from_secs(1), Duration::from_secs(24 * 3600))))
}

/// `a=b&c=d`, encoded.
fn form(pairs: &[(&str, &str)]) -> String {
    let Ok(mut url) = Url::parse("form:///") else { return String::new() };
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

/// What a request to `endpoint` carries of the caller's.
pub(super) fn shown(has_credentials: bool, goes_there: bool) -> Shown {
    match (has_credentials, goes_there) {
        (false, _) => Shown::Anonymous,
        (true, true) => Shown::Credentials,
        (true, false) => Shown::Withheld,
    }
}
