//! A registry on loopback that can be as rude as a test wants: HTTP/1.1 by hand, with or without TLS.
//! Runs as tasks of the test's own runtime. Owns one listening socket and a record of every request.
//! Must never listen on another address than 127.0.0.1.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};
use tokio_rustls::{TlsAcceptor, rustls};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// First byte of the range asked for.
    pub(crate) fn from(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes="));
        range.and_then(|range| range.split('-').next()?.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }
}

/// What to answer, and how badly.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Bytes of the body after which the connection breaks.
    pub(crate) cut: Option<usize>,
    /// Bytes of the body after which nothing more comes.
    pub(crate) stall: Option<usize>,
    /// Pause after each of so many bytes.
    pub(crate) drip: Option<(usize, Duration)>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn ok(media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }.header("content-type", media_type)
    }

    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#);
        Self { status, body: body.into_bytes(), ..Self::default() }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// What a registry holds: path to media type and bytes.
pub(crate) type Shelf = HashMap<String, (String, Vec<u8>)>;
type Hook = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

struct Shared {
    shelf: Shelf,
    hook: Box<Hook>,
    seen: Mutex<Vec<Request>>,
}

/// A running registry; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    /// Serves `shelf` over plain http, where `hook` does not answer first.
    pub(crate) async fn plain(shelf: Shelf, hook: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Self {
        Self::start(shelf, Box::new(hook), None).await
    }

    /// The same over TLS.
    pub(crate) async fn tls(
        shelf: Shelf,
        config: rustls::ServerConfig,
        hook: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        Self::start(shelf, Box::new(hook), Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start(shelf: Shelf, hook: Box<Hook>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { shelf, hook, seen: Mutex::default() });
        let server = Self { address, shared: shared.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, tls) = (shared.clone(), tls.clone());
                tokio::spawn(async move {
                    // A client that breaks off ends its own connection only.
                    let _ = match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => connection(stream, &shared).await,
                            Err(error) => Err(error),
                        },
                        None => connection(stream, &shared).await,
                    };
                });
            }
        });
        server
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub(crate) fn forget(&self) {
        self.shared.seen.lock().unwrap().clear();
    }

    /// How many requests of this method had this in their path.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        self.seen().iter().filter(|request| request.is(method, part)).count()
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let Some(request) = read(&mut stream).await? else { return Ok(()) };
        let reply = (shared.hook)(&request).unwrap_or_else(|| shelf(&shared.shelf, &request));
        shared.seen.lock().unwrap().push(request.clone());
        if !write(&mut stream, &request, &reply).await? {
            return Ok(());
        }
    }
}

async fn read(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Request>> {
    let mut line = Vec::new();
    if stream.read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    // Somebody greets with TLS, or worse.
    let Ok(line) = String::from_utf8(line) else { return Ok(None) };
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => break,
        }
    }
    let mut request =
        Request { method: method.into(), path: path.into(), query: query.into(), headers, body: String::new() };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(request))
}

/// Tells whether the connection lives on.
async fn write(stream: &mut (impl AsyncWrite + Unpin), request: &Request, reply: &Reply) -> io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} Test\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    stream.flush().await?;
    if request.method == "HEAD" {
        return Ok(true);
    }
    let end = reply.cut.or(reply.stall).unwrap_or(reply.body.len()).min(reply.body.len());
    let (step, pause) = reply.drip.unwrap_or((end.max(1), Duration::ZERO));
    for piece in reply.body[..end].chunks(step) {
        stream.write_all(piece).await?;
        stream.flush().await?;
        tokio::time::sleep(pause).await;
    }
    if reply.stall.is_some() {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    Ok(reply.cut.is_none())
}

/// What a well-behaved registry answers.
pub(crate) fn shelf(shelf: &Shelf, request: &Request) -> Reply {
    let Some((media_type, bytes)) = shelf.get(&request.path) else {
        return Reply::error(404, "MANIFEST_UNKNOWN", "no such thing");
    };
    let digest = super::image::digest(bytes);
    let from = request.from();
    if from > 0 && from < bytes.len() {
        let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        let reply = Reply { status: 206, ..Reply::ok(media_type, &bytes[from..]) };
        return reply.header("content-range", range);
    }
    let reply = Reply::ok(media_type, bytes.clone()).header("docker-content-digest", digest.to_string());
    match request.method.as_str() {
        "HEAD" => Reply { body: Vec::new(), ..reply }.header("content-length", bytes.len().to_string()),
        _ => reply,
    }
}
