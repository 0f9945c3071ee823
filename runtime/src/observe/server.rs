//! The HTTP endpoint for whoever watches the node: `/metrics` and `/healthz`, on a unix socket or a loopback port.
//! Async, on the daemon's workers; a page is made on the blocking pool. Owns the listener and the connections.
//! Must never change anything, take more than a request's head, or let slow clients pile up.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::JoinSet,
};

use super::{exposition, page};
use crate::{
    config::Metrics,
    engine::{Engine, shared::blocking},
    socket::{Socket, SocketError, SocketFile},
};

/// Connections at one time; more wait to be accepted.
const CONNECTIONS: usize = 16;
/// How long a client may take for a request's head, and be idle between two.
const HEAD: Duration = Duration::from_secs(60);
/// A daemon that takes longer to say how it is, is not well.
const ANSWER: Duration = Duration::from_secs(5);
/// After a failed accept: descriptors have run out, perhaps for a moment.
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("bind metrics.address")]
    Socket(#[from] SocketError),
    #[error("bind metrics.address {address}: free the port, or name another address")]
    Tcp { address: SocketAddr, source: io::Error },
}

/// A bound endpoint that nobody is answered on yet.
#[derive(Debug)]
pub(crate) enum Endpoint {
    /// The file goes when this does.
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
    Tcp(TcpListener),
}

impl Endpoint {
    /// Binds what is configured.
    pub(crate) async fn bind(address: &Metrics) -> Result<Option<Self>, EndpointError> {
        match address {
            Metrics::Off => Ok(None),
            Metrics::Unix(path) => {
                let (listener, file) = Socket::bind(path).await?.into_parts();
                Ok(Some(Self::Unix { listener, _file: file }))
            }
            Metrics::Tcp(address) => {
                let listener = TcpListener::bind(address).await;
                Ok(Some(Self::Tcp(listener.map_err(|source| EndpointError::Tcp { address: *address, source })?)))
            }
        }
    }

    /// Answers until it is dropped.
    pub(crate) async fn serve(self, engine: Engine) {
        let mut connections = JoinSet::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // Never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            let engine = engine.clone();
            let accepted = match &self {
                Self::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| {
                    connections.spawn(async move { (connection(stream, engine).await, place).0 });
                }),
                Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    connections.spawn(async move { (connection(stream, engine).await, place).0 });
                }),
            };
            if let Err(error) = accepted {
                tracing::debug!(%error, "accept on metrics.address");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, engine: Engine) {
    let service = service_fn(|request| {
        let engine = engine.clone();
        async move { Ok::<_, Infallible>(answer(&request, engine).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection on metrics.address ended");
    }
}

async fn answer(request: &Request<Incoming>, engine: Engine) -> Response<Full<Bytes>> {
    let plain = "text/plain; charset=utf-8";
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, plain, "only GET and HEAD\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => {
            let page = blocking(move || page::write(&engine)).await;
            text(StatusCode::OK, exposition::CONTENT_TYPE, page)
        }
        // Every sandbox's task, the table and the pool for blocking work have to answer.
        "/healthz" => match tokio::time::timeout(ANSWER, engine.probe()).await {
            Ok(Ok(())) => text(StatusCode::OK, plain, "ok\n".to_owned()),
            Ok(Err(why)) => text(StatusCode::SERVICE_UNAVAILABLE, plain, format!("{why}\n")),
            Err(_) => {
                let seconds = ANSWER.as_secs();
                text(StatusCode::SERVICE_UNAVAILABLE, plain, format!("no answer from the engine within {seconds} s\n"))
            }
        },
        _ => text(StatusCode::NOT_FOUND, plain, "/metrics or /healthz\n".to_owned()),
    }
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
