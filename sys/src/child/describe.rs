//! Words for each operation: what was attempted and on what, for a failure that the child could only tell in numbers.
//! In the parent.
//! Owns nothing.
//! Must never be called in the child: it allocates.

use std::ffi::CString;

use super::op::{Mount, MountSource, Op, Parameter};

/// Parts of [`Op::Mount`].
pub(super) mod part {
    pub(in crate::child) const TARGET: u32 = 0;
    pub(in crate::child) const OPEN: u32 = 1;
    pub(in crate::child) const ATTRIBUTES: u32 = 2;
    pub(in crate::child) const ATTACH: u32 = 3;
    pub(in crate::child) const VERIFY: u32 = 4;
    pub(in crate::child) const ON_PROC: u32 = 5;
    pub(in crate::child) const CUT: u32 = 6;
    /// This and above: parameter.
    pub(in crate::child) const PARAMETER: u32 = 16;
}

impl Op {
    /// What was attempted and on what, for a failure in `part`.
    pub fn describe(&self, part: u32) -> (&'static str, String) {
        let index = usize::try_from(part).unwrap_or(usize::MAX);
        let text = |string: &CString| string.to_string_lossy().into_owned();
        match self {
            Op::Undumpable => ("protect from ptrace", String::new()),
            Op::JoinTasks(_) => ("join cgroup", String::new()),
            Op::SetNamespaces { what, .. } => ("join namespace", (*what).to_owned()),
            Op::Unshare(_) => ("create namespace", String::new()),
            Op::Sync | Op::Gate | Op::GateListener { .. } => ("wait for the shim", String::new()),
            Op::BecomeRoot => ("become root of the user namespace", String::new()),
            Op::Session => ("create session", String::new()),
            Op::Propagation(_) => ("detach mount propagation from the host", "/".to_owned()),
            Op::AttachRoot { over, .. } => ("attach root filesystem", text(over)),
            Op::LegacyRoot { target, .. } => ("mount root filesystem", text(target)),
            Op::Mount(mount) => mount.describe(part),
            Op::Shelf { folder, .. } => folder.describe(part),
            Op::Devices(devices) => ("create device", devices.get(index).map(|d| text(&d.path)).unwrap_or_default()),
            Op::Links(links) => ("create link", links.get(index).map(|l| text(&l.0)).unwrap_or_default()),
            Op::Folders { paths, .. } => ("create volume folder", paths.get(index).map(text).unwrap_or_default()),
            Op::Mask { paths, .. } => ("mask path", paths.get(index).map(text).unwrap_or_default()),
            Op::ReadOnly(paths) => ("make path read-only", paths.get(index).map(text).unwrap_or_default()),
            Op::RootAttributes { .. } => ("set attributes of root filesystem", "/".to_owned()),
            Op::EnterRoot { pivot: true } => ("pivot to root filesystem", "/".to_owned()),
            Op::EnterRoot { pivot: false } => ("change root", "/".to_owned()),
            Op::Terminal(_) => ("create terminal", if part == 0 { "/dev/ptmx" } else { "/dev/console" }.to_owned()),
            Op::Streams(_) => ("set standard streams", String::new()),
            Op::OwnStreams { .. } => ("own standard streams", String::new()),
            Op::Hostname(name) => ("set hostname", text(name)),
            Op::Domainname(name) => ("set domain name", text(name)),
            Op::WriteProc { path, what, .. } => (what, text(path)),
            Op::Rlimit { name, .. } => ("set resource limit", name.clone()),
            Op::Personality(_) => ("set personality", String::new()),
            Op::Scheduler(_) => ("set scheduler", String::new()),
            Op::IoPriority(_) => ("set I/O priority", String::new()),
            Op::WorkingDirectory { path, .. } => ("change to working directory", text(path)),
            Op::Identity(identity) => match part {
                0 => ("keep capabilities", String::new()),
                1 => ("drop bounding capabilities", String::new()),
                2 => ("set supplementary groups", format!("{:?}", identity.groups)),
                3 => ("set group", identity.gid.to_string()),
                4 => ("set user", identity.uid.to_string()),
                _ => ("keep effective capabilities", String::new()),
            },
            Op::Capabilities(_) if part == 0 => ("set capabilities", String::new()),
            Op::Capabilities(_) => ("raise ambient capability", String::new()),
            Op::Umask(_) => ("set umask", String::new()),
            Op::NoNewPrivileges => ("set no_new_privs", String::new()),
            Op::CloseOnExec | Op::CloseAllBut(_) => ("close descriptors", String::new()),
            Op::Signals { .. } => ("reset signals", String::new()),
            Op::Seccomp { .. } => ("load seccomp filter", String::new()),
            Op::Exec(exec) => ("exec", exec.argv.as_slice().first().map(text).unwrap_or_default()),
        }
    }
}

impl Mount {
    fn describe(&self, part: u32) -> (&'static str, String) {
        let target = self.target.to_string_lossy().into_owned();
        match part {
            part::TARGET => ("open mount target", target),
            part::OPEN => ("create filesystem for", target),
            part::ATTRIBUTES => ("set attributes of mount", target),
            part::VERIFY => ("verify mount, whose target moved away,", target),
            part::ON_PROC => ("mount onto procfs at", target),
            part::ATTACH => ("mount", target),
            part::CUT => ("mount a part of a filesystem on", target),
            parameter => {
                let index = usize::try_from(parameter - part::PARAMETER).unwrap_or(usize::MAX);
                let MountSource::New { parameters, .. } = &self.source else {
                    return ("mount", target);
                };
                let name = match parameters.get(index) {
                    Some(Parameter::Flag(name) | Parameter::Value(name, _)) => name.to_string_lossy().into_owned(),
                    None => String::new(),
                };
                ("set filesystem option", format!("{name} of {target}"))
            }
        }
    }
}
