//! The `hosts.toml` tree: which endpoints serve a registry's images, in which order, trusted how. Laid out as containerd's.
//! Runs on blocking threads, once per pull; files are read again only when one of them has changed.
//! Owns the cache of endpoints, and with them their connections. Must never fall back to the registry itself when a file for it
//! exists but cannot be used: an air-gapped or audited node would not notice.

mod file;

use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    endpoint::{Endpoint, Role, Settings, split_port},
    tls::Trust,
};
use file::Stanza;

/// Time to connect when `dial_timeout` does not say (containerd's figure is 30 s; a dead mirror should cost less).
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Far above any honest file.
const FILE_MAX: u64 = 1 << 20;

/// A file of the tree that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read `{}`{}: {reason}", path.display(), line.map(|line| format!(" line {line}")).unwrap_or_default())]
pub struct HostsError {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1, where one is to blame.
    pub line: Option<usize>,
    /// What is wrong.
    pub reason: String,
}

/// The tree, with what was last read of it.
#[derive(Debug)]
pub(super) struct Hosts {
    dir: PathBuf,
    cache: Mutex<HashMap<String, Cached>>,
}

#[derive(Debug)]
struct Cached {
    seen: Vec<Seen>,
    endpoints: Vec<Arc<Endpoint>>,
}

/// A file, or its absence, on which an answer rests.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    stamp: Option<(i64, i64, u64, u64)>,
}

impl Seen {
    fn now(path: PathBuf) -> Self {
        let stamp = std::fs::metadata(&path).ok();
        let stamp = stamp.map(|meta| (meta.mtime(), meta.mtime_nsec(), meta.len(), meta.ino()));
        Self { path, stamp }
    }
}

/// Cached registries; a node asks few, and a hostile list of names must not grow this without bound.
const CACHE_MAX: usize = 256;

impl Hosts {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, cache: Mutex::default() }
    }

    /// The endpoints for registry `host`, best first. Blocks on a few `stat`s, or on reading what has changed.
    pub(super) fn endpoints(&self, host: &str) -> Result<Vec<Arc<Endpoint>>, HostsError> {
        if let Some(cached) = self.cache().get(host)
            && cached.seen.iter().all(|seen| *seen == Seen::now(seen.path.clone()))
        {
            return Ok(cached.endpoints.clone());
        }
        let mut seen = Vec::new();
        let endpoints: Vec<_> = self.load(host, &mut seen)?.into_iter().map(Arc::new).collect();
        let mut cache = self.cache();
        if cache.len() >= CACHE_MAX {
            cache.clear();
        }
        cache.insert(host.to_owned(), Cached { seen, endpoints: endpoints.clone() });
        Ok(endpoints)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, HashMap<String, Cached>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, host: &str, seen: &mut Vec<Seen>) -> Result<Vec<Endpoint>, HostsError> {
        for name in candidates(host) {
            let dir = self.dir.join(name);
            seen.push(Seen::now(dir.clone()));
            if !dir.is_dir() {
                continue;
            }
            let path = dir.join("hosts.toml");
            seen.push(Seen::now(path.clone()));
            return match read(&path)? {
                Some(text) => {
                    let parsed = file::parse(&path, &text)?;
                    endpoints(host, &parsed, &dir, seen)
                }
                None => Ok(vec![origin(host, &docker_style(&dir, seen)?, seen)?]),
            };
        }
        Ok(vec![origin(host, &Stanza::default(), seen)?])
    }
}

/// Folder names for a registry, the first that exists wins: `name_port_` (no colon, for tools that dislike it), `name:port`, and
/// the one for every registry.
fn candidates(host: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let (name, Some(port)) = split_port(host) {
        names.push(format!("{name}_{port}_"));
    }
    names.push(host.to_owned());
    names.push("_default".to_owned());
    names
}

/// The text of a file; `None` when there is none.
fn read(path: &Path) -> Result<Option<String>, HostsError> {
    let fail = |reason: String| HostsError { path: path.to_owned(), line: None, reason };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error.to_string())),
        Ok(meta) if !meta.is_file() => return Err(fail("is not a regular file".into())),
        Ok(meta) if meta.len() > FILE_MAX => return Err(fail(format!("is larger than {FILE_MAX} bytes"))),
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(|error| fail(error.to_string()))
}

