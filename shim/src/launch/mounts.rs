//! The mounts of a spec as operations: binds are cloned, shifted and given their attributes here, as detached mounts; filesystems
//! of the container's own namespaces are described for the child. In the shim, before the clone.
//! Owns the detached mounts until they are in the plan.
//! Must never give a bind more of the host's mount events than was asked for: without a word it is private.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use keelson_sys::child::{Attributes, Mount as Place, MountSource, Node, Op, Parameter, Propagation};
use keelson_sys::mount;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::options::{self, Options};
use super::{ImageVolume, LaunchError, c_string, idmap, image, rootfs};
use crate::cgroup;
use crate::spec::{IdMapping, Mount};

const STEP: &str = "mount";

/// Files of /proc that others put their own version of over: a resource view, the network counters.
const ON_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

pub(super) struct Mounts<'a> {
    pub(super) bundle: &'a Path,
    pub(super) label: &'a str,
    /// The container's own mappings, for `idmap` without any.
    pub(super) mappings: (&'a [IdMapping], &'a [IdMapping]),
    /// The container's cgroup; none yet with the systemd driver.
    pub(super) cgroup: Option<&'a cgroup::Handle>,
    /// Where systemd is going to make it.
    pub(super) expected: Option<cgroup::Handle>,
    pub(super) images: &'a [ImageVolume],
    /// How layers of images get the ids of the container's user namespace.
    pub(super) shift: Option<rootfs::Shift<'a>>,
    /// Sources that have no symbolic link left.
    pub(super) resolved: &'a [String],
    namespaces: HashMap<String, OwnedFd>,
}

