//! Which SELinux labels a pod's processes and files get.
//! Runs while sandboxes and containers are made: a write to a file of the kernel for each label; nothing at all on a host without SELinux.
//! Owns the choice of a level that no other sandbox of this daemon has; which are in use is told by the sandboxes' own entries.
//! Must never use a label that the loaded policy does not know, nor leave out one that was asked for.

pub(crate) mod level;
mod policy;

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use keelson_sys::namespace::in_existing;
use rustix::{
    fs::XattrFlags,
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

use crate::{
    container::spec::{Security, SelinuxLabel},
    store::record::SandboxRecord,
};
use policy::Policy;

/// Name of the attribute that holds a file's label.
pub(crate) const ATTRIBUTE: &str = "security.selinux";
/// What a process has that nothing but the node's own policy confines.
const PRIVILEGED: &str = "spc_t";
const FIELD: &str = "selinux_options";

/// SELinux of this host.
pub(crate) struct Selinux(Option<Policy>);

/// The labels of a container, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labels {
    /// Of its processes.
    pub(crate) process: String,
    /// Of its files.
    pub(crate) file: String,
}

/// What can be told of SELinux on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelinuxStatus {
    /// The kernel has it, and a policy is loaded.
    pub enabled: bool,
    /// Why containers that ask for no label get none; `None`: they get one, or the kernel has no SELinux.
    pub problem: Option<String>,
}

/// A label that cannot be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Asked for on a host without the means.
    Unsupported(String),
    /// Not one of the policy.
    Invalid(String),
}

impl Refusal {
    /// For a container.
    pub(crate) fn of_container(self) -> crate::container::ContainerError {
        use crate::container::ContainerError as Error;
        match self {
            Self::Unsupported(reason) => Error::Unsupported { field: FIELD.into(), reason },
            Self::Invalid(reason) => Error::Invalid { field: FIELD.into(), reason },
        }
    }

    /// For a sandbox.
    pub(crate) fn of_sandbox(self) -> crate::sandbox::SandboxError {
        use crate::sandbox::SandboxError as Error;
        match self {
            Self::Unsupported(reason) => Error::Unsupported { field: FIELD.into(), reason },
            Self::Invalid(reason) => Error::Invalid { field: FIELD.into(), reason },
        }
    }
}

impl Selinux {
    /// Looks whether the kernel has it, and what the policy calls containers.
    pub(crate) fn detect() -> Self {
        let policy = Policy::of_this_host();
        if let Some(problem) = policy.as_ref().and_then(Policy::problem) {
            tracing::warn!(problem, "SELinux: containers that name no label run without one of their own");
        }
        Self(policy)
    }

    pub(crate) fn status(&self) -> SelinuxStatus {
        let problem = self.0.as_ref().and_then(Policy::problem).map(str::to_owned);
        SelinuxStatus { enabled: self.0.is_some(), problem }
    }

    /// Whether a new sandbox gets a level: it names one, or the policy has containers.
    ///
    /// # Errors
    /// What it asks for cannot be given.
    pub(crate) fn wants_level(&self, asked: Option<&SelinuxLabel>) -> Result<bool, Refusal> {
        let asked = asked.filter(|label| is_something(label));
        match (&self.0, asked) {
            (None, None) => Ok(false),
            (None, Some(_)) => Err(unsupported()),
            (Some(policy), None) => Ok(policy.mls() && policy.problem().is_none()),
            (Some(policy), Some(asked)) => {
                // As its containers will have it, unless they name another.
                let process = policy.process().with(asked);
                policy.check(&process).map_err(Refusal::Invalid)?;
                Ok(policy.mls())
            }
        }
    }

    /// The labels of a container; none: no SELinux, or no policy for containers and nothing asked for.
    ///
    /// # Errors
    /// What it asks for cannot be given.
    pub(crate) fn labels(&self, sandbox: &SandboxRecord, security: &Security) -> Result<Option<Labels>, Refusal> {
        let own = security.selinux.as_ref().filter(|label| is_something(label));
        let inherited = sandbox.spec.selinux.as_ref().filter(|label| is_something(label));
        let Some(policy) = &self.0 else {
            return if own.or(inherited).is_some() { Err(unsupported()) } else { Ok(None) };
        };
        if policy.problem().is_some() && own.or(inherited).is_none() {
            return Ok(None);
        }
        let level = sandbox.level.as_deref().unwrap_or_default();
        let asked = merged(own, inherited);
        let mut process = policy.process().clone();
        if security.privileged {
            // Any level would do: nothing of the policy's separation of containers is meant for it.
            PRIVILEGED.clone_into(&mut process.kind);
        } else if !level.is_empty() {
            level.clone_into(&mut process.level);
        }
        // Files are nobody's role; at the container's level, so that containers of another level cannot have them.
        let file = policy.file().at(level).at(&asked.level);
        let labels = Labels { process: policy.text(&process.with(&asked)), file: policy.text(&file) };
        policy.check_text(&labels.process).and_then(|()| policy.check_text(&labels.file)).map_err(Refusal::Invalid)?;
        Ok(Some(labels))
    }

    /// The label of the files that a sandbox's containers have in common.
    pub(crate) fn common(&self, sandbox: &SandboxRecord) -> Option<String> {
        let policy = self.0.as_ref()?;
        let level = sandbox.level.as_deref()?;
        Some(policy.text(&policy.file().at(level)))
    }
}

/// The container's word, else the sandbox's.
fn merged(own: Option<&SelinuxLabel>, inherited: Option<&SelinuxLabel>) -> SelinuxLabel {
    let part = |of: fn(&SelinuxLabel) -> &String| {
        let said = [own, inherited].into_iter().flatten().map(of).find(|text| !text.is_empty());
        said.cloned().unwrap_or_default()
    };
    SelinuxLabel {
        user: part(|label| &label.user),
        role: part(|label| &label.role),
        kind: part(|label| &label.kind),
        level: part(|label| &label.level),
    }
}

fn is_something(label: &SelinuxLabel) -> bool {
    [&label.user, &label.role, &label.kind, &label.level].iter().any(|part| !part.is_empty())
}

fn unsupported() -> Refusal {
    Refusal::Unsupported("the host's kernel has no SELinux, or it is switched off".into())
}

/// Labels a file of our own. A filesystem that keeps no labels has its own for all its files.
///
/// # Errors
/// The kernel's.
pub(crate) fn label(path: &Path, label: &str) -> std::io::Result<()> {
    match rustix::fs::lsetxattr(path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => Ok(other?),
    }
}

/// Labels the message queues of an IPC namespace, which the kernel mounted when it made it: a mount of them takes no label.
///
/// # Errors
/// The kernel's.
pub(crate) fn label_queues(ipc: &Path, label: &str) -> std::io::Result<()> {
    let namespace = File::open(ipc)?;
    in_existing(&[namespace.as_fd()], || {
        let context = fsopen("mqueue", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(context.as_fd())?;
        // It is nowhere, and gone with its descriptor.
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
        match rustix::fs::setxattr(path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    })?
}

#[cfg(test)]
mod tests;
