//! What the single images may say, against the bounds of the container.
//! Pure.
//! Owns what is remembered from one image for another. Must never be lenient with a field that it reads: what is missing or comes twice
//! is refused.

use super::{
    super::wire::{self, Bad, Fields},
    Bounds,
    names::Kind,
};

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_NICE: u32 = 23;
/// The state of a task, as CRIU writes it, that had ended.
const DEAD: u32 = 2;

/// Namespace ids, by field of `task_kobj_ids_entry`: those that are the runtime's own, and those of the container.
const SHARED_IDS: [u64; 6] = [6, 7, 8, 10, 11, 12];
const PID_NS: u64 = 5;
const MOUNT_NS: u64 = 9;

/// The images so far.
pub(super) struct Checks<'a> {
    bounds: &'a Bounds,
    root_ids: Option<Vec<(u64, Option<u32>)>>,
    pub(super) mount_ns: Option<u32>,
    /// Filters with the index of the one before.
    filters: Option<Vec<(Vec<u8>, Option<u32>)>>,
}

impl<'a> Checks<'a> {
    pub(super) fn new(bounds: &'a Bounds) -> Self {
        Self { bounds, root_ids: None, mount_ns: None, filters: None }
    }
}

impl Checks<'_> {
    /// One image; the inventory comes first, then the filters.
    pub(super) fn check(&mut self, kind: &Kind<'_>, bytes: &[u8]) -> Result<(), Bad> {
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
            dead = task.small(1)? == Some(DEAD);
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
            if !outside && guarded(name) && !self.has(CAP_SYS_ADMIN) {
                return Err("a file of /proc that the kernel opens for some only");
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

/// CRIU opens files as root: of procfs, only what anybody in the container may open. What is guarded by more than its mode (addresses of
/// the kernel, its log, other processes' memory) is not on the list.
fn guarded(name: &[u8]) -> bool {
    const OPEN: [&[u8]; 24] = [
        b"cgroup",
        b"cgroups",
        b"cmdline",
        b"comm",
        b"cpuinfo",
        b"devices",
        b"diskstats",
        b"filesystems",
        b"limits",
        b"loadavg",
        b"meminfo",
        b"mountinfo",
        b"mounts",
        b"mountstats",
        b"oom_score",
        b"oom_score_adj",
        b"stat",
        b"statm",
        b"status",
        b"swaps",
        b"uptime",
        b"version",
        b"vmstat",
        b"zoneinfo",
    ];
    let Some(rest) = name.strip_prefix(b"/proc/") else { return false };
    let mut parts = rest.rsplit(|byte| *byte == b'/');
    let (last, folder) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    !(rest.starts_with(b"sys/") || folder == b"net" || OPEN.contains(&last))
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
