//! What CRIU's images may ask for, held against the container that was requested: who the processes are and what they may, which
//! namespaces they are in, which files they have open. Memory, registers and positions in files are the archive's own business.
//! Blocks: on the blocking pool of the daemon, over a folder that only root can write.
//! Owns the list of images that are known. Must never pass on an image that it does not know, nor one whose checked part can be
//! read in two ways (CVE-2024-8676, CVE-2026-50195, CVE-2026-53489, CVE-2026-53492).

mod names;

use std::{fs, io::Read as _, path::Path};

use self::names::{Kind, kind};
use super::{
    CheckpointError,
    wire::{self, Bad, Fields},
};

/// Images are parsed whole; honest ones have some kilobytes. Pages are not among them.
const IMAGE_MAX: u64 = 64 << 20;
/// Of an image with a file's content behind its first message.
const HEAD: u64 = 64 << 10;

/// What the processes may be at most.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bounds {
    /// Capabilities of the bounding set, as bits.
    pub(crate) capabilities: u64,
    pub(crate) uid: u32,
    /// Primary and supplementary.
    pub(crate) gids: Vec<u32>,
    pub(crate) no_new_privileges: bool,
    /// The filter that every thread must have had first, as loaded.
    pub(crate) seccomp: Option<Vec<u8>>,
    /// A label or profile is given with the restore: theirs does not count.
    pub(crate) labelled: bool,
    /// Hard limits by their number; `None`: unlimited.
    pub(crate) rlimits: Vec<Option<u64>>,
    pub(crate) oom_score_adj: i64,
    /// Names of streams that are given with the restore.
    pub(crate) stdio: Vec<String>,
    pub(crate) host_network: bool,
}

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_NICE: u32 = 23;
/// The state of a task, as CRIU writes it, that had ended.
const DEAD: u32 = 2;

/// Moves the images that are known and allowed from `from` to the empty folder `to`, but for the mounts, which are returned.
///
/// # Errors
/// The first image that is not allowed, with the reason.
pub(crate) fn take(from: &Path, to: &Path, bounds: &Bounds) -> Result<Vec<u8>, CheckpointError> {
    let mut mounts = None;
    let mut present = Vec::new();
    let mut checks = Checks { bounds, root_ids: None, mount_ns: None, filters: None };
    let mut names = fs::read_dir(from)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>())
        .map_err(CheckpointError::io("list images of", from))?;
    // What the others are held against comes first.
    names.sort_by_key(|name| (name != "inventory.img", name != "seccomp.img", name.clone()));
    for name in names {
        let name = name.to_str().ok_or_else(|| CheckpointError::image("?", "its name is not text"))?;
        let path = from.join(name);
        let refused = |reason| CheckpointError::image(name, reason);
        let metadata = fs::symlink_metadata(&path).map_err(CheckpointError::io("look at", &path))?;
        if !metadata.is_file() {
            return Err(refused("it is not a regular file"));
        }
        let kind = kind(name).ok_or_else(|| refused("a container's checkpoint has no such image"))?;
        if kind == Kind::Dropped {
            continue;
        }
        if !matches!(kind, Kind::Numbered("pages-") | Kind::Single("pipes-data" | "fifo-data" | "sk-queues")) {
            let bytes = read(&path, matches!(kind, Kind::Numbered("ghost-file-")))?;
            checks.check(&kind, &bytes).map_err(refused)?;
            if kind == Kind::Numbered("mountpoints-") {
                let number = name.strip_prefix("mountpoints-").and_then(|rest| rest.strip_suffix(".img"));
                let number: Option<u32> = number.and_then(|number| number.parse().ok());
                let number = number.ok_or_else(|| refused("a bad number"))?;
                if mounts.replace((number, name.to_owned(), bytes)).is_some() {
                    return Err(refused("there is more than one mount namespace"));
                }
                continue;
            }
        }
        fs::rename(&path, to.join(name)).map_err(CheckpointError::io("move", &path))?;
        present.push(name.to_owned());
    }
    for needed in ["inventory.img", "pstree.img", "files.img"] {
        if !present.iter().any(|name| name == needed) {
            return Err(CheckpointError::image(needed, "it is missing"));
        }
    }
    let (number, _, bytes) = mounts.ok_or_else(|| CheckpointError::image("mountpoints", "it is missing"))?;
    match checks.mount_ns {
        Some(namespace) if namespace == number => Ok(bytes),
        _ => Err(CheckpointError::image("mountpoints", "it is not of the processes' mount namespace")),
    }
}