impl<'a> Mounts<'a> {
    pub(super) fn new(bundle: &'a Path, label: &'a str, mappings: (&'a [IdMapping], &'a [IdMapping])) -> Mounts<'a> {
        Mounts {
            bundle,
            label,
            mappings,
            cgroup: None,
            expected: None,
            images: &[],
            shift: None,
            resolved: &[],
            namespaces: HashMap::new(),
        }
    }

    pub(super) fn operations(&mut self, mounts: &[Mount]) -> Result<Vec<Op>, LaunchError> {
        let mut ops = Vec::with_capacity(mounts.len());
        for mount in mounts {
            if !mount.destination.starts_with('/') {
                return Err(LaunchError::invalid(STEP, &mount.destination, "the destination is not an absolute path"));
            }
            let options = options::parse(&mount.options).map_err(|mut error| {
                error.object = format!("{} of {}", error.object, mount.destination);
                error
            })?;
            let image = self.images.iter().find(|volume| volume.destination == mount.destination);
            if let Some(volume) = image.filter(|_| mount.kind == "overlay") {
                let source = image::source(volume, &options, self.shift.as_ref(), self.label)?;
                ops.push(self.place(&mount.destination, source, Node::Folder, false)?);
            } else if options.bind || mount.kind == "bind" {
                ops.push(self.bind(mount, &options)?);
            } else if matches!(mount.kind.as_str(), "cgroup" | "cgroup2") {
                self.cgroup(mount, options, &mut ops)?;
            } else {
                ops.push(self.filesystem(mount, options)?);
            }
        }
        Ok(ops)
    }

    fn bind(&mut self, mount: &Mount, options: &Options) -> Result<Op, LaunchError> {
        let source =
            if mount.source.starts_with('/') { PathBuf::from(&mount.source) } else { self.bundle.join(&mount.source) };
        let failed = |errno| LaunchError::system("open mount source", source.display().to_string(), errno);
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if options.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = if self.resolved.contains(&mount.source) {
            let place = rootfs::place_without_links(&source).map_err(|errno| {
                let moved = errno == Errno::LOOP;
                let error = failed(errno);
                if moved {
                    error.with_hint("a symbolic link was put into it after it had been resolved")
                } else {
                    error
                }
            })?;
            open_tree(&place, "", flags | OpenTreeFlags::AT_EMPTY_PATH).map_err(failed)?
        } else {
            open_tree(CWD, &source, flags).map_err(failed)?
        };
        let shift = options
            .idmap
            .or_else(|| (!mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty()).then_some(false));
        if let Some(recursive) = shift {
            let own = !mount.uid_mappings.is_empty();
            let mappings =
                if own { (mount.uid_mappings.as_slice(), mount.gid_mappings.as_slice()) } else { self.mappings };
            let namespace = self.namespace(mappings)?;
            mount::set_idmap(tree.as_fd(), namespace.as_fd(), recursive).map_err(|errno| {
                LaunchError::system("shift ids of mount", source.display().to_string(), errno)
                    .with_hint("its filesystem may not support id-mapped mounts")
            })?;
        }
        adjust(&tree, options)
            .map_err(|errno| LaunchError::system("set attributes of mount", &mount.destination, errno))?;
        if let Some(unknown) = options.parameters.first() {
            return Err(LaunchError::invalid(
                "use mount option",
                format!("{unknown:?}"),
                "a bind mount has no such option",
            ));
        }
        let node = if rootfs::is_folder(&tree) { Node::Folder } else { Node::File };
        let on_proc = ON_PROC.contains(&mount.destination.trim_end_matches('/'));
        self.place(&mount.destination, MountSource::Tree(tree), node, on_proc)
    }

    fn namespace(&mut self, (uids, gids): (&[IdMapping], &[IdMapping])) -> Result<&OwnedFd, LaunchError> {
        let key = format!("{}/{}", idmap::text(uids), idmap::text(gids));
        match self.namespaces.entry(key) {
            std::collections::hash_map::Entry::Occupied(found) => Ok(found.into_mut()),
            std::collections::hash_map::Entry::Vacant(missing) => Ok(missing.insert(idmap::namespace(uids, gids)?)),
        }
    }

    fn filesystem(&self, mount: &Mount, options: Options) -> Result<Op, LaunchError> {
        let kind = if mount.kind.is_empty() { "none" } else { mount.kind.as_str() };
        let mut parameters = Vec::with_capacity(options.parameters.len() + 2);
        if !mount.source.is_empty() {
            parameters.push(Parameter::Value(c"source".into(), c_string(STEP, &mount.source)?));
        }
        parameters.extend(options.parameters);
        // Message queues were mounted by the kernel when it made their namespace: no mount of them takes a label.
        if !self.label.is_empty() && matches!(kind, "tmpfs" | "devpts") {
            parameters.push(Parameter::Value(c"context".into(), c_string(STEP, self.label)?));
        }
        let mut attributes = options.attributes;
        attributes.set |= options.recursive_attributes.set;
        let propagation = options.propagation.map(|(propagation, _)| propagation);
        let source = MountSource::New { kind: c_string(STEP, kind)?, parameters, attributes, propagation };
        // Proc and sysfs are what security rests on: they are mounted exactly where they are said to be.
        self.place_plain(&mount.destination, source, matches!(kind, "proc" | "sysfs"))
    }

    /// v2: the kernel's own view. v1: a folder of the container's cgroups, one bind for each hierarchy.
    fn cgroup(&self, mount: &Mount, options: Options, ops: &mut Vec<Op>) -> Result<(), LaunchError> {
        let dirs = match self.cgroup {
            Some(handle) => handle.controller_dirs(),
            None => self.expected.iter().flat_map(cgroup::Handle::controller_dirs).collect(),
        };
        if dirs.is_empty() {
            let v2 = Mount { kind: "cgroup2".to_owned(), source: String::new(), ..mount.clone() };
            ops.push(self.filesystem(&v2, options)?);
            return Ok(());
        }
        let attributes = options.attributes;
        let read_only = attributes.set & Attributes::RDONLY != 0;
        let folder = MountSource::New {
            kind: c"tmpfs".into(),
            parameters: vec![Parameter::Value(c"mode".into(), c"755".into())],
            attributes: Attributes { set: attributes.set & !Attributes::RDONLY, ..attributes },
            propagation: None,
        };
        let (mut trees, mut links) = (Vec::new(), Vec::new());
        for (name, path) in dirs {
            let source = match self.cgroup {
                Some(_) => MountSource::Tree(hierarchy(&path, attributes)?),
                // Where systemd has yet to make the cgroup, its place in the hierarchy is the container's cgroup namespace's root.
                None => hierarchy_of(&name, attributes)?,
            };
            for alias in name.split(',').filter(|_| name.contains(',')) {
                links.push((c_string(STEP, alias)?, c_string(STEP, &name)?));
            }
            trees.push((c_string(STEP, &name)?, source));
        }
        let target = c_string(STEP, trimmed(&mount.destination))?;
        let folder = Box::new(Place { source: folder, target, node: Node::Folder, no_symlinks: true, on_proc: true });
        ops.push(Op::Shelf { folder, trees, links, read_only });
        Ok(())
    }

    fn place_plain(&self, target: &str, source: MountSource, no_symlinks: bool) -> Result<Op, LaunchError> {
        let target = c_string(STEP, trimmed(target))?;
        Ok(Op::Mount(Box::new(Place { source, target, node: Node::Folder, no_symlinks, on_proc: true })))
    }

    fn place(&self, target: &str, source: MountSource, node: Node, on_proc: bool) -> Result<Op, LaunchError> {
        let target = c_string(STEP, trimmed(target))?;
        Ok(Op::Mount(Box::new(Place { source, target, node, no_symlinks: false, on_proc })))
    }
}

