//! Which AppArmor profile a container gets, and that it is there.
//! Runs on the blocking pool of the daemon while a container is created: one small file of the kernel is read; the first container on a
//! kernel with AppArmor has the default profile compiled and loaded, which takes a subprocess and a tenth of a second.
//! Owns the profile `keelson-default` in the kernel; it stays when the daemon ends, because its containers do.
//! Must never let a container run unconfined that asked for a profile, nor take an older keelson's text for this one's.

mod parser;
mod profile;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::container::{
    ContainerError,
    spec::{AppArmor as Asked, Security},
};

/// The profile of those that ask for none of their own.
pub(crate) const DEFAULT: &str = profile::NAME;

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Loaded profiles, a line each: `name (mode)`.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// A profile that could not be loaded is not tried again before.
const AGAIN: Duration = Duration::from_secs(30);

/// Profiles of this host.
pub(crate) struct AppArmor {
    enabled: bool,
    /// The kernel's list.
    loaded: PathBuf,
    load: fn(&str) -> Result<(), String>,
    /// Held by the one who loads the default profile; who needs it meanwhile waits, who asks how it is does not.
    turn: Mutex<()>,
    default: Mutex<State>,
}

/// How far the default profile is, as far as this daemon knows.
#[derive(Debug, Clone, Default)]
enum State {
    /// Nobody has asked. What the kernel has under the name may be another keelson's.
    #[default]
    Unknown,
    /// In the kernel, of this text.
    Loaded,
    /// Why not, and when that was.
    Failed(String, Instant),
}

/// What can be told of AppArmor on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppArmorStatus {
    /// The kernel has it, and it is on.
    pub enabled: bool,
    /// Why containers cannot have the default profile; `None`: they can, or the kernel has no AppArmor.
    pub problem: Option<String>,
}

impl AppArmor {
    /// Looks whether the kernel has it.
    pub(crate) fn detect() -> Self {
        let enabled = std::fs::read(ENABLED).is_ok_and(|text| text.first() == Some(&b'Y'));
        Self { enabled, loaded: LOADED.into(), load: parser::load, turn: Mutex::default(), default: Mutex::default() }
    }

    /// The profile for a container; `None`: none. A privileged container has one only when it names it.
    ///
    /// # Errors
    /// The profile asked for cannot be had.
    pub(crate) fn of(&self, security: &Security) -> Result<Option<String>, ContainerError> {
        let refuse = |reason: String| Err(ContainerError::Unsupported { field: "apparmor".into(), reason });
        match &security.apparmor {
            Asked::Localhost(name) if !self.enabled => {
                refuse(format!("profile `{name}`: the host's kernel has no AppArmor, or it is switched off"))
            }
            Asked::Localhost(name) => match self.has(name) {
                Ok(true) => Ok(Some(name.clone())),
                Ok(false) => {
                    refuse(format!("profile `{name}` is not loaded on this node: load it with apparmor_parser"))
                }
                Err(error) => refuse(format!("profile `{name}`: read `{}`: {error}", self.loaded.display())),
            },
            Asked::Unconfined => Ok(None),
            Asked::Unspecified | Asked::RuntimeDefault if !self.enabled || security.privileged => Ok(None),
            Asked::RuntimeDefault => match self.need_default() {
                Ok(()) => Ok(Some(DEFAULT.to_owned())),
                Err(reason) => refuse(format!("profile `{DEFAULT}` cannot be loaded: {reason}")),
            },
            // Asked for by nobody: a node without the means runs its containers as one without AppArmor, and `Status` says so.
            Asked::Unspecified => Ok(self.need_default().is_ok().then(|| DEFAULT.to_owned())),
        }
    }

    /// What can be told; nothing is loaded for it.
    pub(crate) fn status(&self) -> AppArmorStatus {
        let problem = match self.known() {
            State::Failed(reason, _) => Some(reason),
            State::Unknown if self.enabled => parser::find().err(),
            State::Unknown | State::Loaded => None,
        };
        AppArmorStatus { enabled: self.enabled, problem }
    }

    fn has(&self, name: &str) -> io::Result<bool> {
        Ok(listed(&std::fs::read_to_string(&self.loaded)?, name))
    }

    /// Has the default profile in the kernel, of this program's text. Whoever asks meanwhile waits.
    fn need_default(&self) -> Result<(), String> {
        if self.has_default() {
            return Ok(());
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever had the turn before may have settled it.
        if self.has_default() {
            return Ok(());
        }
        if let State::Failed(reason, when) = self.known()
            && when.elapsed() < AGAIN
        {
            return Err(reason);
        }
        // Also when the kernel has one of this name: it may be another keelson's. Replacing one by the same text changes nothing.
        let loaded = (self.load)(&profile::text(Path::new(profile::ABI).exists()));
        let state = match &loaded {
            Ok(()) => {
                tracing::info!(profile = DEFAULT, "loaded the default AppArmor profile");
                State::Loaded
            }
            Err(reason) => {
                tracing::warn!(profile = DEFAULT, reason, "cannot load the default AppArmor profile");
                State::Failed(reason.clone(), Instant::now())
            }
        };
        *self.default.lock().unwrap_or_else(PoisonError::into_inner) = state;
        loaded
    }

    /// Whether it was loaded and nobody has unloaded it since: tools that take away what no file of the host defines do.
    fn has_default(&self) -> bool {
        matches!(self.known(), State::Loaded) && self.has(DEFAULT).unwrap_or(true)
    }

    fn known(&self) -> State {
        self.default.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether the kernel's list has the profile. A name may have spaces.
fn listed(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.strip_prefix(name).is_some_and(|mode| mode.starts_with(" (") && !mode.contains("//")))
}

#[cfg(test)]
mod tests;
