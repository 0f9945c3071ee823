//! Which system call filter a container gets, compiled once per profile.
//! Runs on the blocking pool of the daemon while a container is created; a second container with the same profile costs a lookup.
//! Owns the cache of programs compiled from the host's profile files, bounded; the default ones are kept by their own room. Must never give a container less of a filter than it asked for.

use std::{
    collections::HashMap,
    fs::OpenOptions,
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use keelson_shim::{
    seccomp::{self, Program},
    spec,
};

use crate::container::{
    ContainerError,
    spec::{Seccomp, Security},
};

/// Longest profile file, bytes.
const PROFILE_MAX: u64 = 4 * 1024 * 1024;
/// Families of sockets: more than any kernel has.
const FAMILIES: u64 = 64;
/// Programs kept; beyond, the cache begins anew.
const KEPT: usize = 64;

/// Compiled programs by profile.
#[derive(Default)]
pub(crate) struct Programs(Mutex<HashMap<seccomp::CacheKey, Arc<Program>>>);

impl Programs {
    /// The program for a process with these capabilities (names with `CAP_`); `None`: no filter.
    pub(crate) fn of(
        &self,
        security: &Security,
        capabilities: &spec::Capabilities,
    ) -> Result<Option<Arc<Program>>, ContainerError> {
        let profile = match &security.seccomp {
            _ if security.privileged => return Ok(None),
            Seccomp::Unconfined => return Ok(None),
            Seccomp::RuntimeDefault => {
                let program = seccomp::default_program(capabilities);
                return program.map(Some).map_err(|error| invalid(&security.seccomp, error.to_string()));
            }
            Seccomp::Localhost(path) => read(path)?,
        };
        let key = seccomp::cache_key(&profile);
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = lock().get(&key) {
            return Ok(Some(Arc::clone(program)));
        }
        let program = seccomp::compile(&profile).map_err(|error| invalid(&security.seccomp, error.to_string()))?;
        if program.notifies() {
            return Err(invalid(&security.seccomp, "a profile that notifies a listener cannot be used here".into()));
        }
        let program = Arc::new(program);
        let mut kept = lock();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(key, Arc::clone(&program));
        Ok(Some(program))
    }
}

/// The profile itself, for a runtime that compiles it; `None`: no filter.
pub(crate) fn profile(
    security: &Security,
    capabilities: &spec::Capabilities,
) -> Result<Option<spec::Seccomp>, ContainerError> {
    match &security.seccomp {
        _ if security.privileged => Ok(None),
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => Ok(Some(without_overlaps(seccomp::default_profile(capabilities)))),
        Seccomp::Localhost(path) => read(path).map(Some),
    }
}

/// Our default allows every family of sockets but two, by rules that are read in order. libseccomp, which other runtimes have, knows no
/// order and refuses rules that overlap: there the families that exist are allowed one by one, by the half of the argument that counts.
fn without_overlaps(mut profile: spec::Seccomp) -> spec::Seccomp {
    let is_socket = |rule: &spec::SeccompRule| rule.names == ["socket"];
    let refused: Vec<u64> = profile
        .syscalls
        .iter()
        .filter(|rule| is_socket(rule) && rule.action != "SCMP_ACT_ALLOW")
        .flat_map(|rule| rule.args.iter().map(|arg| arg.value_two))
        .collect();
    profile.syscalls.retain(|rule| !is_socket(rule));
    for family in (0..FAMILIES).filter(|family| !refused.contains(family)) {
        let family = spec::SeccompArg {
            index: 0,
            value: u64::from(u32::MAX),
            value_two: family,
            op: "SCMP_CMP_MASKED_EQ".to_owned(),
        };
        profile.syscalls.push(spec::SeccompRule {
            names: vec!["socket".to_owned()],
            action: "SCMP_ACT_ALLOW".to_owned(),
            args: vec![family],
            ..Default::default()
        });
    }
    profile
}

fn read(path: &Path) -> Result<spec::Seccomp, ContainerError> {
    let of = Seccomp::Localhost(path.to_owned());
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path);
    let file = file.map_err(|error| invalid(&of, format!("cannot be opened: {error}")))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(invalid(&of, "is not a regular file".into()));
    }
    let mut text = Vec::new();
    file.take(PROFILE_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|error| invalid(&of, format!("cannot be read: {error}")))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > PROFILE_MAX {
        return Err(invalid(&of, format!("has more than {PROFILE_MAX} bytes")));
    }
    serde_json::from_slice(&text).map_err(|error| invalid(&of, format!("is not a profile: {error}")))
}

fn invalid(of: &Seccomp, reason: String) -> ContainerError {
    let field = match of {
        Seccomp::Localhost(path) => format!("seccomp[{}]", path.display()),
        Seccomp::RuntimeDefault | Seccomp::Unconfined => "seccomp".to_owned(),
    };
    ContainerError::Invalid { field, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(seccomp: Seccomp) -> Security {
        Security { seccomp, ..Default::default() }
    }

    #[test]
    fn the_same_profile_is_compiled_once() {
        let programs = Programs::default();
        let capabilities = spec::Capabilities::default();
        let first = programs.of(&security(Seccomp::RuntimeDefault), &capabilities).unwrap().unwrap();
        let second = programs.of(&security(Seccomp::RuntimeDefault), &capabilities).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert!(first.instructions() > 8);
        assert!(programs.of(&security(Seccomp::Unconfined), &capabilities).unwrap().is_none());
        let privileged = Security { privileged: true, ..security(Seccomp::RuntimeDefault) };
        assert!(programs.of(&privileged, &capabilities).unwrap().is_none());
    }

    #[test]
    fn the_default_for_other_runtimes_refuses_what_ours_refuses() {
        let ours = seccomp::default_profile(&spec::Capabilities::default());
        let theirs = without_overlaps(ours.clone());
        let sockets = |profile: &spec::Seccomp, action: &str| {
            let found = profile.syscalls.iter().filter(|rule| rule.names == ["socket"] && rule.action == action);
            found.flat_map(|rule| rule.args.iter().map(|arg| arg.value_two)).collect::<Vec<_>>()
        };
        let refused = sockets(&ours, "SCMP_ACT_ERRNO");
        assert_eq!(refused.len(), 2);
        let allowed = sockets(&theirs, "SCMP_ACT_ALLOW");
        assert!(allowed.len() == 62 && refused.iter().all(|family| !allowed.contains(family)), "{allowed:?}");
        assert!(sockets(&theirs, "SCMP_ACT_ERRNO").is_empty() && theirs.default_action == "SCMP_ACT_ERRNO");
    }

    #[test]
    fn a_profile_of_the_host_is_read_and_a_bad_one_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("profile.json");
        let programs = Programs::default();
        let of = || programs.of(&security(Seccomp::Localhost(path.clone())), &spec::Capabilities::default());
        assert!(of().is_err());
        crate::store::write_new(
            &path,
            br#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}"#,
            0o644,
        )
        .unwrap();
        assert!(of().unwrap().is_some());
        for bad in [&b"{"[..], br#"{"defaultAction":"SCMP_ACT_SLEEP"}"#] {
            crate::store::write_new(&path, bad, 0o644).unwrap();
            assert!(of().is_err());
        }
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(of().is_err());
    }
}
