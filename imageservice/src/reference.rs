//! Image references: how people and kubelets name an image in a registry, checked once and kept in canonical parts.
//! Plain data in the daemon; parsing does no I/O and cannot panic. Owns the one reference parser of the project.
//! A reference always says where to ask (`host`), for what (`repository`), and which one (`tag`, `digest` or both; `latest` is
//! filled in). Must never accept a text whose canonical form would parse to something else.

mod grammar;

use std::{fmt, str::FromStr};

use keelson_api::Digest;

pub use self::grammar::InvalidReference;

/// The registry that short names mean.
pub const DEFAULT_HOST: &str = "docker.io";
/// Where single-word names live on [`DEFAULT_HOST`].
const OFFICIAL: &str = "library/";
/// The tag of a name that gives neither tag nor digest.
const DEFAULT_TAG: &str = "latest";

/// A checked reference. `Display` is the canonical form, which parses back to the same value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: Box<str>,
    repository: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's name and port, lower-case: `docker.io`, `localhost:5000`, `[::1]:5000`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path in the registry: `library/nginx`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if the reference has one; beside a digest it is only a remark.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index, if the reference has one.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Host and repository: `docker.io/library/nginx`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// `name:tag`, the form under which an image is tagged; `None` when a digest decides, because then nobody has checked that the
    /// tag means that digest.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        match (&self.tag, self.digest) {
            (Some(tag), None) => Some(format!("{}/{}:{tag}", self.host, self.repository)),
            (Some(_) | None, _) => None,
        }
    }

    /// `name@digest` for a digest that the registry has given for this reference.
    #[must_use]
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.host, self.repository)
    }

    /// The shortest text that means the same: `nginx`, `nginx:1.29`, `quay.io/org/tool`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let mut text = match (&*self.host, self.repository.strip_prefix(OFFICIAL)) {
            (DEFAULT_HOST, Some(short)) if !short.contains('/') => short.to_owned(),
            (DEFAULT_HOST, _) if !grammar::names_a_host(&self.repository) => self.repository.to_string(),
            _ => self.name(),
        };
        if let Some(tag) = &self.tag
            && (&**tag != DEFAULT_TAG || self.digest.is_some())
        {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        // A repository that is called like an image id has no short form.
        if text.parse().as_ref() == Ok(self) { text } else { self.to_string() }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let parts = grammar::split(text)?;
        let tag = match (parts.tag, parts.digest) {
            (Some(tag), _) => Some(tag.into()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.into()),
        };
        let (host, repository) = match parts.host {
            Some(host) => (host.to_ascii_lowercase(), parts.repository.to_owned()),
            None => (DEFAULT_HOST.to_owned(), parts.repository.to_owned()),
        };
        let host = if host == "index.docker.io" { DEFAULT_HOST.to_owned() } else { host };
        let official = host == DEFAULT_HOST && !repository.contains('/');
        let repository = if official { format!("{OFFICIAL}{repository}") } else { repository };
        grammar::check_length(text, &host, &repository)?;
        Ok(Self { host: host.into(), repository: repository.into(), tag, digest: parts.digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
