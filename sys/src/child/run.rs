//! The child's walk through its plan.
//! Runs between clone and exec, on a copied or a borrowed stack, with every signal blocked.
//! Owns nothing that outlives exec but what the plan put in place.
//! Must never allocate, panic, or return.

use core::ffi::c_void;
use std::os::fd::AsRawFd;

use rustix::io::{self, Errno};

use super::mount::Places;
use super::op::{Capabilities, Exec, Identity, Op, Shared};
use super::{Report, Start, resolve, terminal};
use crate::raw::{self, MountAttr};

const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// The child's entry.
pub(super) unsafe extern "C" fn entry(start: *mut c_void) -> ! {
    let start: *const Start<'_> = start.cast();
    // SAFETY: `fork` and `run` pass a Start that lives as long as this child needs it, copied or with the parent suspended.
    let start = unsafe { &*start };
    let mut child =
        State { places: Places::new(), socket: start.socket, starter: false, change_directory_again: false };
    if start.others >= 0 {
        raw::close(start.others);
    }
    raw::umask(0);
    for (index, op) in (0..).zip(start.ops) {
        if let Err((part, errno)) = child.perform(op) {
            fail(start, &child, Report { op: index, part, errno: errno.raw_os_error() });
        }
    }
    raw::exit(127)
}

/// Enters a user namespace and clones the real child there, as a child of our parent.
pub(super) unsafe extern "C" fn enter_user_namespace(start: *mut c_void) -> ! {
    let start: *mut Start<'_> = start.cast();
    // SAFETY: `clone_through` passes its Start and is suspended until we end.
    let result = unsafe { clone_inside(start) };
    // SAFETY: as above; the cloned child has its own copy.
    let place = unsafe { &raw mut (*start).inner_result };
    // SAFETY: as above.
    unsafe { place.write(result) };
    raw::exit(0)
}

/// # Safety
/// `start` must be valid and not otherwise used meanwhile.
unsafe fn clone_inside(start: *mut Start<'_>) -> io::Result<i32> {
    // SAFETY: the caller's promise.
    let known = unsafe { &*start };
    raw::setns(known.user, libc::CLONE_NEWUSER.cast_unsigned())?;
    let arguments = known.inner.ok_or(Errno::INVAL)?;
    // SAFETY: no CLONE_VM among the arguments: the child walks copies.
    unsafe { raw::clone3_call(arguments, entry, start.cast()) }
}

fn fail(start: &Start<'_>, child: &State, report: Report) -> ! {
    if start.report.is_null() {
        let mut bytes = [0_u8; super::MESSAGE_MAX];
        bytes[..4].copy_from_slice(&report.op.to_ne_bytes());
        bytes[4..8].copy_from_slice(&report.part.to_ne_bytes());
        bytes[8..12].copy_from_slice(&report.errno.to_ne_bytes());
        let words = if child.starter { words_for(start.ops, report.op) } else { &[] };
        let length = words.len().min(bytes.len() - 12);
        bytes[12..12 + length].copy_from_slice(&words[..length]);
        let _ = raw::write(child.socket, &bytes[..12 + length]);
    } else {
        // SAFETY: the parent, suspended, waits with a Report of its own behind this pointer.
        unsafe { start.report.write_volatile(report) };
    }
    raw::exit(127)
}

/// What a starter that does not know the plan is told.
fn words_for(ops: &[Op], failed: u32) -> &[u8] {
    for (index, op) in (1..).zip(ops) {
        if let Op::GateListener { words, .. } = op {
            let after = failed.checked_sub(index).and_then(|after| usize::try_from(after).ok());
            return after.and_then(|after| words.get(after)).map_or(&[], Vec::as_slice);
        }
    }
    &[]
}

struct State {
    places: Places,
    /// To the parent, or to whoever started us.
    socket: i32,
    /// It is the latter.
    starter: bool,
    change_directory_again: bool,
}