fn read(path: &Path, head: bool) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(CheckpointError::io("open", path))?;
    file.take(if head { HEAD } else { IMAGE_MAX + 1 })
        .read_to_end(&mut bytes)
        .map_err(CheckpointError::io("read", path))?;
    if !head && u64::try_from(bytes.len()).unwrap_or(u64::MAX) > IMAGE_MAX {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(CheckpointError::image(&name, "it is larger than any such image"));
    }
    Ok(bytes)
}

/// Namespace ids, by field of `task_kobj_ids_entry`: those that are the runtime's own, and those of the container.
const SHARED_IDS: [u64; 6] = [6, 7, 8, 10, 11, 12];
const PID_NS: u64 = 5;
const MOUNT_NS: u64 = 9;

struct Checks<'a> {
    bounds: &'a Bounds,
    root_ids: Option<Vec<(u64, Option<u32>)>>,
    mount_ns: Option<u32>,
    /// Filters with the index of the one before.
    filters: Option<Vec<(Vec<u8>, Option<u32>)>>,
}

impl Checks<'_> {
    fn check(&mut self, kind: &Kind<'_>, bytes: &[u8]) -> Result<(), Bad> {
        if matches!(kind, Kind::Numbered("ghost-file-")) {
            return ghost(&Fields::read(wire::first(bytes)?)?);
        }
        let (_, messages) = wire::image(bytes)?;
        let messages = messages.into_iter().map(Fields::read).collect::<Result<Vec<_>, _>>()?;
        match kind {
            Kind::Single("inventory") => self.inventory(only(&messages)?),
            Kind::Single("seccomp") => self.seccomp(only(&messages)?),
            Kind::Single("pstree") => pstree(&messages),
            Kind::Single("files") => messages.iter().try_for_each(|file| self.file(file)),
            Kind::Single("remap-fpath") => messages.iter().try_for_each(remap),
            Kind::Numbered("core-") => self.core(only(&messages)?),
            Kind::Numbered("ids-") => self.ids(only(&messages)?),
            Kind::Numbered("mm-" | "fs-" | "timens-") => only(&messages).map(drop),
            Kind::Single(_) | Kind::Numbered(_) | Kind::Dropped => Ok(()),
        }
    }

    fn inventory(&mut self, inventory: &Fields<'_>) -> Result<(), Bad> {
        let ids = inventory.message(3)?.ok_or("it does not tell the runtime's own namespaces")?;
        let wanted = SHARED_IDS.into_iter().chain([PID_NS, MOUNT_NS]);
        self.root_ids = Some(wanted.map(|field| Ok((field, ids.small(field)?))).collect::<Result<Vec<_>, Bad>>()?);
        match inventory.message(12)? {
            Some(plugins) if plugins.has(12) => Err("it asks for plugins of CRIU"),
            Some(_) | None => Ok(()),
        }
    }

    fn ids(&mut self, ids: &Fields<'_>) -> Result<(), Bad> {
        let root = self.root_ids.as_ref().ok_or("there is no inventory")?;
        let of_root = |wanted| root.iter().find(|(field, _)| *field == wanted).and_then(|(_, id)| *id);
        for field in SHARED_IDS {
            if ids.small(field)? != of_root(field) {
                return Err("a process is in a network, IPC, UTS, user, cgroup or time namespace of its own");
            }
        }
        let (pid, mount) = (ids.small(PID_NS)?, ids.small(MOUNT_NS)?);
        if pid.is_none() || pid == of_root(PID_NS) || mount.is_none() || mount == of_root(MOUNT_NS) {
            return Err("a process is in the runtime's own PID or mount namespace");
        }
        if *self.mount_ns.get_or_insert(mount.unwrap_or(0)) != mount.unwrap_or(0) {
            return Err("there is more than one mount namespace");
        }
        Ok(())
    }

    fn seccomp(&mut self, image: &Fields<'_>) -> Result<(), Bad> {
        let filters = image.messages(1)?;
        let filters = filters
            .iter()
            .map(|filter| Ok((filter.bytes(1)?.ok_or("a filter without a program")?.to_vec(), filter.small(2)?)));
        self.filters = Some(filters.collect::<Result<Vec<_>, Bad>>()?);
        Ok(())
    }

    fn core(&mut self, core: &Fields<'_>) -> Result<(), Bad> {
        if let Some(ids) = core.message(4)? {
            self.ids(&ids)?;
        }
        let mut dead = false;
        if let Some(task) = core.message(3)? {
            self.task(&task)?;
            dead = task.small(2)? == Some(DEAD);
        }
        let thread = match core.message(5)? {
            // It had ended and nobody had waited for it yet: of such a process there is only its exit code, and it runs nothing.
            None if dead => return Ok(()),
            thread => thread.ok_or("a thread without a description")?,
        };
        let creds = thread.message(10)?.ok_or("a thread without credentials")?;
        self.creds(&creds)?;
        self.filtered(&thread)?;
        let nice = self.has(CAP_SYS_NICE);
        // Of the policies, these are ordinary, batch and idle.
        if !nice && !matches!(thread.small(4)?.unwrap_or(0), 0 | 3 | 5) {
            return Err("a thread has a real-time policy");
        }
        // A zigzag number: negative ones are odd.
        if !nice && thread.number(3)?.unwrap_or(0) % 2 == 1 {
            return Err("a thread has a raised priority");
        }
        Ok(())
    }

    fn task(&self, task: &Fields<'_>) -> Result<(), Bad> {
        if let Some(rlimits) = task.message(8)? {
            for (limit, most) in rlimits.messages(1)?.iter().zip(&self.bounds.rlimits) {
                let asked = limit.number(2)?.ok_or("a resource limit without a value")?;
                if most.is_some_and(|most| asked > most) {
                    return Err("a resource limit is above the container's");
                }
            }
        }
        let score = task.number(14)?.map_or(self.bounds.oom_score_adj, u64::cast_signed);
        if score < self.bounds.oom_score_adj {
            return Err("its oom_score_adj is below the container's");
        }
        Ok(())
    }

    fn creds(&self, creds: &Fields<'_>) -> Result<(), Bad> {
        let bounds = self.bounds;
        let root = bounds.uid == 0;
        for field in [1, 3, 5, 7] {
            let uid = creds.small(field)?.ok_or("a user id is missing")?;
            if uid != bounds.uid && !(root && self.has(CAP_SETUID)) {
                return Err("a user id is not the container's");
            }
        }
        let groups = creds.numbers(14)?.into_iter().map(|group| u32::try_from(group & u64::from(u32::MAX)).ok());
        let ids = [2, 4, 6, 8].map(|field| creds.small(field).ok().flatten()).into_iter().chain(groups);
        for gid in ids {
            let gid = gid.ok_or("a group id is missing")?;
            let any = root && self.has(CAP_SETGID);
            if !any && !bounds.gids.contains(&gid) {
                return Err("a group id is not the container's");
            }
        }
        for field in [9, 10, 11, 12, 19] {
            let words = creds.numbers(field)?;
            if words.len() > 2 {
                return Err("a capability set has more than two words");
            }
            let low = words.first().copied().unwrap_or(0) & u64::from(u32::MAX);
            let set = low | (words.get(1).copied().unwrap_or(0) & u64::from(u32::MAX)) << 32;
            if set & !bounds.capabilities != 0 {
                return Err("a process has capabilities that the container has not");
            }
        }
        if bounds.no_new_privileges && creds.small(18)? != Some(1) {
            return Err("a process could gain privileges");
        }
        let label =
            |field| Ok::<_, Bad>(creds.bytes(field)?.is_some_and(|label| !matches!(label, b"" | b"unconfined")));
        if !bounds.labelled && (label(15)? || label(16)?) || creds.bytes(17)?.is_some() {
            return Err("a process has a label or profile of its own");
        }
        Ok(())
    }

    /// The container's filter comes first in the chain of every thread.
    fn filtered(&self, thread: &Fields<'_>) -> Result<(), Bad> {
        let Some(wanted) = &self.bounds.seccomp else { return Ok(()) };
        if thread.small(11)? != Some(2) {
            return Err("a thread has no system call filter, and the container has one");
        }
        let filters = self.filters.as_ref().ok_or("there are no filters")?;
        let mut at = thread.small(12)?.ok_or("a thread without a filter")?;
        for _ in 0..=filters.len() {
            let (program, before) =
                usize::try_from(at).ok().and_then(|at| filters.get(at)).ok_or("a filter that is not there")?;
            match before {
                Some(before) => at = *before,
                None if program == wanted => return Ok(()),
                None => return Err("a thread's first system call filter is not the container's"),
            }
        }
        Err("a circle of filters")
    }

    fn file(&self, file: &Fields<'_>) -> Result<(), Bad> {
        // Regular, pipe, fifo, internet and unix socket, eventfd, epoll, inotify, signalfd, netlink, timerfd, memfd, pidfd.
        if !matches!(file.small(1)?.unwrap_or(0), 1..=9 | 13 | 17 | 18 | 20) {
            return Err("a terminal, namespace, device or other file that belongs to no container");
        }
        if let Some(regular) = file.message(3)? {
            let name = regular.bytes(6)?.ok_or("a file without a name")?;
            let outside = regular.number(9)?.unwrap_or(0) != 0;
            if outside && !self.bounds.stdio.iter().any(|stream| stream.as_bytes() == name) {
                return Err("a file from outside that is no standard stream");
            }
            if !outside && (!name.starts_with(b"/") || name.split(|byte| *byte == b'/').any(|part| part == b"..")) {
                return Err("a file whose name is not a plain path");
            }
        }
        if let Some(socket) = file.message(4)? {
            if socket.small(4)? == Some(3) && !self.has(CAP_NET_RAW) {
                return Err("a raw socket, and the container may not have one");
            }
            let port = socket.small(7)?.unwrap_or(0);
            if self.bounds.host_network && (1..1024).contains(&port) && !self.has(CAP_NET_BIND_SERVICE) {
                return Err("a socket on a port of the host that the container may not have");
            }
            self.options(socket.message(14)?)?;
        }
        if let Some(socket) = file.message(16)? {
            self.options(socket.message(10)?)?;
        }
        if let Some(socket) = file.message(6)? {
            self.options(socket.message(12)?)?;
        }
        Ok(())
    }

    /// Of a socket's options, those that need rights.
    fn options(&self, options: Option<Fields<'_>>) -> Result<(), Bad> {
        let Some(options) = options else { return Ok(()) };
        let rights = self.has(CAP_NET_ADMIN);
        if !rights && (options.small(10)?.unwrap_or(0) != 0 || options.small(8)?.unwrap_or(0) > 6) {
            return Err("a socket with a mark or priority that the container may not set");
        }
        Ok(())
    }

    fn has(&self, capability: u32) -> bool {
        self.bounds.capabilities & (1 << capability) != 0
    }
}