/// One version 1 hierarchy (or the unified one beside them), as the container's cgroup in it.
fn hierarchy(path: &Path, attributes: Attributes) -> Result<OwnedFd, LaunchError> {
    let failed = |errno| LaunchError::system("open cgroup", path.display().to_string(), errno);
    let tree =
        open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).map_err(failed)?;
    mount::set_attributes(tree.as_fd(), attributes, Some(Propagation::Private), false).map_err(failed)?;
    Ok(tree)
}

/// The same by the kernel, from the name of the hierarchy's mount.
fn hierarchy_of(name: &str, attributes: Attributes) -> Result<MountSource, LaunchError> {
    const CONTROLLERS: [&str; 13] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "hugetlb",
        "rdma",
        "net_cls",
        "net_prio",
        "perf_event",
    ];
    let (kind, parameters) = if name == "unified" {
        (c"cgroup2", Vec::new())
    } else if name.split(',').all(|part| CONTROLLERS.contains(&part)) {
        (c"cgroup", name.split(',').map(|part| c_string(STEP, part).map(Parameter::Flag)).collect::<Result<_, _>>()?)
    } else {
        let named = Parameter::Value(c"name".into(), c_string(STEP, name)?);
        (c"cgroup", vec![Parameter::Flag(c"none".into()), named])
    };
    Ok(MountSource::New { kind: kind.into(), parameters, attributes, propagation: None })
}

fn trimmed(path: &str) -> &str {
    match path.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed,
    }
}

/// One call when attributes are for the whole tree or there is but one mount, two otherwise.
fn adjust(tree: &OwnedFd, options: &Options) -> rustix::io::Result<()> {
    let (propagation, _) = options.propagation.unwrap_or((Propagation::Private, true));
    let mut whole = options.recursive_attributes;
    if !options.recursive {
        whole.set |= options.attributes.set;
        whole.clear |= options.attributes.clear;
        return mount::set_attributes(tree.as_fd(), whole, Some(propagation), false);
    }
    mount::set_attributes(tree.as_fd(), whole, Some(propagation), true)?;
    if options.attributes == Attributes::default() {
        return Ok(());
    }
    mount::set_attributes(tree.as_fd(), options.attributes, None, false)
}
