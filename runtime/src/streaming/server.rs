//! The streaming server: accepts connections on its address, bounds them, and gives each a task.
//! Async; `serve` spawns one task that owns all others and ends them when it is stopped. Owns the listening socket.
//! Must bound what a stranger can hold: connections that have shown no token are few and short, sessions are counted.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use super::{
    Counts, Streaming, StreamingConfig,
    node::Node,
    route::{self, Door, Limits},
    tokens::Tokens,
};

/// Connections that may be without a session at once; more wait in the kernel's queue.
const KNOCKING_MAX: usize = 128;
/// Sessions at once.
const SESSIONS_MAX: usize = 1024;
/// From a connection to its whole request.
const REQUEST: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_MAX: usize = 16 * 1024;
/// How long sessions may take to say goodbye when the daemon stops.
const GRACE: Duration = Duration::from_secs(3);

/// Why the server cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is taken or not this machine's.
    #[error("bind streaming server to {address}")]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// The kernel's word.
        source: io::Error,
    },
    /// A PEM file that cannot be used.
    #[error("read `{path}` for the streaming server: {reason}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificate and key do not fit, or have no use here.
    #[error("set up TLS of the streaming server")]
    Tls(#[from] rustls::Error),
}

/// A bound server that nobody is served on yet.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    config: StreamingConfig,
    handle: Streaming,
}

/// A server at work; dropping it ends every session at once.
pub struct Running {
    stop: watch::Sender<bool>,
    task: JoinSet<()>,
}

impl Server {
    /// Binds the address and reads the certificate.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn bind(config: StreamingConfig) -> Result<Self, ServerError> {
        let tls = match &config.tls {
            Some((cert, key)) => Some(acceptor(cert, key)?),
            None => None,
        };
        let failed = |source| ServerError::Bind { address: config.address, source };
        let listener = TcpListener::bind(config.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let handle = Streaming {
            base: format!("{scheme}://{}", reachable(address)).into(),
            tokens: Arc::new(Tokens::default()),
            counts: Arc::new(Counts::default()),
        };
        Ok(Self { listener, tls, config, handle })
    }

    /// For those who hand out URLs.
    #[must_use]
    pub fn handle(&self) -> Streaming {
        self.handle.clone()
    }

    /// Serves sessions of this node until stopped.
    #[must_use]
    pub fn serve(self, node: Arc<dyn Node>) -> Running {
        let (stop, stopped) = watch::channel(false);
        let door = Arc::new(Door {
            node,
            streaming: self.handle,
            limits: Limits { idle: self.config.idle_timeout, creation: self.config.creation_timeout },
            sessions: Arc::new(Semaphore::new(SESSIONS_MAX)),
            stop: stopped.clone(),
        });
        let mut task = JoinSet::new();
        task.spawn(accept(self.listener, self.tls, door, stopped));
        Running { stop, task }
    }
}

impl Running {
    /// Takes no more connections, tells every session that it ends, and waits for that a few seconds.
    pub async fn stop(mut self) {
        // The task has ended already when nobody listens.
        let _ = self.stop.send(true);
        if timeout(GRACE, async { while self.task.join_next().await.is_some() {} }).await.is_err() {
            tracing::debug!("streaming sessions were cut off");
        }
        self.task.shutdown().await;
    }
}

/// The address that a client on this node can use.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, ServerError> {
    let failed = |path: &Path, error: &dyn std::error::Error| ServerError::Pem {
        path: path.to_owned(),
        reason: keelson_api::chain(error),
    };
    let chain = CertificateDer::pem_file_iter(cert).map_err(|error| failed(cert, &error))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|error| failed(cert, &error))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The listener's task: owns every connection's.
async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, door: Arc<Door>, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let knocking = Arc::new(Semaphore::new(KNOCKING_MAX));
    loop {
        let next = async {
            let place = Arc::clone(&knocking).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            Some(_) = connections.join_next() => continue,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Ok(place) = place else { break };
        match accepted {
            Ok((stream, _)) => {
                let (tls, door) = (tls.clone(), Arc::clone(&door));
                connections.spawn(async move {
                    let admitted = match tls {
                        Some(tls) => timeout(REQUEST, tls.accept(prepared(stream)))
                            .await
                            .ok()
                            .and_then(Result::ok)
                            .map(|stream| Io::Tls(Box::new(stream))),
                        None => Some(Io::Plain(prepared(stream))),
                    };
                    let session = match admitted {
                        Some(Io::Plain(stream)) => request(stream, &door).await,
                        Some(Io::Tls(stream)) => request(stream, &door).await,
                        None => None,
                    };
                    // From here on it has shown a token, or is over.
                    drop(place);
                    if let Some(session) = session {
                        session.run(&door).await;
                    }
                });
            }
            // Out of descriptors, most likely: what runs may give some back.
            Err(error) => {
                tracing::warn!(%error, "accept streaming connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

enum Io {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// Small pieces go at once; a client whose machine is gone is found by the kernel.
fn prepared(stream: TcpStream) -> TcpStream {
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
    stream
}

/// Reads one request and answers it; what follows on the connection when it was a session's.
async fn request<C>(stream: C, door: &Arc<Door>) -> Option<route::Admitted>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let admitted = Arc::new(std::sync::Mutex::new(None));
    let service = service_fn(|request| {
        let answer = route::answer(request, door, &admitted);
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // The error is the stranger's: a broken request, or none.
    let _ = timeout(REQUEST, connection).await;
    admitted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
}
