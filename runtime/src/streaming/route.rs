//! A streaming request: finds what its token is for, agrees on a protocol, and answers; the session follows on the connection.
//! Pure up to the answer, in the connection's task. Owns nothing.
//! Must use each token up at its first showing, whatever comes of it, and tell a stranger nothing but that there is nothing.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    Ask, Streaming,
    node::Node,
    upgrade::{self, Forward, Refusal, Remote, STREAM_PROTOCOL, Transport},
};
use crate::observe::counters;

/// What every connection is served with.
pub(super) struct Door {
    pub(super) node: Arc<dyn Node>,
    pub(super) streaming: Streaming,
    pub(super) limits: Limits,
    pub(super) sessions: Arc<Semaphore>,
    pub(super) stop: watch::Receiver<bool>,
}

/// How long a session may be without something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) idle: Duration,
    pub(super) creation: Duration,
}

/// What the two sides have agreed on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Protocol {
    Remote(Transport, Remote),
    Forward(Forward),
}

/// A request that was answered with a switch of protocols.
pub(super) struct Admitted {
    pub(super) ask: Ask,
    pub(super) protocol: Protocol,
    pub(super) upgrade: OnUpgrade,
    pub(super) _place: OwnedSemaphorePermit,
}

/// The answer to a request; when it is a switch of protocols `admitted` has the session.
pub(super) fn answer(
    mut request: Request<Incoming>,
    door: &Door,
    admitted: &Mutex<Option<Admitted>>,
) -> Response<String> {
    match admit(&mut request, door) {
        Ok((session, response)) => {
            *admitted.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
            response
        }
        Err(response) => {
            door.streaming.counts.refused.fetch_add(1, Ordering::Relaxed);
            counters().streaming_refused.one();
            *response
        }
    }
}

fn admit(request: &mut Request<Incoming>, door: &Door) -> Result<(Admitted, Response<String>), Box<Response<String>>> {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Err(plain(StatusCode::METHOD_NOT_ALLOWED, "GET or POST"));
    }
    let nothing = || plain(StatusCode::NOT_FOUND, "no such session: its URL is good once, for a minute");
    let mut path = request.uri().path().split('/').skip(1);
    let (Some(kind), Some(token), None) = (path.next(), path.next(), path.next()) else { return Err(nothing()) };
    let ask = door.streaming.tokens.take(token).filter(|ask| ask.path() == kind).ok_or_else(nothing)?;
    let transport = upgrade::transport(request.headers()).map_err(|refusal| refused(&refusal))?;
    let (protocol, name) = match &ask {
        Ask::Exec { .. } | Ask::Attach { .. } => {
            let remote = upgrade::remote_command(transport, request.headers()).map_err(|refusal| refused(&refusal))?;
            (Protocol::Remote(transport, remote), remote.name)
        }
        Ask::PortForward { ports, .. } => {
            let (name, forward) =
                upgrade::port_forward(transport, request.headers()).map_err(|refusal| refused(&refusal))?;
            if matches!(forward, Forward::Channels { .. }) && !(1..=upgrade::CHANNEL_PORTS_MAX).contains(&ports.len()) {
                let want = "this protocol gives each port its channels: the PortForward call must name 1 to 64 ports";
                return Err(plain(StatusCode::BAD_REQUEST, want));
            }
            (Protocol::Forward(forward), name)
        }
    };
    let response = switch(transport, name, request.headers())?;
    let place = Arc::clone(&door.sessions).try_acquire_owned();
    let _place = place.map_err(|_| plain(StatusCode::SERVICE_UNAVAILABLE, "too many sessions; try again later"))?;
    let upgrade = hyper::upgrade::on(request);
    Ok((Admitted { ask, protocol, upgrade, _place }, response))
}

/// The switch of protocols.
fn switch(
    transport: Transport,
    name: &'static str,
    headers: &HeaderMap,
) -> Result<Response<String>, Box<Response<String>>> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let say = response.headers_mut();
    say.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    match transport {
        Transport::Spdy => {
            say.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            say.insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
        }
        Transport::WebSocket => {
            let version = headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
            let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| version);
            let accept = key.and_then(|key| HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok());
            let want = "want Sec-WebSocket-Version 13 and a key";
            say.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            say.insert(header::SEC_WEBSOCKET_ACCEPT, accept.ok_or_else(|| plain(StatusCode::BAD_REQUEST, want))?);
            if !name.is_empty() {
                say.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
            }
        }
    }
    Ok(response)
}

fn plain(status: StatusCode, text: &str) -> Box<Response<String>> {
    let mut response = Response::new(format!("{text}\n"));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Box::new(response)
}

/// Clients know what they could have offered from a header.
fn refused(refusal: &Refusal) -> Box<Response<String>> {
    let status = match refusal {
        Refusal::NoUpgrade => StatusCode::BAD_REQUEST,
        Refusal::NoCommon { .. } => StatusCode::FORBIDDEN,
    };
    let mut response = plain(status, &refusal.to_string());
    for name in upgrade::SPDY_NAMES {
        response.headers_mut().append("x-accepted-stream-protocol-versions", HeaderValue::from_static(name));
    }
    response
}
