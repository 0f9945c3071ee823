//! One `hosts.toml`: parsed whole, every mistake with its line.
//! Pure functions over text. Owns the file's grammar.
//! Must never ignore a key it does not know: a `rewrite` or a misspelt `capabilities` would change what is pulled, in silence.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;

use super::HostsError;
use crate::registry::endpoint::Capabilities;

/// What a file says, in order of preference.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) hosts: Vec<Stanza>,
    /// Settings at the top of the file, for the registry itself or the `server` that stands in for it.
    pub(super) server: Stanza,
}

/// Settings of one endpoint.
#[derive(Debug, Clone, Default)]
pub(super) struct Stanza {
    pub(super) url: Option<String>,
    /// File and line, for errors found later.
    pub(super) place: Option<(PathBuf, usize)>,
    pub(super) capabilities: Capabilities,
    pub(super) ca: Vec<PathBuf>,
    /// Certificate, and key unless it is in the same file.
    pub(super) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(super) skip_verify: bool,
    pub(super) override_path: bool,
    pub(super) headers: HeaderMap,
    pub(super) dial_timeout: Option<Duration>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    server: Option<Spanned<String>>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, RawHost>,
    capabilities: Option<Vec<Spanned<String>>>,
    ca: Option<Spanned<Words>>,
    client: Option<Spanned<Clients>>,
    skip_verify: Option<bool>,
    override_path: Option<bool>,
    header: Option<BTreeMap<Spanned<String>, Words>>,
    dial_timeout: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHost {
    capabilities: Option<Vec<Spanned<String>>>,
    ca: Option<Spanned<Words>>,
    client: Option<Spanned<Clients>>,
    skip_verify: Option<bool>,
    override_path: Option<bool>,
    header: Option<BTreeMap<Spanned<String>, Words>>,
    dial_timeout: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "want a string or a list of strings")]
enum Words {
    One(String),
    Many(Vec<String>),
}

impl Words {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(word) => vec![word],
            Self::Many(words) => words,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "want a path, or a list of paths or of [certificate, key] pairs")]
enum Clients {
    One(String),
    Many(Vec<Words>),
}

/// Text of the file, for turning positions into lines.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn line(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count()
    }

    fn fail(&self, at: usize, reason: impl Into<String>) -> HostsError {
        HostsError { path: self.path.to_owned(), line: Some(self.line(at)), reason: reason.into() }
    }
}

/// Parses a file; `path` is for errors only.
pub(super) fn parse(path: &Path, text: &str) -> Result<Parsed, HostsError> {
    let source = Source { path, text };
    let raw: RawFile = toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| source.line(span.start));
        let reason = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        HostsError { path: path.to_owned(), line, reason }
    })?;
    let mut hosts: Vec<(Spanned<String>, RawHost)> = raw.host.into_iter().collect();
    hosts.sort_by_key(|(url, _)| url.span().start);
    let hosts = hosts.into_iter().map(|(url, raw)| stanza(&source, Some(url), raw)).collect::<Result<_, _>>()?;
    let top = RawHost {
        capabilities: raw.capabilities,
        ca: raw.ca,
        client: raw.client,
        skip_verify: raw.skip_verify,
        override_path: raw.override_path,
        header: raw.header,
        dial_timeout: raw.dial_timeout,
    };
    let named = raw.server.filter(|server| !server.get_ref().is_empty());
    let server = stanza(&source, named, top)?;
    Ok(Parsed { hosts, server })
}

fn stanza(source: &Source<'_>, url: Option<Spanned<String>>, raw: RawHost) -> Result<Stanza, HostsError> {
    let at = url.as_ref().map_or(0, |url| url.span().start);
    let ca = raw.ca.map(|ca| ca.into_inner().list()).unwrap_or_default();
    Ok(Stanza {
        url: url.map(Spanned::into_inner),
        place: Some((source.path.to_owned(), source.line(at))),
        capabilities: raw.capabilities.map_or(Ok(Capabilities::default()), |list| capabilities(source, list))?,
        ca: ca.into_iter().map(PathBuf::from).collect(),
        client: raw.client.map_or(Ok(Vec::new()), |clients| client(source, clients))?,
        skip_verify: raw.skip_verify.unwrap_or(false),
        override_path: raw.override_path.unwrap_or(false),
        headers: headers(source, raw.header.unwrap_or_default())?,
        dial_timeout: raw.dial_timeout.map(|text| timeout(source, &text)).transpose()?.flatten(),
    })
}

fn capabilities(source: &Source<'_>, list: Vec<Spanned<String>>) -> Result<Capabilities, HostsError> {
    let mut capabilities = Capabilities { pull: false, resolve: false };
    for word in list {
        match word.get_ref().to_ascii_lowercase().as_str() {
            "pull" => capabilities.pull = true,
            "resolve" => capabilities.resolve = true,
            // Of no use to a node that only pulls.
            "push" | "referrers" => {}
            other => {
                let reason = format!("unknown capability `{other}`; want `pull`, `resolve`, `push` or `referrers`");
                return Err(source.fail(word.span().start, reason));
            }
        }
    }
    Ok(capabilities)
}

fn client(source: &Source<'_>, clients: Spanned<Clients>) -> Result<Vec<(PathBuf, Option<PathBuf>)>, HostsError> {
    let at = clients.span().start;
    let items = match clients.into_inner() {
        Clients::One(path) => vec![Words::One(path)],
        Clients::Many(items) => items,
    };
    if items.len() > 1 {
        return Err(source.fail(at, "more than one client certificate for one endpoint; give the one to show"));
    }
    let pair = |item: Words| match item.list().as_slice() {
        [cert] => Ok((PathBuf::from(cert), None)),
        [cert, key] => Ok((PathBuf::from(cert), (!key.is_empty()).then(|| PathBuf::from(key)))),
        _ => Err(source.fail(at, "want a path or a [certificate, key] pair in `client`")),
    };
    items.into_iter().map(pair).collect()
}

fn headers(source: &Source<'_>, raw: BTreeMap<Spanned<String>, Words>) -> Result<HeaderMap, HostsError> {
    let mut headers = HeaderMap::new();
    for (key, values) in raw {
        let at = key.span().start;
        let name: HeaderName =
            key.get_ref().parse().map_err(|_| source.fail(at, format!("`{}` is no header name", key.get_ref())))?;
        for value in values.list() {
            let mut value = HeaderValue::from_str(&value).map_err(|_| {
                source.fail(at, format!("the value of header `{name}` holds a character that no header may"))
            })?;
            value.set_sensitive(true);
            headers.append(&name, value);
        }
    }
    Ok(headers)
}

/// A Go duration: `30s`, `1m30s`, `500ms`. Zero means the default, as in Go's dialer it means no bound.
fn timeout(source: &Source<'_>, text: &Spanned<String>) -> Result<Option<Duration>, HostsError> {
    let bad =
        || source.fail(text.span().start, format!("`{}` is no duration such as `10s` or `1m30s`", text.get_ref()));
    let mut rest = text.get_ref().trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() && rest != "0" {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| bad())?;
        let units = [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let (unit, seconds) = units.into_iter().find(|(unit, _)| tail.starts_with(unit)).ok_or_else(bad)?;
        total = Duration::try_from_secs_f64(number * seconds)
            .ok()
            .and_then(|more| total.checked_add(more))
            .ok_or_else(bad)?;
        rest = tail.strip_prefix(unit).unwrap_or_default();
    }
    Ok((!total.is_zero()).then_some(total))
}
