//! The grammar of references, as registries and Docker have settled it, with a refusal that names the wrong part.
//! Pure functions over borrowed text. Owns nothing. Must never index into text by anything but a position it has just found.

use keelson_api::Digest;

/// Longest repository path (distribution spec, "name" and the 255 bytes that clients agree on).
const REPOSITORY_MAX: usize = 255;
/// Longest host with port: 253 characters of DNS name, a colon, five digits.
const HOST_MAX: usize = 259;
/// Longest tag.
const TAG_MAX: usize = 128;

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "image reference `{text}`: {part} {reason}; want [host[:port]/]path[:tag][@sha256:..], for example `{example}`"
)]
pub struct InvalidReference {
    /// The text as given, cut to 100 characters, control characters escaped.
    pub text: String,
    /// Which part is wrong: `host`, `port`, `repository`, `tag`, `digest`, `name`.
    pub part: &'static str,
    /// What is wrong with it.
    pub reason: String,
    /// A good one, as near as one can guess.
    pub example: String,
}

/// A reference cut into its parts, each checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    pub(super) host: Option<&'a str>,
    pub(super) repository: &'a str,
    pub(super) tag: Option<&'a str>,
    pub(super) digest: Option<Digest>,
}

const EXAMPLE: &str = "registry.example.com:5000/team/app:1.2";

fn refuse(text: &str, part: &'static str, reason: impl Into<String>) -> InvalidReference {
    let text = text.chars().take(100).flat_map(char::escape_default).collect();
    InvalidReference { text, part, reason: reason.into(), example: EXAMPLE.into() }
}

/// Cuts and checks.
pub(super) fn split(text: &str) -> Result<Parts<'_>, InvalidReference> {
    let refused = |part, reason: &str| refuse(text, part, reason);
    if text.is_empty() {
        return Err(refused("name", "is empty"));
    }
    if text.contains("://") {
        let mut refused = refused("name", "starts with a URL scheme, which is not part of a reference");
        if let Some((_, rest)) = text.split_once("://")
            && split(rest).is_ok()
        {
            refused.example = rest.to_owned();
        }
        return Err(refused);
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => match digest.parse::<Digest>() {
            Ok(digest) => (name, Some(digest)),
            Err(error) => return Err(refuse(text, "digest", format!("is not one: {error}"))),
        },
        None => (text, None),
    };
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let (path, tag) = match name.get(last..).and_then(|component| component.find(':')) {
        Some(colon) => (name.get(..last + colon).unwrap_or(name), name.get(last + colon + 1..)),
        None => (name, None),
    };
    if let Some(tag) = tag {
        check_tag(tag).map_err(|reason| refuse(text, "tag", reason))?;
    }
    let (host, repository) = match path.split_once('/') {
        Some((first, rest)) if is_host(first) => (Some(first), rest),
        _ => (None, path),
    };
    if let Some(host) = host {
        check_host(host).map_err(|(part, reason)| refuse(text, part, reason))?;
    }
    check_repository(repository).map_err(|reason| {
        let mut refused = refuse(text, "repository", reason);
        let lower = text.to_ascii_lowercase();
        if lower != text && split(&lower).is_ok() {
            refused.example = lower;
        }
        refused
    })?;
    let id = host.is_none() && (is_hex64(path) || (path == "sha256" && tag.is_some_and(is_hex64)));
    if id {
        return Err(refused("name", "is the id of an image, which says nothing about where to pull it from"));
    }
    Ok(Parts { host, repository, tag, digest })
}

/// Bounds that hold for the canonical form.
pub(super) fn check_length(text: &str, host: &str, repository: &str) -> Result<(), InvalidReference> {
    if host.len() > HOST_MAX {
        return Err(refuse(text, "host", format!("has {} characters, more than {HOST_MAX}", host.len())));
    }
    if repository.len() > REPOSITORY_MAX {
        let reason = format!("has {} characters, more than {REPOSITORY_MAX}", repository.len());
        return Err(refuse(text, "repository", reason));
    }
    Ok(())
}

/// Whether this repository, written without its host, would have its first component taken for a host.
pub(super) fn names_a_host(repository: &str) -> bool {
    repository.split_once('/').is_none_or(|(first, _)| is_host(first))
}

/// Whether a first component names a registry: only such a name can have a dot, a port or brackets, but for `localhost`.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':', '[']) || first.eq_ignore_ascii_case("localhost")
}

fn is_hex64(text: &str) -> bool {
    Digest::from_hex(text).is_ok()
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if tag.is_empty() {
        return Err("is empty after the colon".into());
    }
    if tag.len() > TAG_MAX {
        return Err(format!("has {} characters, more than {TAG_MAX}", tag.len()));
    }
    if !tag.starts_with(word) {
        return Err("must start with a letter, a digit or `_`".into());
    }
    match tag.chars().find(|c| !word(*c) && !matches!(c, '.' | '-')) {
        Some(c) => Err(format!("holds {c:?}; letters, digits, `_`, `.` and `-` are allowed")),
        None => Ok(()),
    }
}

fn check_host(host: &str) -> Result<(), (&'static str, String)> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or(("host", "has `[` without `]`".to_owned()))?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(("host", "has something else than an IPv6 address in brackets".into()));
            }
            match rest.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if rest.is_empty() => (None, None),
                None => return Err(("host", "has text after `]`".into())),
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    if let Some(port) = port {
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if !digits || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(("port", "is not a number from 1 to 65535".into()));
        }
    }
    let Some(name) = name else { return Ok(()) };
    for label in name.split('.') {
        if label.is_empty() {
            return Err(("host", "has an empty label between dots".into()));
        }
        if label.len() > 63 {
            return Err(("host", "has a label of more than 63 characters".into()));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(("host", "has a label that starts or ends with `-`".into()));
        }
        if let Some(c) = label.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-') {
            return Err(("host", format!("holds {c:?}; letters, digits, `-` and `.` are allowed")));
        }
    }
    Ok(())
}

fn check_repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() {
        return Err("is empty".into());
    }
    for component in repository.split('/') {
        check_component(component)?;
    }
    Ok(())
}

/// Runs of lower-case letters and digits, between them one `.`, one or two `_`, or any number of `-`.
fn check_component(component: &str) -> Result<(), String> {
    if component.is_empty() {
        return Err("has an empty component: a `/` too many".into());
    }
    if component.contains(|c: char| c.is_ascii_uppercase()) {
        return Err("must be lower-case".into());
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if let Some(c) = component.chars().find(|c| !plain(*c) && !matches!(c, '.' | '_' | '-')) {
        return Err(format!("holds {c:?}; lower-case letters, digits, `.`, `_`, `-` and `/` are allowed"));
    }
    if !component.starts_with(plain) || !component.ends_with(plain) {
        return Err("has a component that starts or ends with a separator".into());
    }
    let separators = component.split(plain).filter(|run| !run.is_empty());
    for run in separators {
        if !matches!(run, "." | "_" | "__") && !run.bytes().all(|b| b == b'-') {
            return Err(format!("has `{run}` in a component; `.`, `_`, `__` or any number of `-` may separate"));
        }
    }
    Ok(())
}