/// Certificates laid beside each other as Docker has it, for a folder without `hosts.toml`: `*.crt`, `x.cert` with `x.key`.
fn docker_style(dir: &Path, seen: &mut Vec<Seen>) -> Result<Stanza, HostsError> {
    let fail = |error: std::io::Error| HostsError { path: dir.to_owned(), line: None, reason: error.to_string() };
    let mut stanza = Stanza::default();
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        names.push(entry.map_err(fail)?.path());
    }
    names.sort();
    for path in names {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => stanza.ca.push(path),
            Some("cert") => stanza.client.push((path.clone(), Some(path.with_extension("key")))),
            _ => continue,
        }
    }
    seen.push(Seen::now(dir.to_owned()));
    Ok(stanza)
}

fn endpoints(host: &str, parsed: &file::Parsed, dir: &Path, seen: &mut Vec<Seen>) -> Result<Vec<Endpoint>, HostsError> {
    let mut endpoints = Vec::new();
    for stanza in &parsed.hosts {
        endpoints.push(build(host, stanza, Role::Mirror, (dir, seen))?);
    }
    endpoints.push(match &parsed.server.url {
        Some(_) => build(host, &parsed.server, Role::Origin, (dir, seen))?,
        None => origin_in(host, &parsed.server, (dir, seen))?,
    });
    Ok(endpoints)
}

/// The registry itself, where no file says otherwise.
fn origin(host: &str, stanza: &Stanza, seen: &mut Vec<Seen>) -> Result<Endpoint, HostsError> {
    origin_in(host, stanza, (Path::new("/"), seen))
}

fn origin_in(host: &str, stanza: &Stanza, place: (&Path, &mut Vec<Seen>)) -> Result<Endpoint, HostsError> {
    let authority = if host == crate::reference::DEFAULT_HOST { "registry-1.docker.io" } else { host };
    let (name, port) = split_port(authority);
    let local = is_loopback(name);
    let scheme = if local && port == Some(80) { "http" } else { "https" };
    // Who has given certificates for it means TLS.
    let plain = local && !matches!(port, Some(80 | 443)) && stanza.ca.is_empty() && stanza.client.is_empty();
    let stanza = Stanza { url: Some(format!("{scheme}://{authority}")), override_path: false, ..stanza.clone() };
    let mut endpoint = build(host, &stanza, Role::Origin, place)?;
    if plain {
        endpoint.allow_plain();
    }
    Ok(endpoint)
}

/// Whether a host, without port, is this machine.
pub(super) fn is_loopback(name: &str) -> bool {
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn build(host: &str, stanza: &Stanza, role: Role, place: (&Path, &mut Vec<Seen>)) -> Result<Endpoint, HostsError> {
    let (dir, seen) = place;
    let fail = |path: PathBuf, line, reason| HostsError { path, line, reason };
    let mut bytes = |path: &Path| -> Result<Vec<u8>, HostsError> {
        let path = dir.join(path);
        seen.push(Seen::now(path.clone()));
        match read(&path)? {
            Some(text) => Ok(text.into_bytes()),
            None => Err(fail(path, None, "no such file, but hosts.toml names it".into())),
        }
    };
    let mut trust = Trust { skip_verify: stanza.skip_verify, ..Trust::default() };
    for path in &stanza.ca {
        trust.ca.push((dir.join(path), bytes(path)?));
    }
    if let Some((cert, key)) = stanza.client.first() {
        let mut pem = bytes(cert)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(bytes(key)?);
        }
        trust.identity = Some((dir.join(cert), pem));
    }
    let at_fault = stanza.place.clone();
    let settings = Settings {
        url: stanza.url.clone().unwrap_or_default(),
        override_path: stanza.override_path,
        namespace: host.to_owned(),
        role,
        capabilities: stanza.capabilities,
        headers: stanza.headers.clone(),
        dial_timeout: stanza.dial_timeout.unwrap_or(DIAL_TIMEOUT),
    };
    Endpoint::new(settings, trust).map_err(|error| match (error.file, at_fault) {
        (Some(path), _) => fail(path, None, error.reason),
        (None, Some((path, line))) => fail(path, Some(line), error.reason),
        (None, None) => fail(dir.to_owned(), None, error.reason),
    })
}

#[cfg(test)]
mod tests;
