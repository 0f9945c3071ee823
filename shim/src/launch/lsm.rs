//! AppArmor profiles and SELinux labels of a process.
//! In the shim, before the clone; the write is the child's, through a procfs that is no container's.
//! Owns nothing.
//! Must never let a process run unconfined that was asked to be confined.

use std::path::Path;

use keelson_sys::child::{Op, Shared};

use super::{LaunchError, c_string};
use crate::spec::Process;

pub(super) fn label(ops: &mut Vec<Op>, process: &Process, proc: Option<&Shared>) -> Result<(), LaunchError> {
    let apparmor = Some(process.apparmor_profile.as_str()).filter(|profile| !matches!(*profile, "" | "unconfined"));
    let selinux = Some(process.selinux_label.as_str()).filter(|label| !label.is_empty());
    if let Some(profile) = apparmor {
        const STEP: &str = "set AppArmor profile";
        if !has_apparmor() {
            return Err(LaunchError::unsupported(STEP, profile, "this kernel runs without AppArmor"));
        }
        let path = if Path::new("/proc/self/attr/apparmor").exists() { "attr/apparmor/exec" } else { "attr/exec" };
        ops.push(write(STEP, path, format!("exec {profile}"), proc)?);
    }
    if let Some(label) = selinux {
        const STEP: &str = "set SELinux label";
        if !has_selinux() {
            return Err(LaunchError::unsupported(STEP, label, "this kernel runs without SELinux"));
        }
        ops.push(write(STEP, "attr/exec", label.to_owned(), proc)?);
    }
    Ok(())
}

/// Whether a label of the process needs a procfs to be written through.
pub(super) fn needs_proc(process: &Process) -> bool {
    !matches!(process.apparmor_profile.as_str(), "" | "unconfined") || !process.selinux_label.is_empty()
}

/// Whether mounts can carry a label here; one that is asked for on a kernel without is refused.
pub(super) fn check_mount_label(label: &str) -> Result<(), LaunchError> {
    if label.is_empty() || has_selinux() {
        return Ok(());
    }
    Err(LaunchError::unsupported("set mount label", label, "this kernel runs without SELinux"))
}

fn write(step: &'static str, path: &str, value: String, proc: Option<&Shared>) -> Result<Op, LaunchError> {
    let proc = proc.ok_or_else(|| LaunchError::unsupported(step, value.as_str(), "no procfs"))?.clone();
    let path = c_string(step, &format!("thread-self/{path}"))?;
    Ok(Op::WriteProc { proc, path, value: value.into_bytes(), what: step, lenient: false })
}

fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.first() == Some(&b'Y'))
}

fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}
