//! The runtime handlers of a configuration: names that a RuntimeClass may use, programs that are named whole.
//! Pure, as all checks of the configuration.
//! Owns nothing. Must never take a program that would have to be looked for.

use std::collections::BTreeMap;

use super::{Bad, bad, path};
use crate::config::{Runtime, raw::RawRuntime};

/// A handler's name is a DNS label (RuntimeClass).
const NAME_MAX: usize = 63;
/// The shim says these itself: said twice they would mean something else.
const OURS: [&str; 4] = ["--root", "--log", "--log-format", "--bundle"];

pub(super) fn check(raw: BTreeMap<String, RawRuntime>) -> Result<BTreeMap<String, Runtime>, Bad> {
    raw.into_iter().map(|(name, raw)| Ok((name.clone(), runtime(&name, raw)?))).collect()
}

fn runtime(name: &str, raw: RawRuntime) -> Result<Runtime, Bad> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if name.is_empty() || name.len() > NAME_MAX || !plain || name.starts_with('-') || name.ends_with('-') {
        return Err(bad("runtimes", name, "want a name of lower-case letters, digits and `-`, at most 63 of them"));
    }
    if name == "native" {
        return Err(bad("runtimes", name, "this is the built-in launcher: choose another name"));
    }
    if raw.path.is_none() {
        return Err(bad("runtimes", name, "has no `path`: name its program, such as path = \"/usr/sbin/runc\""));
    }
    for option in &raw.options {
        let word = option.split('=').next().unwrap_or_default();
        let long = word.replacen("--", "-", 1);
        if option.contains('\0') || OURS.iter().any(|ours| word == *ours || long == ours.replacen("--", "-", 1)) {
            return Err(bad("runtimes", option, format!("`{word}` is set by keelson itself: leave it out")));
        }
    }
    Ok(Runtime { path: path("runtimes", None, raw.path, "")?, options: raw.options, sandboxed: raw.sandboxed })
}