impl State {
    /// An error holds the part that failed.
    fn perform(&mut self, op: &Op) -> Result<(), (u32, Errno)> {
        let whole = |errno: Errno| (0, errno);
        match op {
            Op::Undumpable => raw::prctl(libc::PR_SET_DUMPABLE, 0, 0),
            Op::JoinTasks(fd) => raw::write(fd.as_raw_fd(), b"0").map(drop),
            Op::SetNamespaces { fd, kinds, .. } => raw::setns(fd.as_raw_fd(), kinds.bits()),
            Op::Unshare(kinds) => raw::unshare(kinds.bits()),
            Op::Sync => self.wait(super::SYNC),
            Op::Gate => self.wait(super::READY),
            Op::GateListener { listener, .. } => self.wait_for_starter(listener.as_raw_fd()),
            Op::BecomeRoot => raw::setresgid(0).and_then(|()| raw::setresuid(0)),
            Op::Session => raw::setsid(),
            Op::Propagation(propagation) => {
                let attr = MountAttr { propagation: propagation.bits(), ..MountAttr::default() };
                raw::mount_setattr(libc::AT_FDCWD, c"/", libc::AT_RECURSIVE, &attr)
            }
            Op::AttachRoot { tree, over } => self.places.attach_root(tree.as_raw_fd(), over),
            Op::LegacyRoot { kind, target, data, .. } => self.places.legacy_root(kind, target, data),
            Op::Mount(mount) => return self.places.mount(mount),
            Op::Shelf { folder, trees, links, read_only } => {
                return self.places.shelf(folder, trees, links, *read_only);
            }
            Op::Devices(devices) => return each(devices, |device| self.places.device(device)),
            Op::Links(links) => return each(links, |(path, target)| self.places.link(path, target)),
            Op::Folders { paths, writable } => return each(paths, |path| self.places.folder(path, *writable)),
            Op::Mask { null, paths } => {
                let (mut null_used, mut empty) = (false, -1);
                return each(paths, |path| self.places.mask(null.as_raw_fd(), &mut null_used, &mut empty, path));
            }
            Op::ReadOnly(paths) => return each(paths, |path| self.places.read_only(path)),
            Op::RootAttributes { attributes, propagation } => self.places.root_attributes(*attributes, *propagation),
            Op::EnterRoot { pivot } => self.places.enter_root(*pivot),
            Op::Terminal(wanted) => return terminal::open(&self.places, *wanted, self.socket),
            Op::Streams(streams) => {
                return each(streams.as_slice(), |_| Ok(())).and_then(|()| {
                    (0..).zip(streams).try_for_each(|(number, fd)| raw::dup3(fd.as_raw_fd(), number, 0)).map_err(whole)
                });
            }
            Op::OwnStreams { uid, which } => {
                own_streams(*uid, *which);
                Ok(())
            }
            Op::Hostname(name) => raw::sethostname(name),
            Op::Domainname(name) => raw::setdomainname(name),
            Op::WriteProc { proc, path, value, lenient, .. } => match write_proc(proc.as_raw_fd(), path, value) {
                Err(Errno::ACCESS | Errno::PERM) if *lenient => Ok(()),
                other => other,
            },
            Op::Rlimit { resource, soft, hard, .. } => raw::setrlimit(*resource, *soft, *hard),
            Op::Personality(value) => raw::personality(*value),
            Op::Scheduler(attributes) => raw::sched_setattr(attributes),
            Op::IoPriority(value) => raw::ioprio_set(*value),
            Op::WorkingDirectory { path, create, again } => self.change_directory(path, *create, *again),
            Op::Identity(identity) => return become_user(identity),
            Op::Capabilities(sets) => return set_capabilities(*sets),
            Op::Umask(mask) => {
                raw::umask(*mask);
                Ok(())
            }
            Op::NoNewPrivileges => raw::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0),
            Op::CloseOnExec => raw::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC),
            Op::CloseAllBut(keep) => self.close_all_but(keep),
            Op::Signals { ignored } => {
                let result = raw::default_signals(*ignored);
                raw::unblock_all_signals();
                result
            }
            Op::Seccomp { program, flags } => raw::seccomp_load(program, *flags),
            Op::Exec(exec) => Err(execute(exec)),
        }
        .map_err(whole)
    }

    fn wait(&self, word: u8) -> io::Result<()> {
        raw::write(self.socket, &[word])?;
        let mut answer = [0_u8; 1];
        loop {
            match raw::read(self.socket, &mut answer) {
                Ok(1) => return Ok(()),
                // The parent is gone, or has given us up: there is nobody to tell.
                Ok(_) => raw::exit(127),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Lowest first: whatever lies between two that stay is closed.
    fn close_all_but(&self, keep: &[Shared]) -> io::Result<()> {
        let mut from = 3;
        loop {
            let kept = keep.iter().map(|fd| fd.as_raw_fd()).chain([self.socket]).filter(|fd| *fd >= from);
            let Some(next) = kept.min() else {
                break;
            };
            if next > from {
                raw::close_range(from.cast_unsigned(), next.cast_unsigned() - 1, 0)?;
            }
            from = next + 1;
        }
        raw::close_range(from.cast_unsigned(), u32::MAX, 0)?;
        raw::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    }

    fn wait_for_starter(&mut self, listener: i32) -> io::Result<()> {
        raw::write(self.socket, &[super::READY])?;
        raw::close(self.socket);
        self.socket = -1;
        loop {
            let starter = match raw::accept(listener) {
                Ok(starter) => starter,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno) => return Err(errno),
            };
            let mut word = [0_u8; 1];
            // One that goes away without a word has changed its mind.
            if raw::read(starter, &mut word) == Ok(1) {
                self.socket = starter;
                self.starter = true;
                return Ok(());
            }
            raw::close(starter);
        }
    }

    fn change_directory(&mut self, path: &core::ffi::CStr, create: bool, again: bool) -> io::Result<()> {
        if again && !self.change_directory_again {
            return Ok(());
        }
        let folder = if create {
            resolve::open_or_create(self.places.root, path, super::Node::Folder, 0)
        } else {
            resolve::open(self.places.root, path)
        };
        let result = folder.and_then(|folder| {
            let result = raw::fchdir(folder);
            raw::close(folder);
            result
        });
        // Root may be refused where the user is not (NFS): once more as the final user.
        if !again && matches!(result, Err(Errno::ACCESS | Errno::PERM)) {
            self.change_directory_again = true;
            return Ok(());
        }
        result?;
        let mut buffer = [0_u8; 4096];
        match raw::getcwd(&mut buffer) {
            // Outside the root the kernel says `(unreachable)/...` (CVE-2024-21626).
            Ok(_) if buffer[0] == b'/' => Ok(()),
            Ok(_) => Err(Errno::XDEV),
            // Longer than the buffer is inside all the same only if its beginning is; a program could not name it anyway.
            Err(errno) => Err(errno),
        }
    }
}

fn each<T>(items: &[T], mut act: impl FnMut(&T) -> io::Result<()>) -> Result<(), (u32, Errno)> {
    (0..).zip(items).try_for_each(|(index, item)| act(item).map_err(|errno| (index, errno)))
}

fn own_streams(uid: u32, which: u8) {
    for stream in 0..3 {
        if which & (1 << stream) != 0 {
            let _ = raw::fchownat(stream, c"", uid, u32::MAX, libc::AT_EMPTY_PATH);
        }
    }
}

/// Below a procfs that the parent opened: a mount on top of a file in it, or a link, is refused (CVE-2025-52881).
fn write_proc(proc: i32, path: &core::ffi::CStr, value: &[u8]) -> io::Result<()> {
    let resolve = resolve::BENEATH | resolve::NO_XDEV | resolve::NO_MAGICLINKS;
    let file = raw::openat2(proc, path, libc::O_WRONLY | libc::O_NOCTTY, 0, resolve)?;
    if raw::filesystem(file)? != PROC_SUPER_MAGIC {
        raw::close(file);
        return Err(Errno::XDEV);
    }
    let result = raw::write(file, value);
    raw::close(file);
    if result? == value.len() { Ok(()) } else { Err(Errno::INVAL) }
}

fn become_user(identity: &Identity) -> Result<(), (u32, Errno)> {
    let at = |part: u32| move |errno: Errno| (part, errno);
    if identity.uid != 0 {
        raw::prctl(libc::PR_SET_KEEPCAPS, 1, 0).map_err(at(0))?;
    }
    for capability in 0..64_u32 {
        if identity.bounding & (1 << capability) == 0 {
            match raw::prctl(libc::PR_CAPBSET_DROP, capability as usize, 0) {
                Ok(()) => {}
                // Past the kernel's last one.
                Err(Errno::INVAL) if capability > 0 => break,
                Err(errno) => return Err((1, errno)),
            }
        }
    }
    raw::setgroups(&identity.groups).map_err(at(2))?;
    raw::setresgid(identity.gid).map_err(at(3))?;
    raw::setresuid(identity.uid).map_err(at(4))?;
    match identity.keep_effective {
        Some(sets) if identity.uid != 0 => raw::capset(sets, sets, 0).map_err(at(5)),
        _ => Ok(()),
    }
}

fn set_capabilities(sets: Capabilities) -> Result<(), (u32, Errno)> {
    raw::capset(sets.effective, sets.permitted, sets.inheritable).map_err(|errno| (0, errno))?;
    let mut left = sets.ambient;
    while left != 0 {
        let capability = left.trailing_zeros();
        left &= left - 1;
        raw::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as usize, capability as usize)
            .map_err(|errno| (1, errno))?;
    }
    Ok(())
}

/// Tries the candidates as a shell does: a missing one is passed over, one that may not be executed is remembered.
fn execute(exec: &Exec) -> Errno {
    let (argv, env) = (exec.argv.pointers(), exec.env.pointers());
    if let Some(file) = &exec.file {
        // SAFETY: `Strings` keeps null-ended arrays of C strings.
        let result = unsafe { raw::execveat(file.as_raw_fd(), c"".as_ptr(), argv, env, libc::AT_EMPTY_PATH) };
        return result.err().unwrap_or(Errno::IO);
    }
    let mut worst = Errno::NOENT;
    for candidate in &exec.candidates {
        // SAFETY: as above.
        match unsafe { raw::execve(candidate, argv, env) } {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::ACCESS) => worst = Errno::ACCESS,
            Err(errno) => return errno,
            Ok(()) => return Errno::IO,
        }
    }
    worst
}
