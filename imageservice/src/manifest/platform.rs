//! Which entry of an index runs here: same system, same architecture, the best variant that this CPU can run.
//! Pure functions. Owns the spelling of platforms and the order of variants.
//! Must never fall back to another architecture in silence.

use super::{Entry, ManifestError, Target};
use crate::config::Platform;

/// The best entry; the first of equals.
pub(super) fn choose<'a>(entries: &'a [Entry], want: &Platform) -> Result<&'a Target, ManifestError> {
    let ranked = entries.iter().filter_map(|entry| Some((rank(entry.platform.as_ref(), want)?, entry)));
    // `min_by_key` returns the first of equals.
    match ranked.min_by_key(|(rank, _)| *rank) {
        Some((_, entry)) => Ok(&entry.target),
        None => {
            let mut found: Vec<String> =
                entries.iter().filter_map(|entry| entry.platform.as_ref()).map(print).collect();
            found.retain(|platform| platform != "unknown/unknown");
            found.sort();
            found.dedup();
            found.truncate(32);
            Err(ManifestError::NoPlatform { want: print(want), found })
        }
    }
}

/// Whether an image made for `made` runs on `want`.
pub(super) fn runs_on(made: &Platform, want: &Platform) -> bool {
    rank(Some(made), want).is_some()
}

/// `linux/arm64/v8`.
pub(super) fn print(platform: &Platform) -> String {
    let mut text = format!("{}/{}", platform.os, platform.architecture);
    if let Some(variant) = &platform.variant {
        text.push('/');
        text.push_str(variant);
    }
    text
}

/// How well it fits, 0 best; `None` when it does not run.
fn rank(made: Option<&Platform>, want: &Platform) -> Option<u32> {
    // Tools that write one-image indexes leave the platform out; the config still has to fit.
    let Some(made) = made else { return Some(1000) };
    if made.os != want.os || architecture(&made.architecture) != architecture(&want.architecture) {
        return None;
    }
    let made = level(architecture(&made.architecture), made.variant.as_deref())?;
    match &want.variant {
        None => Some(made),
        Some(variant) => level(architecture(&want.architecture), Some(variant))?.checked_sub(made),
    }
}

fn architecture(name: &str) -> &str {
    match name {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "armhf" | "armel" => "arm",
        "i386" | "i686" => "386",
        other => other,
    }
}

/// `v8` as 8; what an architecture without a variant means by that.
fn level(architecture: &str, variant: Option<&str>) -> Option<u32> {
    match (variant, architecture) {
        (None, "arm64") => Some(8),
        (None, "arm") => Some(7),
        (None, "amd64") => Some(1),
        (None, _) => Some(0),
        (Some(text), _) => text.strip_prefix('v').unwrap_or(text).split('.').next()?.parse().ok(),
    }
}
