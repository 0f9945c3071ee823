//! The container's cgroup while the container is being made: before its process, or by systemd around it.
//! In the shim, before and beside the child.
//! Owns the cgroup until the container is handed over.
//! Must never remove a cgroup that it did not make.

use super::{CreateRequest, LaunchError, idmap};
use crate::cgroup::{self, Location};
use crate::spec::{Linux, Mount, NamespaceKind, Process, Resources, Spec};

/// The container's cgroup while the container is being made.
pub(super) enum Cgroup {
    Ready(cgroup::Handle),
    /// Systemd makes it around the process.
    Later(String),
}

impl Cgroup {
    pub(super) fn make(request: &CreateRequest<'_>, linux: &Linux) -> Result<Cgroup, LaunchError> {
        let path = path(request, linux);
        if request.systemd_cgroup {
            return Ok(Cgroup::Later(path));
        }
        let none = Resources::default();
        let made = Location::parse(&path, false)
            .and_then(|location| cgroup::Handle::create(&location, linux.resources.as_ref().unwrap_or(&none)));
        made.map(Cgroup::Ready).map_err(|error| cgroup_failed("create cgroup", &error))
    }

    pub(super) fn handle(&self) -> Option<&cgroup::Handle> {
        match self {
            Cgroup::Ready(handle) => Some(handle),
            Cgroup::Later(_) => None,
        }
    }

    pub(super) fn make_scope(&self, pid: i32, linux: &Linux) -> Result<cgroup::Handle, LaunchError> {
        let Cgroup::Later(path) = self else {
            return Err(LaunchError::invalid("create cgroup", "", "it exists already"));
        };
        let none = Resources::default();
        let resources = linux.resources.as_ref().unwrap_or(&none);
        Location::parse(path, true)
            .and_then(|location| cgroup::Handle::create_scope(&location, pid, resources))
            .map_err(|error| cgroup_failed("create cgroup", &error))
    }

    /// Empty by now; a failure to remove it must not hide why the launch failed.
    pub(super) fn discard(&self) {
        if let Cgroup::Ready(handle) = self {
            let _ = handle.kill();
            let _ = handle.remove();
        }
    }
}

pub(super) fn cgroup_failed(step: &'static str, error: &cgroup::CgroupError) -> LaunchError {
    LaunchError::invalid(step, "", keelson_api::chain(error))
}

/// A container that has its cgroup mounted to write to is given it: OCI runtime specification, "cgroup ownership".
pub(super) fn delegate(handle: &cgroup::Handle, process: &Process, spec: &Spec) -> Result<(), LaunchError> {
    let Some(linux) = &spec.linux else { return Ok(()) };
    let own = linux.namespaces.iter().any(|it| it.kind == NamespaceKind::Cgroup && it.path.is_empty());
    let writable = |mount: &Mount| {
        let last = mount.options.iter().rev().find(|option| matches!(option.as_str(), "ro" | "rw"));
        matches!(mount.kind.as_str(), "cgroup" | "cgroup2") && last.is_none_or(|option| option == "rw")
    };
    if !own || !spec.mounts.iter().any(writable) {
        return Ok(());
    }
    let uid = idmap::outside(&linux.uid_mappings, process.user.uid);
    handle.delegate(uid).map_err(|error| cgroup_failed("delegate cgroup", &error))
}

/// The cgroup that systemd is going to make; nothing of it exists yet.
pub(super) fn expected(request: &CreateRequest<'_>, linux: &Linux) -> Result<cgroup::Handle, LaunchError> {
    Location::parse(&path(request, linux), true)
        .and_then(|location| cgroup::Handle::at(&location))
        .map_err(|error| cgroup_failed("find cgroup", &error))
}

fn path(request: &CreateRequest<'_>, linux: &Linux) -> String {
    if linux.cgroups_path.is_empty() {
        return cgroup::default_path(request.id, request.systemd_cgroup);
    }
    linux.cgroups_path.clone()
}
