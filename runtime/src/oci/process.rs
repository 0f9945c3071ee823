//! The process of a container: what runs, as whom, with which environment, rights and limits.
//! Pure functions. Owns the merge of image and request: the request's word is the stronger one.
//! Must never let a malformed entry of an image mean something (CVE-2026-57231), nor lose a byte of the request's values.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, User};

use super::{Inputs, capabilities};
use crate::{container::ContainerError, engine::Rlimit};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process, and its environment as bytes when it is not UTF-8.
pub(crate) fn build(inputs: &Inputs<'_>) -> Result<(Process, Vec<Vec<u8>>), ContainerError> {
    let spec = inputs.spec;
    let identity = &inputs.identity.user;
    let mut user = User::default();
    user.set_uid(identity.uid).set_gid(identity.gid).set_additional_gids(Some(identity.additional_gids.clone()));

    let environment = environment(inputs);
    let text: Vec<String> = environment.iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect();
    let raw =
        if text.iter().zip(&environment).all(|(text, raw)| text.as_bytes() == raw) { Vec::new() } else { environment };

    let mut process = Process::default();
    process
        .set_terminal(Some(spec.terminal))
        .set_user(user)
        .set_args(Some(arguments(inputs)?))
        .set_env(Some(text))
        .set_cwd(directory(&spec.working_dir, &inputs.image.working_dir))
        .set_capabilities(Some(capabilities::build(&spec.security, inputs.host)?))
        .set_rlimits(Some(limits(inputs.rlimits)?))
        .set_no_new_privileges(Some(spec.security.no_new_privileges))
        .set_oom_score_adj(spec.resources.oom_score_adj.or(Some(0)));
    Ok((process, raw))
}

/// A command replaces the image's entrypoint and drops its command; arguments replace the image's command.
fn arguments(inputs: &Inputs<'_>) -> Result<Vec<String>, ContainerError> {
    let (spec, image) = (inputs.spec, inputs.image);
    let mut arguments = if spec.command.is_empty() { image.entrypoint.clone() } else { spec.command.clone() };
    if !spec.args.is_empty() {
        arguments.extend_from_slice(&spec.args);
    } else if spec.command.is_empty() {
        arguments.extend_from_slice(&image.cmd);
    }
    match arguments.first() {
        None => {
            let reason = "the image has neither entrypoint nor command: say what to run".to_owned();
            Err(ContainerError::Invalid { field: "command".into(), reason })
        }
        Some(_) if arguments.iter().any(|word| word.contains('\0')) => {
            Err(ContainerError::Invalid { field: "image".into(), reason: "a word of its command has a NUL".into() })
        }
        Some(_) => Ok(arguments),
    }
}

/// The image's entries, then what every process expects, then the request's; of two with one name the later counts.
fn environment(inputs: &Inputs<'_>) -> Vec<Vec<u8>> {
    let mut entries: Vec<(String, Vec<u8>)> = Vec::new();
    let mut set = |name: &str, value: &[u8], replace: bool| match entries.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) if replace => value.clone_into(old),
        Some(_) => {}
        None => entries.push((name.to_owned(), value.to_owned())),
    };
    for entry in &inputs.image.env {
        // No name, no `=`, a NUL: such an entry means nothing, and above all not "take the host's".
        if let Some((name, value)) = entry.split_once('=')
            && !name.is_empty()
            && !entry.contains('\0')
        {
            set(name, value.as_bytes(), true);
        }
    }
    set("PATH", PATH.as_bytes(), false);
    set("HOSTNAME", inputs.hostname.as_bytes(), true);
    if inputs.spec.terminal {
        set("TERM", b"xterm", false);
    }
    for variable in &inputs.spec.env {
        set(&variable.name, &variable.value, true);
    }
    for (name, value) in inputs.cdi.environment() {
        set(name, value.as_bytes(), true);
    }
    set("HOME", inputs.identity.home.as_deref().unwrap_or("/").as_bytes(), false);
    let join = |(name, value): (String, Vec<u8>)| [name.as_bytes(), b"=", &value].concat();
    entries.into_iter().map(join).collect()
}

/// The request's, else the image's, else the root; an image's relative one starts at the root.
fn directory(asked: &Path, image: &str) -> PathBuf {
    if !asked.as_os_str().is_empty() {
        asked.to_owned()
    } else if image.contains('\0') {
        PathBuf::from("/")
    } else {
        Path::new("/").join(image)
    }
}

fn limits(limits: &[Rlimit]) -> Result<Vec<PosixRlimit>, ContainerError> {
    let build = |limit: &Rlimit| {
        let typ: PosixRlimitType =
            serde_json::from_value(limit.name.clone().into()).map_err(|_| ContainerError::Invalid {
                field: "configuration: rlimits".into(),
                reason: format!("`{}` is not a limit: want names as `RLIMIT_NOFILE`", limit.name),
            })?;
        let rlimit = PosixRlimitBuilder::default().typ(typ).soft(limit.soft.min(limit.hard)).hard(limit.hard).build();
        rlimit.map_err(|error| ContainerError::Invalid {
            field: "configuration: rlimits".into(),
            reason: error.to_string(),
        })
    };
    limits.iter().map(build).collect()
}
