//! An OCI distribution registry on loopback, read-only, over the image store.
//! Runs on its own threads in a test process or the `keelson-e2e` tool. Owns one listening socket on 127.0.0.1.
//! Must never listen on another address. Speaks enough of the OCI distribution spec: manifests, blobs with ranges.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};

use crate::images::{Built, Store};

/// Registries whose images it serves: a `hosts.toml` for each leads here.
pub const HOSTS: [&str; 5] = ["docker.io", "registry.k8s.io", "gcr.io", "k8s.gcr.io", "public.ecr.aws"];

/// A registry that serves until dropped.
pub struct Registry {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<String>>>,
    added: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

struct Shared {
    store: Store,
    names: BTreeMap<String, (String, String)>,
    types: BTreeMap<String, String>,
    requests: Arc<Mutex<Vec<String>>>,
    /// Blobs and manifests of one test, by digest.
    added: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl Registry {
    /// Serves every built image on 127.0.0.1:`port` (0: a free one).
    pub fn serve(store: Store, port: u16) -> Result<Registry> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("listen on loopback")?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let added = Arc::new(Mutex::new(BTreeMap::new()));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let types =
            store.built()?.into_iter().map(|Built { manifest, media_type, .. }| (manifest, media_type)).collect();
        let shared = Shared { names: store.names()?, store, types, requests: requests.clone(), added: added.clone() };
        let shared = Arc::new(shared);
        let stopping = stop.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopping.load(Ordering::Relaxed) {
                    break;
                }
                let shared = shared.clone();
                thread::spawn(move || {
                    // A client that goes away ends its own thread only.
                    let _ = shared.connection(stream);
                });
            }
        });
        Ok(Registry { address, stop, requests, added })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves one more blob or manifest, in every repository; gives its digest.
    pub fn add(&self, bytes: Vec<u8>) -> String {
        let digest = crate::images::sha256(&bytes);
        if let Ok(mut added) = self.added.lock() {
            added.insert(digest.clone(), bytes);
        }
        digest
    }

    /// Every request line so far: `GET /v2/...`.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().map(|r| r.clone()).unwrap_or_default()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accept loop.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn connection(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut out = stream;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut range = None;
            loop {
                let mut header = String::new();
                reader.read_line(&mut header)?;
                let header = header.trim_end();
                if header.is_empty() {
                    break;
                }
                if let Some((name, value)) = header.split_once(':')
                    && name.eq_ignore_ascii_case("range")
                {
                    range = value
                        .trim()
                        .strip_prefix("bytes=")
                        .and_then(|r| r.strip_suffix('-'))
                        .and_then(|n| n.parse().ok());
                }
            }
            let mut words = line.split_whitespace();
            let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let path = target.split('?').next().unwrap_or_default();
            if let Ok(mut requests) = self.requests.lock() {
                requests.push(format!("{method} {path}"));
            }
            self.answer(&mut out, method, path, range)?;
        }
    }

    fn answer(&self, out: &mut TcpStream, method: &str, path: &str, range: Option<u64>) -> Result<()> {
        let head = method == "HEAD";
        if path == "/v2/" || path == "/v2" {
            return send(out, 200, "application/json", &[], b"{}", head);
        }
        let rest = path.strip_prefix("/v2/").unwrap_or_default();
        if let Some((repository, reference)) = rest.split_once("/manifests/") {
            let found = if reference.starts_with("sha256:") {
                let media = self.types.get(reference).cloned();
                Some((
                    reference.to_owned(),
                    media.unwrap_or_else(|| "application/vnd.oci.image.manifest.v1+json".into()),
                ))
            } else {
                self.names.get(&format!("{repository}:{reference}")).cloned()
            };
            if let Some((digest, media_type)) = found
                && let Some(bytes) = self.bytes(&digest)
            {
                let media_type = serde_json::from_slice::<serde_json::Value>(&bytes)
                    .ok()
                    .and_then(|m| m["mediaType"].as_str().map(str::to_owned))
                    .unwrap_or(media_type);
                return send(out, 200, &media_type, &[("Docker-Content-Digest", &digest)], &bytes, head);
            }
            return send(out, 404, "application/json", &[], br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#, head);
        }
        if let Some((_, digest)) = rest.split_once("/blobs/")
            && let Some((mut file, size)) = self.blob(digest)?
        {
            let from = range.unwrap_or(0).min(size);
            file.seek(SeekFrom::Start(from))?;
            let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
            let content_range = if range.is_some() {
                format!("Content-Range: bytes {from}-{}/{size}\r\n", size - 1)
            } else {
                String::new()
            };
            write!(
                out,
                "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n{content_range}Accept-Ranges: bytes\r\n\r\n",
                size - from
            )?;
            if !head {
                std::io::copy(&mut file.take(size - from), out)?;
            }
            return Ok(());
        }
        send(out, 404, "application/json", &[], br#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#, head)
    }
}

/// A blob, from wherever it is.
trait Blob: Read + Seek {}
impl<T: Read + Seek> Blob for T {}

impl Shared {
    fn bytes(&self, digest: &str) -> Option<Vec<u8>> {
        let added = self.added.lock().ok().and_then(|added| added.get(digest).cloned());
        added.or_else(|| self.store.blob_path(digest).and_then(|path| fs::read(path).ok()))
    }

    fn blob(&self, digest: &str) -> Result<Option<(Box<dyn Blob>, u64)>> {
        if let Some(bytes) = self.added.lock().ok().and_then(|added| added.get(digest).cloned()) {
            let size = bytes.len() as u64;
            return Ok(Some((Box::new(std::io::Cursor::new(bytes)), size)));
        }
        let Some(file) = self.store.blob_path(digest).and_then(|path| fs::File::open(path).ok()) else {
            return Ok(None);
        };
        let size = file.metadata()?.len();
        Ok(Some((Box::new(file), size)))
    }
}

fn send(
    out: &mut TcpStream,
    status: u16,
    media_type: &str,
    extra: &[(&str, &str)],
    body: &[u8],
    head: bool,
) -> Result<()> {
    let reason = if status == 200 { "OK" } else { "Not Found" };
    let mut text =
        format!("HTTP/1.1 {status} {reason}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in extra {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    out.write_all(text.as_bytes())?;
    if !head {
        out.write_all(body)?;
    }
    Ok(())
}
