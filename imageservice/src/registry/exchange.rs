//! One question to one endpoint: redirects by hand, one answer to a 401, statuses turned into causes.
//! Async. Owns the rule for what survives a redirect.
//! Must never send `Authorization`, configured headers or a client certificate to another origin, nor go from https to http (T9).

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Response, Url};

use super::{
    auth, body, challenge,
    endpoint::Endpoint,
    error::{Cause, chain, quote},
    session::Session,
};

/// Hops before a redirect counts as a loop.
const HOPS: usize = 5;
/// Bytes of an error body that are read for its message.
const ERROR_MAX: u64 = 16 << 10;

/// A question.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Path below the endpoint's base.
    pub(super) path: String,
    pub(super) accept: Option<&'static str>,
    /// First byte wanted.
    pub(super) from: u64,
}

/// Asks; any answer but 200 or 206 is a cause.
pub(super) async fn ask(session: &Session, endpoint: &Endpoint, ask: &Ask) -> Result<Response, Cause> {
    let key = session.key(endpoint);
    let mut shown = session.tokens().get(&key);
    let mut answered = false;
    loop {
        let (response, moved) = follow(session, endpoint, ask, shown.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || moved {
            return judge(session, endpoint, response).await;
        }
        let challenge = challenge::read(response.headers());
        if let Some(refused) = &shown {
            session.tokens().refused(&key, refused);
        }
        let answer = match challenge {
            Some(challenge) if !answered => auth::answer(session, endpoint, &key, &challenge).await?,
            _ => None,
        };
        match answer {
            Some(header) => (shown, answered) = (Some(header), true),
            None => return judge(session, endpoint, response).await,
        }
    }
}

/// Follows redirects; tells whether another origin gave the answer.
async fn follow(
    session: &Session,
    endpoint: &Endpoint,
    ask: &Ask,
    authorization: Option<&HeaderValue>,
) -> Result<(Response, bool), Cause> {
    let mut url = endpoint.url(&ask.path);
    let mut moved = false;
    for _ in 0..=HOPS {
        let client = if moved { endpoint.elsewhere().await? } else { endpoint.client()?.clone() };
        let mut headers = if moved { HeaderMap::new() } else { endpoint.headers.clone() };
        if let (Some(authorization), false) = (authorization, moved) {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        if let Some(accept) = ask.accept {
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        }
        // Bytes as they are stored: the digest is over those.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if ask.from > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", ask.from))
        {
            headers.insert(header::RANGE, range);
        }
        let request = client.request(ask.method.clone(), url.clone()).headers(headers);
        let answer = session.timing().answer;
        let response = match tokio::time::timeout(answer, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(cause_of(&error)),
            Err(_) => return Err(Cause::Timeout { seconds: answer.as_secs() }),
        };
        let redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
        if !redirect {
            return Ok((response, moved));
        }
        url = next(&url, &response)?;
        moved |= !endpoint.is_at(&url);
    }
    Err(Cause::Redirect { reason: format!("more than {HOPS} in a row") })
}

fn next(url: &Url, response: &Response) -> Result<Url, Cause> {
    let refuse = |reason: String| Cause::Redirect { reason };
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| refuse("it names no location".into()))?;
    let next = url.join(location).map_err(|_| refuse(format!("its location `{}` is no URL", quote(location))))?;
    let target = next.host_str().unwrap_or_default();
    match (url.scheme(), next.scheme()) {
        ("https", "http") => return Err(refuse(format!("it leads from https to http ({target})"))),
        (_, "http" | "https") => {}
        (_, other) => return Err(refuse(format!("it leads to a `{}:` URL", quote(other)))),
    }
    if !next.username().is_empty() || next.password().is_some() {
        return Err(refuse(format!("its location ({target}) holds a password")));
    }
    Ok(next)
}

/// Success as it is, everything else as a cause with the registry's own words.
async fn judge(session: &Session, endpoint: &Endpoint, response: Response) -> Result<Response, Cause> {
    let status = response.status();
    if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return Ok(response);
    }
    let shown = session.shown_to(endpoint);
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = retry_after.and_then(|text| text.trim().parse().ok());
    let detail = match body::read_all(response, ERROR_MAX, session.timing()).await {
        Ok(bytes) => message(&bytes),
        Err(_) => String::new(),
    };
    Err(match status {
        StatusCode::NOT_FOUND => Cause::NotFound { detail },
        StatusCode::UNAUTHORIZED => Cause::Unauthorized { detail, shown },
        StatusCode::FORBIDDEN => Cause::Forbidden { detail, shown },
        StatusCode::TOO_MANY_REQUESTS => Cause::Throttled { retry_after, shown },
        status => Cause::Status { status, detail },
    })
}

/// The first error of a distribution-spec error body.
fn message(bytes: &[u8]) -> String {
    let Ok(body) = serde_json::from_slice::<serde_json::Value>(bytes) else { return String::new() };
    let text = |pointer: &str| body.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let (code, message) = (text("/errors/0/code"), text("/errors/0/message"));
    match (code.is_empty(), message.is_empty()) {
        (false, false) => quote(&format!("{code}: {message}")),
        _ => quote(&format!("{code}{message}")),
    }
}

/// What a failed request means.
pub(super) fn cause_of(error: &reqwest::Error) -> Cause {
    let mut source = std::error::Error::source(error);
    let reason = source.map_or_else(|| "the request failed".to_owned(), chain);
    if error.is_timeout() {
        return Cause::Connect { reason: "connecting took too long".into() };
    }
    while let Some(inner) = source {
        if is_tls(inner) {
            return Cause::Tls { reason };
        }
        source = inner.source();
    }
    Cause::Connect { reason }
}

/// Whether it is an error of the TLS library, also inside I/O errors: those leave themselves out of the chain of sources.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut io = error.downcast_ref::<std::io::Error>();
    let mut tls = error.is::<rustls::Error>();
    while let Some(inner) = io.and_then(std::io::Error::get_ref) {
        tls |= inner.is::<rustls::Error>();
        io = inner.downcast_ref::<std::io::Error>();
    }
    tls
}