fn only<'a, 'b>(messages: &'a [Fields<'b>]) -> Result<&'a Fields<'b>, Bad> {
    match messages {
        [one] => Ok(one),
        _ => Err("it does not hold one message"),
    }
}

/// The container's init is the first process, and it is process 1.
fn pstree(processes: &[Fields<'_>]) -> Result<(), Bad> {
    let init = processes.first().ok_or("there is no process")?;
    if init.small(1)? != Some(1) || init.small(2)? != Some(0) {
        return Err("the first process is not the init of a PID namespace of its own");
    }
    let others = processes.get(1..).unwrap_or_default();
    if others.iter().any(|process| matches!(process.small(2), Ok(Some(0) | None) | Err(_))) {
        return Err("there is more than one tree of processes");
    }
    Ok(())
}

/// Files that were removed while they were open: their content is in an image.
fn remap(remap: &Fields<'_>) -> Result<(), Bad> {
    match remap.small(3)?.unwrap_or(0) {
        1 | 2 => Ok(()),
        _ => Err("a file under another name"),
    }
}

fn ghost(ghost: &Fields<'_>) -> Result<(), Bad> {
    let mode = ghost.small(3)?.ok_or("a removed file without a mode")?;
    if mode & 0o170_000 != 0o100_000 || mode & 0o6000 != 0 {
        return Err("a removed file that is no regular file, or has set-id bits");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
