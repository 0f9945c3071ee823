//! What another runtime says it can do (`features` of the OCI runtime specification), asked once and kept.
//! Blocks for the command: on the blocking pool. Owns the answers.
//! Must never take silence for a refusal: a runtime that does not know the command may know the rest.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::Path,
    sync::{Mutex, PoisonError},
};

use serde::Deserialize;

use crate::engine::HandlerConfig;

/// Longest answer, bytes: runtimes say some 10 KiB, and a pipe holds 64.
const MOST: u64 = 60 * 1024;

/// What is of interest of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said {
    /// A user namespace of the pod's own.
    pub(crate) user_namespaces: bool,
    /// Volumes that are read-only with all that is mounted below them.
    pub(crate) recursive_read_only: bool,
}

/// The answers, by handler.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<BTreeMap<String, Option<Said>>>);

impl Answers {
    /// What the handler says; none when it says nothing. One that is not installed is asked again.
    pub(crate) fn of(&self, name: &str, handler: &HandlerConfig) -> Option<Said> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(said) = known().get(name) {
            return *said;
        }
        let said = ask(handler).ok()?;
        known().insert(name.to_owned(), said);
        said
    }
}

fn ask(handler: &HandlerConfig) -> std::io::Result<Option<Said>> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // It makes nothing, so that where it would keep it does not matter.
    super::run(handler, Path::new("/run"), &["features"], Some(writer.into()))?;
    let mut text = Vec::new();
    File::from(reader).take(MOST).read_to_end(&mut text)?;
    Ok(read(&text))
}

fn read(text: &[u8]) -> Option<Said> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Features {
        #[serde(default)]
        mount_options: Option<Vec<String>>,
        #[serde(default)]
        linux: Option<Linux>,
    }
    #[derive(Deserialize)]
    struct Linux {
        #[serde(default)]
        namespaces: Option<Vec<String>>,
    }
    let features: Features = serde_json::from_slice(text).ok()?;
    let has = |list: Option<Vec<String>>, word: &str| list.is_some_and(|list| list.iter().any(|entry| entry == word));
    Some(Said {
        user_namespaces: has(features.linux.and_then(|linux| linux.namespaces), "user"),
        recursive_read_only: has(features.mount_options, "rro"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_and_silence_is_none() {
        let said = |text: &str| read(text.as_bytes());
        let all =
            said(r#"{"ociVersionMin":"1.0.0","mountOptions":["ro","rro"],"linux":{"namespaces":["mount","user"]}}"#);
        assert_eq!(all, Some(Said { user_namespaces: true, recursive_read_only: true }));
        let none = said(r#"{"mountOptions":null,"linux":{"namespaces":["mount"]}}"#);
        assert_eq!(none, Some(Said { user_namespaces: false, recursive_read_only: false }));
        assert_eq!(said("unknown command features"), None);
    }
}
